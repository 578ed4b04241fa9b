"""Selection facts equal a slow oracle on random rows, and are read back from artifacts."""

import itertools
import random
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from profuser.artifacts.artifact import Artifact
from profuser.artifacts.schemas import REWARDS
from profuser.recipe.rewards import VoteConfig
from profuser.recipe.verifiers import LastNumberConfig
from profuser.rewards.voting import RewardScale
from profuser.selection.rows import SelectionRows, coverage_by_category, read_categories, read_rows, wins_by_category
from profuser.selection.summary import WinRate, facts_by_category, selection_facts
from profuser.storage.folder import Folder

NAMES = ("a", "b", "c")
COUNTS = ("wins", "draws", "num_rows")
NAN = float("nan")


def judges(*weights: float):
    return [LastNumberConfig(kind="last_number", name=f"r{n}", weight=weight) for n, weight in enumerate(weights)]


def drawn(num_rows: int = 200, num_judges: int = 2) -> SelectionRows:
    """Returns rows with many equal or missing answers and coarse scores that often tie; equal answers have equal scores."""
    draw = random.Random(5)
    answers = [[draw.choice(["x", "yy", "zzz", "wwww", None]) for _ in NAMES] for _ in range(num_rows)]
    scores = np.full((num_rows, len(NAMES), num_judges), NAN)
    for row, texts in enumerate(answers):
        given = {text: [draw.randint(0, 3) for _ in range(num_judges)] for text in ("x", "yy", "zzz", "wwww")}
        for source, text in enumerate(texts):
            if text is not None:
                scores[row, source] = given[text]
    surprise = np.array([[draw.choice([0.5, 1.0, 1.5, NAN]) for _ in NAMES] for _ in range(num_rows)])
    teachers = np.array([[draw.randint(-1, 2) for _ in range(2)] for _ in range(num_rows)])
    return SelectionRows(teachers, surprise, answers, scores, np.full_like(scores[:, 0], NAN))


def slow_inference(rows: SelectionRows, i: int, j: int, weights, margin) -> WinRate:
    scales = [RewardScale.of(rows.scores[:, :, judge]) for judge in range(len(weights))]
    wins = draws = total = 0
    for texts, scores in zip(rows.answers, rows.scores, strict=True):
        if texts[i] is None or texts[j] is None:
            continue
        total += 1
        leads = [float(scores[i, k] - scores[j, k]) / scale.std for k, scale in enumerate(scales)]
        votes = sum(w * ((lead > margin) - (lead < -margin)) for w, lead in zip(weights, leads, strict=True))
        tie_break = sum(w * lead for w, lead in zip(weights, leads, strict=True))
        better = votes if abs(votes) > 1e-9 else tie_break
        if texts[i] == texts[j] or abs(better) < 1e-9:
            draws += 1
        elif better > 0:
            wins += 1
    return WinRate(wins, draws, total)


@pytest.mark.parametrize(
    ("weights", "margin"), [((1.0, 1.0), 0.0), ((1.0, 1.0), 1.2), ((0.5, 2.0), 0.0), ((0.0, 1.0), 0.0)]
)
def test_win_rates_equal_a_slow_oracle(weights, margin):
    rows = drawn()
    found = selection_facts(rows, NAMES, NAMES, judges(*weights), VoteConfig(margin=margin))
    assert [(duel.first, duel.second) for duel in found.duels] == list(itertools.combinations(NAMES, 2))
    for duel in found.duels:
        i, j = NAMES.index(duel.first), NAMES.index(duel.second)
        assert duel.inference == slow_inference(rows, i, j, weights, margin)
        pairs = [(x[i], x[j]) for x in rows.surprise.tolist() if x[i] == x[i] and x[j] == x[j]]
        assert duel.training == WinRate(sum(x < y for x, y in pairs), sum(x == y for x, y in pairs), len(pairs))
        assert 0 < duel.inference.share < 1


def test_rows_of_equal_answers_do_not_count_for_the_judges():
    answers = [["x", "x", "x"], ["x", "y", None], ["x", "y", None], ["x", None, None]]
    scores = np.array(
        [
            [[1, 1]] * 3,
            [[1, 0], [0, 1], [NAN, NAN]],
            [[1, 2], [0, 2], [NAN, NAN]],
            [[1, 0], [NAN, NAN], [NAN, NAN]],
        ],
        dtype=float,
    )
    rows = SelectionRows(
        np.array([[0, 0], [0, 1], [1, 1], [2, -1]]),
        np.full((4, 3), NAN),
        answers,
        scores,
        np.full_like(scores[:, 0], NAN),
    )
    found = selection_facts(rows, NAMES, NAMES, judges(1, 1), VoteConfig())
    assert (found.modes.num_rows, found.modes.share) == (3, pytest.approx(2 / 3))
    assert [(judge.num_rows, judge.abstained) for judge in found.judges] == [(2, 0), (2, 1)]
    (pair,) = found.agreements
    assert (pair.first, pair.second, pair.num_rows, pair.share) == ("r0", "r1", 1, 0.0)
    assert all(duel.training.num_rows == 0 and np.isnan(duel.training.share) for duel in found.duels)


