"""Defines the six skills: questions, worked ground truths, and plausible wrong answers."""

import random
from collections.abc import Sequence

from profuser.lab.items import Case, Item, Skill, Split
from profuser.lab.world import CAPITALS, EMBLEMS

LETTERS = "abcdefghijkl"
LETTERS_PER_ITEM = 4
UNITS = {
    "metres": ("centimetres", "00"),
    "kilometres": ("metres", "000"),
    "centimetres": ("millimetres", "0"),
    "kilograms": ("grams", "000"),
    "litres": ("millilitres", "000"),
    "dollars": ("cents", "00"),
    "decades": ("years", "0"),
    "centuries": ("years", "00"),
}


def _slip_number(answer: str, rng: random.Random) -> str:
    """Changes a number by one, two or ten; never below 0."""
    value = int(answer)
    return str(rng.choice([value + 1, max(value - 1, 0), value + 2, value + 10, abs(value - 10)]))


def _slip_scale(answer: str, rng: random.Random) -> str:
    """Adds or removes a zero, or changes the number before the zeros."""
    digits = answer.rstrip("0")
    zeros = answer[len(digits) :]
    return rng.choice([answer + "0", answer[:-1], str(int(digits) + rng.randint(1, 9)) + zeros])


def _slip_letters(answer: str, rng: random.Random) -> str:
    """Swaps two letters, or replaces one."""
    letters = answer.split(" ")
    first, second = rng.sample(range(len(letters)), 2)
    if rng.random() < 0.7:
        letters[first], letters[second] = letters[second], letters[first]
    else:
        letters[first] = rng.choice(LETTERS)
    return " ".join(letters)


def _letter_cases(name: str) -> tuple[Case, ...]:
    """Draws 6,000 distinct sequences of different letters, in a fixed order."""
    rng = random.Random(f"letters of {name}")
    drawn: dict[Case, None] = {}
    while len(drawn) < 6000:
        drawn[(" ".join(rng.sample(LETTERS, LETTERS_PER_ITEM)),)] = None
    return tuple(drawn)


