"""What a question of the laboratory is: an item is a case (operands, or the subject of a fact) of a skill in a wording.

Held-out items are disjoint from those to train on: for an algorithm its operands are unseen; for a fact the pair of fact and
wording is unseen (an unseen fact could only be guessed).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

Case = tuple[str, ...]
Slots = tuple[tuple[Case, tuple[int, ...]], ...]
"""Cases, each with the numbers of the wordings it may take."""
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
        """The answer as a specialist gives it: "X."."""
        return f"{self.answer}."


@dataclass(frozen=True)
class Skill:
    """One kind of question. `{0}`, `{1}` ... in the texts stand for the case, `{x}` for the answer."""

    name: str
    wordings: tuple[str, ...]
    workings: tuple[str, ...]
    cases: tuple[Case, ...]
    solve: Callable[[Case], str]
    slip: Callable[[str, random.Random], str]
    """A wrong answer that looks like the given right one."""
    is_fact: bool = False

    @cached_property
    def slots(self) -> dict[Split, Slots]:
        """The cases of both sides of the split."""
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
        """Renders a case."""
        x = self.solve(case)
        text = self.workings[working].format(*case, x=x)
        return Item(self.name, self.wordings[wording].format(*case), f"{text} The answer is {x}.", x)

    def sample(self, split: Split, rng: random.Random) -> Item:
        """A random item of a side of the split."""
        case, wordings = rng.choice(self.slots[split])
        return self.item(case, rng.choice(wordings), rng.randrange(len(self.workings)))

    def wrong(self, item: Item, rng: random.Random) -> str:
        """An answer that looks like the item's and is not."""
        while (slipped := self.slip(item.answer, rng)) == item.answer:
            pass
        return slipped


def final_answer(text: str) -> str:
    """What a response answers: the text after its last "answer is", else all of it, without a final period."""
    return text.rpartition("answer is")[2].strip().removesuffix(".").strip()


def is_correct(text: str, answer: str) -> bool:
    """Exact match of a response's final answer."""
    return final_answer(text) == answer
