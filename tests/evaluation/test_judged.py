"""Judged win rates: neither being named first nor writing longer answers gives an advantage."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import expit

from profuser.artifacts.schemas import CORPUS, EVALUATE
from profuser.evaluation.judged import RIDGE, JudgedAnswers, judge_table, length_controlled, win_rates
from profuser.recipe.loading import parse_recipe
from profuser.recipe.rewards import VoteConfig
from profuser.run.fusion_run import FusionRun
from profuser.run.results import MAJORITY, judged_win_rates
from ray_jobs.stages.judge import JudgeWorker
from tests import tiny

TEXTS = st.sampled_from([None, "a", "bb", "ccc"])
SCORES = st.sampled_from([-1.0, 0.0, 1.0])
VOTES = st.builds(VoteConfig, margin=st.sampled_from([0.0, 0.5]), no_majority=st.sampled_from(["tie_break", "skip"]))
WEIGHTS = st.lists(st.sampled_from([0.0, 1.0, 2.0]), min_size=3, max_size=3)
PLAIN, ONE = VoteConfig(), [1.0]


def judged(answers, scores):
    """Returns answers of two models under R rewards, with `scores` [N][2][R]; an answer that is None has no scores."""
    array = np.array(scores, dtype=float)
    for row, texts in enumerate(answers):
        for place, text in enumerate(texts):
            if text is None:
                array[row, place] = np.nan
    names = tuple(f"reward-{index}" for index in range(array.shape[2]))
    return JudgedAnswers(("mine", "other"), names, [list(row) for row in answers], array)


def rate(found, mine="mine", other="other", config=PLAIN, weights=ONE):
    return win_rates(found, mine, config, weights)[other]


@given(
    st.lists(st.tuples(TEXTS, TEXTS, *[SCORES] * 6), min_size=1, max_size=20),
    VOTES,
    WEIGHTS,
)
@settings(max_examples=40)
def test_swapping_sides_gives_exactly_one_minus_the_rate(rows, config, weights):
    found = judged([row[:2] for row in rows], [np.reshape(row[2:], (2, 3)) for row in rows])
    mine, other = (rate(found, *sides, config, weights) for sides in (("mine", "other"), ("other", "mine")))
    assert mine.raw.value == pytest.approx(1 - other.raw.value, abs=1e-12)
    assert mine.num_ties == other.num_ties
    assert mine.length_controlled.value == pytest.approx(1 - other.length_controlled.value, abs=1e-9)
    assert mine.raw.low == pytest.approx(1 - other.raw.high)


def test_equal_answers_are_ties_and_a_blank_one_loses():
    # A reward gives equal answers scores that differ in the last bit, as batches do.
    found = judged([("a", "a"), ("a", None), (None, "b"), (None, None)], [[[1.0 + 1e-9], [1.0]]] * 4)
    assert rate(found).raw.value == 0.5
    assert rate(found).num_ties == 2


def test_the_majority_wins_and_a_reward_without_weight_does_not_vote():
    scores = [[[1.0, 1.0, -9.0], [0.0, 0.0, 9.0]]] * 8
    found = judged([("a", "bb")] * 8, scores)
    assert rate(found, weights=[1.0, 1.0, 1.0]).raw.value == 1.0
    assert rate(found, weights=[1.0, 1.0, 3.0]).raw.value == 0.0
    assert rate(found, weights=[1.0, 0.0, 0.0]).raw.value == 1.0
    assert rate(found, weights=[1.0, 1.0, 1.0]).mean_characters == (1.0, 2.0)


def test_a_preference_for_length_is_removed():
    draw = np.random.default_rng(0)
    mine, other = draw.integers(10, 60, 600), draw.integers(5, 40, 600)
    answers = [("x" * a, "y" * b) for a, b in zip(mine, other, strict=True)]
    # The reward depends on length alone, with some noise.
    noisy = [[[a + draw.logistic() * 8], [b + draw.logistic() * 8]] for a, b in zip(mine, other, strict=True)]
    found = rate(judged(answers, noisy))
    assert found.raw.low > 0.6
    assert found.length_controlled.low < 0.5 < found.length_controlled.high
    assert found.length_controlled.value < found.raw.value - 0.1


def test_the_fit_maximises_the_likelihood():
    draw = np.random.default_rng(1)
    longer_by = draw.normal(3, 10, 400)
    won = (draw.random(400) < expit(0.8 + 1.5 * np.tanh(longer_by / 10))).astype(float)
    won[::17] = 0.5
    length = np.tanh(longer_by / longer_by.std())

    def loss(found):
        score = found[0] + found[1] * length
        return (np.logaddexp(0, score) - won * score).sum() + RIDGE / 2 * (found**2).sum()

    wanted = expit(minimize(loss, np.zeros(2), tol=1e-10).x[0])
    assert length_controlled(won, longer_by).value == pytest.approx(wanted, abs=1e-6)


def test_length_controlled_intervals_cover_the_truth_as_often_as_stated():
    draw, held = np.random.default_rng(2), 0
    for _ in range(100):
        longer_by = draw.normal(5, 10, 150)
        won = (draw.random(150) < expit(0.5 + 1.0 * np.tanh(longer_by / longer_by.std()))).astype(float)
        found = length_controlled(won, longer_by)
        held += found.low <= expit(0.5) <= found.high
    assert 88 <= held <= 100


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_both_rates_agree_at_equal_length_even_at_0_and_1(share):
    won = (np.arange(80) < 80 * share).astype(float)
    found = length_controlled(won, np.zeros(80))
    assert found.value == pytest.approx(share, abs=1e-3)
    assert 0 <= found.low <= found.high <= 1


class Counting:
    """A judge that scores the length of an answer and records its calls."""

    def __init__(self):
        self.seen = []

    def score(self, rows, answers):
        self.seen += [(row["row_id"], text) for row, text in zip(rows, answers, strict=True)]
        return np.array([float(len(text)) for text in answers])


def test_a_shard_is_scored_row_by_row_and_a_repeated_answer_once():
    judge = Counting()
    predictions = {"target": ["a", "bb", None], "fused": ["a", "cc", " "]}
    table = judge_table(judge, [{"row_id": name} for name in "xyz"], predictions)
    assert judge.seen == [("x", "a"), ("y", "bb"), ("y", "cc")]
    assert table.to_pylist() == [
        {"row_id": row, "model": model, "score": score}
        for model in predictions
        for row, score in zip("xyz", (1.0, 2.0, None), strict=True)
    ]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with stored held-out answers of two models, judged by two verifiers."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "data.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    model = tiny.llama(folder / "model")
    recipe = {
        "name": "tiny",
        "storage": str(folder),
        "corpus": {"path": str(folder / "data.jsonl")},
        "sources": [{"name": "a", "model": model}],
        "target": {"model": model},
        "rewards": [{"kind": "exact_match", "name": "exact"}, {"kind": "last_number", "name": "number", "weight": 0}],
    }
    run = FusionRun(parse_recipe(recipe, "the test"))
    answers = {"target": ["1", "2", "x 3", None, "5"], "fused": ["1", "x 2", "3", "4", None]}
    rows = [
        {"row_id": str(n), "messages": [], "response": str(n), "source_file": "", "source_line": n} for n in range(1, 6)
    ]
    run.heldout().write_shard(0, pa.Table.from_pylist(rows, schema=CORPUS), {"rows": 5})
    for name, texts in answers.items():
        records = [
            {"row_id": row["row_id"], "prediction": text, "response_bytes": 1, "nats": 1.0, "correct": False}
            for row, text in zip(rows, texts, strict=True)
        ]
        if name == "target":
            records[4] |= {"refused": "too long", "prediction": None}
        run.evaluate(name).write_shard(0, pa.Table.from_pylist(records, schema=EVALUATE), {"rows": 5})
    return run


def test_a_run_that_is_not_judged_yet_has_no_rates(run):
    assert judged_win_rates(run) == {}


def test_a_runs_rates_are_computed_from_its_answers(run):
    evaluated = {name: run.evaluate(name) for name in run.evaluated()}
    for reward in run.recipe.rewards:
        output = run.judge(reward)
        counts = JudgeWorker(run.heldout(), evaluated, output, reward, None).process(0)
        assert counts == {"rows": 5, "answers": 7}
        output.finish([counts], 1.0)
    found = judged_win_rates(run)
    assert list(found) == [MAJORITY, "exact", "number"]
    # The target rejected row 5; row 1 is a tie, 2 is lost, 3 and 4 are won.
    assert found[MAJORITY]["target"] == found["exact"]["target"]
    assert (found[MAJORITY]["target"].raw.value, found[MAJORITY]["target"].num_ties) == (2.5 / 4, 1)
    assert found["number"]["target"].raw.value == 2.5 / 4  # by the number, all but the blank answer tie


def test_switching_judging_off_disables_the_stage_and_changes_no_answer(run):
    recipe = run.recipe
    off = FusionRun(recipe.model_copy(update={"evaluate": recipe.evaluate.model_copy(update={"judged": False})}))
    assert off.artifacts("judge") == []
    assert off.evaluate("fused").fingerprint == run.evaluate("fused").fingerprint
    assert off.report().fingerprint != run.report().fingerprint
