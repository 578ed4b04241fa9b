"""The skills' corpus: answers are correct, held-out items are unseen, and wrong answers are wrong."""

import random
import re

import pytest

from profuser.lab.items import final_answer, is_correct
from profuser.lab.skills import SKILLS, SPECIALTIES, draw_rows
from profuser.lab.world import CAPITALS, EMBLEMS

FACTORS = {"kilometres": 1000, "kilograms": 1000, "litres": 1000, "metres": 100, "dollars": 100, "centuries": 100}
FACTORS |= {"centimetres": 10, "decades": 10}


def solved(item):
    """Solves an item independently of its skill."""
    numbers = [int(text) for text in re.findall(r"\d+", item.instruction)]
    letters = re.findall(r"\b[a-l]\b", item.instruction)
    if item.skill == "addition":
        return str(sum(numbers))
    if item.skill == "conversion":
        return str(numbers[0] * FACTORS[re.search(r"\d+ (\w+)", item.instruction)[1]])
    if item.skill in ("sorting", "reversal"):
        letters = letters[-4:]
        return " ".join(sorted(letters) if item.skill == "sorting" else letters[::-1])
    facts = CAPITALS if item.skill == "capitals" else EMBLEMS
    return next(value for name, value in facts.items() if re.search(rf"\b{name}\b", item.instruction))


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_every_answer_is_correct_and_ends_the_worked_response(split):
    for item in draw_rows(split, 1200, seed=1):
        assert item.answer == solved(item), item
        assert item.response.endswith(f"The answer is {item.answer}.")
        assert is_correct(item.response, item.answer)
        assert is_correct(item.terse, item.answer)


@pytest.mark.parametrize("name", SKILLS)
def test_train_and_heldout_share_no_question(name):
    skill = SKILLS[name]

    def questions(split):
        return {(case, w) for case, wordings in skill.slots[split] for w in wordings}

    train, heldout = questions("train"), questions("heldout")
    assert train
    assert heldout
    assert not train & heldout
    assert len(train | heldout) == len(skill.cases) * len(skill.wordings)
    if not skill.is_fact:
        assert not {case for case, _ in train} & {case for case, _ in heldout}


def test_every_fact_is_seen_in_some_wording():
    for name in ("capitals", "emblems"):
        assert all(wordings for _, wordings in SKILLS[name].slots["train"])


@pytest.mark.parametrize("name", SKILLS)
def test_a_wrong_answer_is_wrong_and_of_the_same_kind(name):
    rng = random.Random(3)
    skill = SKILLS[name]
    for _ in range(300):
        item = skill.sample("train", rng)
        wrong = skill.wrong(item, rng)
        assert not is_correct(f"{wrong}.", item.answer)
        assert bool(re.fullmatch(r"\d+", wrong)) == item.answer.isdigit()


def test_rows_are_reproducible_balanced_and_distinct():
    rows = draw_rows("train", 600, seed=5)
    assert rows == draw_rows("train", 600, seed=5)
    assert rows != draw_rows("train", 600, seed=6)
    assert len({row.instruction for row in rows}) == 600
    assert all(sum(row.skill == name for row in rows) == 100 for name in SKILLS)


def test_every_skill_has_one_specialist():
    assert sorted(skill for own in SPECIALTIES.values() for skill in own) == sorted(SKILLS)


@pytest.mark.parametrize(
    ("text", "answer"),
    [("The answer is 42.", "42"), (" 42. ", "42"), ("Not 3, the answer is a b", "a b"), ("", ""), ("answer is", "")],
)
def test_the_final_answer_of_a_text(text, answer):
    assert final_answer(text) == answer