def test_a_source_that_may_not_teach_gets_no_votes_but_is_compared():
    rows = drawn()
    found = selection_facts(rows, NAMES, ("b", "c"), judges(1, 1), VoteConfig())
    everyone = selection_facts(rows, NAMES, NAMES, judges(1, 1), VoteConfig())
    assert found.duels == everyone.duels
    assert found.judges[0].num_rows == sum(None not in texts[1:] and texts[1] != texts[2] for texts in rows.answers)


def test_length_bias_is_found_and_its_deciles_hold_every_answer():
    draw = random.Random(3)
    answers = [["x" * draw.randint(1, 500) for _ in NAMES] for _ in range(100)]
    num_bytes = np.array([[len(text) for text in texts] for texts in answers], dtype=float)
    noise = np.array([[draw.random() for _ in NAMES] for _ in answers])
    scores = np.stack([num_bytes * 3 - 7, noise], axis=2)
    rows = SelectionRows(
        np.zeros((100, 2), dtype=int), np.ones((100, 3)), answers, scores, np.full_like(scores[:, 0], NAN)
    )
    found = selection_facts(rows, NAMES, NAMES, judges(1, 1), VoteConfig())
    biased, fair = found.judges
    assert biased.length_correlation == pytest.approx(1)
    assert biased.longer_wins == 1.0
    assert abs(fair.length_correlation) < 0.2
    assert abs(fair.longer_wins - 0.5) < 0.1
    assert sum(part.num_answers for part in found.lengths) == 300
    assert len(found.lengths) == 10
    assert [part.rewards["r0"] for part in found.lengths] == sorted(part.rewards["r0"] for part in found.lengths)


def test_an_umlaut_is_two_bytes():
    rows = SelectionRows(
        np.zeros((1, 2), dtype=int), np.ones((1, 3)), [["\u00e4", None, None]], np.ones((1, 3, 1)), np.ones((1, 1))
    )
    assert selection_facts(rows, NAMES, NAMES, judges(1), VoteConfig()).lengths[0].mean_bytes == 2


def artifact(folder, stage, table, per_shard=2):
    made = Artifact(Folder.at(folder / stage), stage, table.schema)
    for index, start in enumerate(range(0, len(table), per_shard)):
        made.write_shard(index, table.slice(start, per_shard), {"rows": per_shard})
    return made


def test_facts_of_the_categories_add_up_and_keep_the_scale_of_all_rows():
    draw = random.Random(1)
    rows = replace(drawn(), categories=[draw.choice(["maths", "code", None]) for _ in range(200)])
    given = (NAMES, NAMES, judges(1, 1), VoteConfig(margin=1.2))
    found = facts_by_category(rows, *given)
    assert list(found) == ["code", "maths"]
    rest = rows.part(np.array([category is None for category in rows.categories]))
    scales = [RewardScale.of(rows.scores[:, :, judge]) for judge in range(2)]
    parts, whole = (*found.values(), selection_facts(rest, *given, scales)), selection_facts(rows, *given)
    for place, duel in enumerate(whole.duels):
        for mode in ("training", "inference"):
            rates = [getattr(part.duels[place], mode) for part in parts]
            assert getattr(duel, mode) == WinRate(*(sum(getattr(rate, name) for rate in rates) for name in COUNTS))
    assert whole.agreements[0].num_rows == sum(part.agreements[0].num_rows for part in parts)


def test_categories_are_read_from_the_corpus(tmp_path):
    corpus = pa.table({"row_id": ["p", "q"], "category": ["maths", None]})
    assert read_categories(artifact(tmp_path, "corpus", corpus, 1)) == {"p": "maths", "q": None}