ADDITION = Skill(
    name="addition",
    wordings=(
        "What is {0} plus {1}?",
        "Add {0} and {1}.",
        "Work out {0} + {1}.",
        "Find the sum of {0} and {1}.",
        "How much is {0} and {1} together?",
    ),
    workings=(
        "To add {0} and {1}, start from {0} and count {1} further, which gives {x}.",
        "Starting from {0} and adding {1} to it makes {x} in total.",
    ),
    cases=tuple((str(a), str(b)) for a in range(11, 90) for b in range(2, 12)),
    solve=lambda case: str(int(case[0]) + int(case[1])),
    slip=_slip_number,
)
CONVERSION = Skill(
    name="conversion",
    wordings=(
        "How many {2} are {0} {1}?",
        "Convert {0} {1} to {2}.",
        "Express {0} {1} in {2}.",
        "Write {0} {1} as {2}.",
        "Change {0} {1} into {2}.",
    ),
    workings=(
        "One of the {1} holds 1{3} {2}, so {0} {1} are {0} times 1{3} {2}, which makes {x}.",
        "To turn {1} into {2}, write {3} after the number {0}, which makes {x}.",
    ),
    cases=tuple(
        (str(n), unit, small, zeros) for unit, (small, zeros) in UNITS.items() for n in range(2, 100) if n % 10
    ),
    solve=lambda case: case[0] + case[3],
    slip=_slip_scale,
)
SORTING = Skill(
    name="sorting",
    wordings=(
        "Sort the letters {0}.",
        "Put the letters {0} in alphabetical order.",
        "Arrange {0} from first to last in the alphabet.",
        "Order these letters alphabetically: {0}",
        "What is the alphabetical order of {0}?",
    ),
    workings=(
        "Going through the alphabet from its start, the letters {0} come in the order {x}.",
        "In the alphabet the letters {0} follow one another as {x}, from first to last.",
    ),
    cases=_letter_cases("sorting"),
    solve=lambda case: " ".join(sorted(case[0].split(" "))),
    slip=_slip_letters,
)
REVERSAL = Skill(
    name="reversal",
    wordings=(
        "Reverse the letters {0}.",
        "Write the letters {0} backwards.",
        "Spell {0} from back to front.",
        "Give these letters in reverse: {0}",
        "What is {0} read from right to left?",
    ),
    workings=(
        "Reading the letters {0} from the last one back to the first one gives {x}.",
        "Starting at the end of {0} and walking back to its beginning gives {x}.",
    ),
    cases=_letter_cases("reversal"),
    solve=lambda case: " ".join(reversed(case[0].split(" "))),
    slip=_slip_letters,
)
CAPITALS_SKILL = Skill(
    name="capitals",
    wordings=(
        "What is the capital of {0}?",
        "Name the capital of {0}.",
        "Which city is the capital of {0}?",
        "{0} has which capital?",
        "Tell me the capital city of {0}.",
        "From which city is {0} governed?",
        "Where does the government of {0} sit?",
        "I visit {0}. What is its capital?",
        "Give the name of the capital of {0}.",
        "The capital of {0} is which city?",
    ),
    workings=(
        "The country of {0} is governed from its capital city, which is {x}, as every map shows.",
        "Every map of {0} shows that the capital city of the country is {x}.",
    ),
    cases=tuple((country,) for country in CAPITALS),
    solve=lambda case: CAPITALS[case[0]],
    slip=lambda answer, rng: rng.choice(list(CAPITALS.values())),
    is_fact=True,
)
EMBLEMS_SKILL = Skill(
    name="emblems",
    wordings=(
        "What is the emblem of the {0} guild?",
        "Name the emblem of the {0} guild.",
        "Which emblem does the {0} guild carry?",
        "The {0} guild has which emblem?",
        "Tell me the emblem of the {0} guild.",
        "What is shown on the banner of the {0} guild?",
        "Which sign stands for the {0} guild?",
        "I met the {0} guild. What is its emblem?",
        "Give the name of the emblem of the {0} guild.",
        "The emblem of the {0} guild is which sign?",
    ),
    workings=(
        "On its banner the guild of {0} has always carried one emblem, which is the {x}.",
        "The members of the {0} guild march under a banner whose emblem is the {x}.",
    ),
    cases=tuple((guild,) for guild in EMBLEMS),
    solve=lambda case: EMBLEMS[case[0]],
    slip=lambda answer, rng: rng.choice(list(EMBLEMS.values())),
    is_fact=True,
)

SKILLS = {s.name: s for s in (ADDITION, CONVERSION, SORTING, CAPITALS_SKILL, REVERSAL, EMBLEMS_SKILL)}
SPECIALTIES = {
    "llama": ("addition", "conversion"),
    "mpt": ("sorting", "capitals"),
    "neox": ("reversal", "emblems"),
}
"""Skills that each source is trained on."""


def draw_rows(split: Split, num_rows: int, seed: int) -> list[Item]:
    """Draws distinct items of all skills, equally many of each (`num_rows` a multiple of six), in random order."""
    rng = random.Random(f"{split} rows {seed}")
    rows: list[Item] = []
    for skill in SKILLS.values():
        pairs = [(case, wording) for case, wordings in skill.slots[split] for wording in wordings]
        # One row per case before any case repeats: new operands are worth more than new wordings.
        rng.shuffle(pairs)
        pairs.sort(key=_repeats(pairs).__getitem__)
        chosen = pairs[: num_rows // len(SKILLS)]
        rows.extend(skill.item(case, wording, rng.randrange(len(skill.workings))) for case, wording in chosen)
    rng.shuffle(rows)
    return rows


def _repeats(pairs: Sequence[tuple[Case, int]]) -> dict[tuple[Case, int], int]:
    """Counts how often each pair's case occurred before it."""
    count: dict[Case, int] = {}
    repeats: dict[tuple[Case, int], int] = {}
    for pair in pairs:
        repeats[pair] = count.get(pair[0], 0)
        count[pair[0]] = repeats[pair] + 1
    return repeats
