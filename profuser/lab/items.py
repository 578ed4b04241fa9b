"""What a question of the laboratory is: an item is a case (operands, or the subject of a fact) of a skill in a wording.

Held-out items are disjoint from those to train on: for an algorithm its operands are unseen; for a fact the pair of fact and
wording is unseen (an unseen fact could only be guessed).
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

Case = tuple[str, ...]
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

    def slots(self, split: Split) -> tuple[tuple[Case, tuple[int, ...]], ...]:
        """The cases of one side of the split, each with the numbers of the wordings it may take there."""
        every = tuple(range(len(self.wordings)))
        if self.is_fact:
            # Wordings i and i+1 (cyclic) of fact i are held out, so that each wording is seen with other facts.
            held = [{index % len(every), (index + 1) % len(every)} for index in range(len(self.cases))]
            if split == "heldout":
                return tuple((case, tuple(sorted(out))) for case, out in zip(self.cases, held, strict=True))
            return tuple(
                (case, tuple(w for w in every if w not in out)) for case, out in zip(self.cases, held, strict=True)
            )
        order = list(self.cases)
        random.Random(self.name).shuffle(order)
        num_heldout = round(HELDOUT_FRACTION * len(order))
        chosen = order[:num_heldout] if split == "heldout" else order[num_heldout:]
        return tuple((case, every) for case in chosen)

    def item(self, case: Case, wording: int, working: int, answer: str | None = None) -> Item:
        """Renders a case; `answer` other than None replaces the right one (to make a wrong example)."""
        x = self.solve(case) if answer is None else answer
        text = self.workings[working].format(*case, x=x)
        return Item(self.name, self.wordings[wording].format(*case), f"{text} The answer is {x}.", x)

    def sample(self, split: Split, rng: random.Random) -> Item:
        """A random item of a side of the split."""
        case, wordings = rng.choice(self._slots(split))
        return self.item(case, rng.choice(wordings), rng.randrange(len(self.workings)))

    def wrong(self, item: Item, rng: random.Random) -> str:
        """An answer that looks like the item's and is not."""
        while (slipped := self.slip(item.answer, rng)) == item.answer:
            pass
        return slipped

    def _slots(self, split: Split) -> tuple[tuple[Case, tuple[int, ...]], ...]:
        key = (self.name, split)
        if key not in _SLOTS:
            _SLOTS[key] = self.slots(split)
        return _SLOTS[key]


_SLOTS: dict[tuple[str, str], tuple[tuple[Case, tuple[int, ...]], ...]] = {}


def final_answer(text: str) -> str:
    """What a response answers: the text after its last "answer is", else all of it, without a final period."""
    return text.rpartition("answer is")[2].strip().removesuffix(".").strip()


def is_correct(text: str, answer: str) -> bool:
    """Exact match of a response's final answer."""
    return final_answer(text) == answer