def test_rows_are_read_back_as_they_were_written(tmp_path):
    ids = ["p", "q", "r"]
    texts = pa.schema(
        [("row_id", pa.string()), ("answers", pa.list_(pa.string())), ("training_ids", pa.list_(pa.int8()))]
    )
    collected = [
        artifact(tmp_path, name, pa.table([ids, [[text] for text in answers], [[1]] * 3], schema=texts))
        for name, answers in (("a", ["x", None, "z"]), ("b", ["x", "y", "w"]))
    ]
    scores = [[[1.0, 2.0], [NAN, 0.0], [3.0, 4.0]], [[0.5, 0.5], [NAN, 1.0], [0.0, 1.0]]]
    rewards = [artifact(tmp_path, f"r{n}", pa.table([ids, s], schema=REWARDS)) for n, s in enumerate(scores)]
    examples = [
        {"row_id": "p", "mode": "training", "sample": 0, "teacher": "b", "advantages": [0.9, 0.4]},
        {"row_id": "r", "mode": "training", "sample": 0, "teacher": "a", "advantages": [0.1, None]},
        {"row_id": "q", "mode": "inference", "sample": 0, "teacher": "b", "advantages": [0.0, 2.0]},
    ]
    found = read_rows(artifact(tmp_path, "select", pa.Table.from_pylist(examples)), collected, rewards, ["a", "b"])
    assert found.teachers.tolist() == [[1, -1], [-1, 1], [0, -1]]
    np.testing.assert_equal(found.surprise, [[0.9, 0.4], [NAN, NAN], [0.1, NAN]])
    assert [list(texts) for texts in found.answers] == [["x", "x"], [None, "y"], ["z", "w"]]
    np.testing.assert_equal(found.scores, np.stack([np.array(s) for s in scores], axis=2))
    np.testing.assert_equal(found.taught, [[NAN, NAN], [0.0, 1.0], [NAN, NAN]])


def test_teachers_are_counted_by_category(tmp_path):
    taught = [
        ("maths", "training", "a"),
        ("maths", "training", "a"),
        ("facts", "inference", "b"),
        (None, "training", "a"),
    ]
    examples = [dict(zip(("category", "mode", "teacher"), one, strict=True)) for one in taught]
    found = wins_by_category(artifact(tmp_path, "select", pa.Table.from_pylist(examples)))
    assert found == {"facts": {("inference", "b"): 1}, "maths": {("training", "a"): 2}}


def test_tokens_are_counted_by_category_and_rule_without_the_pairs(tmp_path):
    examples = [
        {"category": "maths", "mode": "training", "rules": [1, 1, 4]},
        {"category": "maths", "mode": "inference", "rules": [0, 1]},
        {"category": "maths", "mode": "preferred", "rules": [0, 0, 0]},
        {"category": "maths", "mode": "on_policy", "rules": [3]},
        {"category": None, "mode": "training", "rules": [2]},
        {"category": "code", "mode": "training", "rules": [2, 3]},
    ]
    found = coverage_by_category(artifact(tmp_path, "select", pa.Table.from_pylist(examples)))
    none = dict.fromkeys(("none", "project", "condition", "chain", "end"), 0)
    assert found == {
        "code": none | {"condition": 1, "chain": 1},
        "maths": none | {"none": 1, "project": 3, "chain": 1, "end": 1},
    }


def test_an_example_that_all_sources_teach_has_no_chosen_teacher(tmp_path):
    texts = pa.schema([("row_id", pa.string()), ("answers", pa.list_(pa.string()))])
    collected = [artifact(tmp_path, name, pa.table([["p"], [["x"]]], schema=texts), 1) for name in ("a", "b")]
    reward = artifact(tmp_path, "r", pa.table([["p"], [[1.0, 0.0]]], schema=REWARDS), 1)
    examples = [
        {"row_id": "p", "mode": "training", "sample": 0, "teacher": "average", "advantages": [0.2, 0.1]},
        {"row_id": "p", "mode": "inference", "sample": 0, "teacher": "a", "advantages": [1.0, 0.0]},
    ]
    selected = artifact(tmp_path, "select", pa.Table.from_pylist(examples), 1)
    found = read_rows(selected, collected, [reward], ["a", "b"])
    assert found.teachers.tolist() == [[-1, 0]]
    np.testing.assert_equal(found.surprise, [[0.2, 0.1]])


def test_the_answer_with_the_highest_mean_reward_represents_its_source(tmp_path):
    texts = pa.schema([("row_id", pa.string()), ("answers", pa.list_(pa.string()))])
    collected = [
        artifact(tmp_path, name, pa.table([["p"], [answers]], schema=texts), 1)
        for name, answers in (("a", ["bad", "good"]), ("b", [None, "only"]))
    ]
    reward = artifact(tmp_path, "r", pa.table([["p"], [[0.0, 2.0, NAN, 1.0]]], schema=REWARDS), 1)
    example = {"row_id": "p", "mode": "inference", "sample": 1, "teacher": "a", "advantages": [0.0, 1.0, 0.0, 0.0]}
    found = read_rows(artifact(tmp_path, "select", pa.Table.from_pylist([example]), 1), collected, [reward], ["a", "b"])
    assert found.answers == [["good", "only"]]
    assert found.scores.tolist() == [[[2.0], [1.0]]]
    assert found.taught.tolist() == [[2.0]]
