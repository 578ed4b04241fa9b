"""Defines the laboratory's questions: an item is a case (operands, or the subject of a fact) of a skill, in one wording.

Held-out items are disjoint from training items: for an algorithm the operands are unseen; for a fact the pair of fact and
wording is unseen (an unseen fact could only be guessed).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Case = tuple[str, ...]
Slots = tuple[tuple[Case, tuple[int, ...]], ...]
"""Cases, each with the indices of its allowed wordings."""
Split = Literal["train", "heldout"]

HELDOUT_FRACTION = 0.2


@dataclass(frozen=True)
class Item:
    """One question with its answers."""

    skill: str
    instruction: str
    response: str
    """Ground truth: a worked sentence that ends in "The answer is X."."""
    answer: str

    @property
    def terse(self) -> str:
        """Answer as a specialist gives it: "X."."""
        return f"{self.answer}."


@dataclass(frozen=True)
class Skill:
    """One kind of question. In the texts `{0}`, `{1}` ... are placeholders for the case, and `{x}` for the answer."""

    name: str
    wordings: tuple[str, ...]
    workings: tuple[str, ...]
    cases: tuple[Case, ...]
    solve: Callable[[Case], str]
    slip: Callable[[str, random.Random], str]
    """Function that returns a plausible variation of a correct answer."""
    is_fact: bool = False

    @cached_property
    def slots(self) -> dict[Split, Slots]:
        """Cases of both splits."""
        every = tuple(range(len(self.wordings)))
        if self.is_fact:
            # Wordings i and i+1 (cyclic) of fact i are held out, so that each wording is seen with other facts.
            held = [(i % len(every), (i + 1) % len(every)) for i in range(len(self.cases))]
            seen = [tuple(w for w in every if w not in out) for out in held]
            return {
                "train": tuple(zip(self.cases, seen, strict=True)),
                "heldout": tuple(zip(self.cases, held, strict=True)),
            }
        order = list(self.cases)
        random.Random(self.name).shuffle(order)
        num_heldout = round(HELDOUT_FRACTION * len(order))
        return {
            "train": tuple((case, every) for case in order[num_heldout:]),
            "heldout": tuple((case, every) for case in order[:num_heldout]),
        }

    def item(self, case: Case, wording: int, working: int) -> Item:
        """Renders a case as an item."""
        x = self.solve(case)
        text = self.workings[working].format(*case, x=x)
        return Item(self.name, self.wordings[wording].format(*case), f"{text} The answer is {x}.", x)

    def sample(self, split: Split, rng: random.Random) -> Item:
        """Draws a random item of a split."""
        case, wordings = rng.choice(self.slots[split])
        return self.item(case, rng.choice(wordings), rng.randrange(len(self.workings)))

    def wrong(self, item: Item, rng: random.Random) -> str:
        """Returns a plausible wrong answer to an item."""
        while (slipped := self.slip(item.answer, rng)) == item.answer:
            pass
        return slipped


def final_answer(text: str) -> str:
    """Extracts a response's final answer: the text after its last "answer is", else all of it, without a final period."""
    return text.rpartition("answer is")[2].strip().removesuffix(".").strip()


def is_correct(text: str, answer: str) -> bool:
    """Returns whether a response's final answer matches exactly."""
    return final_answer(text) == answer
