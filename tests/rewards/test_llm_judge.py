"""Generative judges: verdicts from hand-made probabilities, both orders, what is kept and counted, and what is no verdict."""

import itertools
import math

import numpy as np
import pyarrow as pa
import pytest

from profuser.artifacts.schemas import JUDGE, REWARDS, check_schema, with_verdicts
from profuser.engines.base import Usage
from profuser.errors import UserError
from profuser.evaluation.judged import judge_table
from profuser.recipe.llm_judge import LlmJudgeConfig
from profuser.rewards.agreement import longer_wins
from profuser.rewards.kinds import ForSomeRows
from profuser.rewards.llm_judge import LlmJudge
from profuser.rewards.rubrics import RUBRICS, conversation, rubric_of
from profuser.rewards.scoring import AnswerScorer
from profuser.rewards.verdicts import Reply, Token, pair_outcome, verdict_masses, verdict_metrics, verdict_words
from tests.engines.test_collecting import corpus

OWN = {"prompt": "{{ prompt }}|{{ reference }}|{{ response_a }}|{{ response_b }}"}


def config(**settings):
    return LlmJudgeConfig(**{"kind": "llm_judge", "name": "referee", "model": "m"} | settings)


def reply(*tokens, **settings):
    """Returns a reply of tokens, each given as its text and the probabilities of candidates."""
    made = [Token(text, {name: math.log(p) for name, p in candidates.items()}) for text, candidates in tokens]
    return Reply("".join(text for text, _ in tokens), made, **settings)


class Scripted:
    """A judge's model whose replies are a function of what it is asked."""

    loop = None

    def __init__(self, replies):
        self.replies, self.asked = replies, []

    def ask(self, conversations, answered):
        self.asked += conversations
        for _ in conversations:
            answered()
        return [self.replies(messages) for messages in conversations]


def rows(*texts):
    found = corpus(*(f"truth of {text}" for text in texts)).to_pylist()
    return [row | {"messages": [{"role": "user", "content": text}]} for row, text in zip(found, texts, strict=True)]


@pytest.mark.parametrize(
    ("tokens", "masses"),
    [
        ([("4", {"4": 0.6, "3": 0.2, "5": 0.1, "the": 0.1})], [0, 0, 0.2, 0.6, 0.1]),
        # Candidates that spell one grade, and a layout around it.
        ([(" 4", {" 4": 0.5, "4": 0.2, "4.": 0.1, " 2": 0.1})], [0, 0.1, 0, 0.8, 0]),
        # The verdict follows other words.
        ([("**", {"**": 0.9, "1": 0.1}), ("5", {"5": 0.75, "4": 0.25}), ("**", {"**": 1.0})], [0, 0, 0, 0.25, 0.75]),
        # None is written: those among the candidates of the first word.
        ([("\n", {"\n": 1.0}), ("The", {"The": 0.9, "2": 0.06})], [0, 0.06, 0, 0, 0]),
        ([("The", {"The": 0.9, "10": 0.1})], [0, 0, 0, 0, 0]),
        # Neither the first digit of a number nor the first letter of a word is a verdict.
        ([("1", {"1": 0.9, "4": 0.1}), ("0", {"0": 1.0}), ("/", {"/": 1.0}), ("5", {"5": 1.0})], [0, 0, 0, 0, 1]),
        ([("1", {"1": 0.9, "4": 0.1}), ("0", {"0": 1.0})], [0, 0, 0, 0, 0]),
        # A server without probabilities.
        ([("Grade:", {}), ("3", {})], [0, 0, 1, 0, 0]),
        ([], [0, 0, 0, 0, 0]),
    ],
)
def test_the_probabilities_of_the_grades_are_read_where_the_verdict_is(tokens, masses):
    np.testing.assert_allclose(verdict_masses(reply(*tokens), "12345"), masses)


def test_the_score_of_an_answer_is_its_expected_grade_and_what_was_no_grade_is_counted():
    found = {
        "good": reply(("5", {"5": 0.5, "4": 0.25, "x": 0.25}), usage=Usage(100, 1)),
        "bad": reply(("1", {"1": 0.4, "2": 0.4}), usage=Usage(90, 1)),
        "odd": reply(("Well", {"Well": 1.0}), usage=Usage(80, 16)),
        "long": Reply("", refusal="the prompt is 9 tokens", reason="too_long"),
    }
    asker = Scripted(
        lambda messages: next(each for word, each in found.items() if f"\n{word}\n" in messages[-1].content)
    )
    judge, counted = LlmJudge(config(), asker), []
    judge.answered = counted.append
    (row,) = rows("Say.")
    scores = judge.score([row] * 5, ["good", "bad", "odd", "long", "good"])
    np.testing.assert_allclose(scores, [(5 * 0.5 + 4 * 0.25) / 0.75, 1.5, math.nan, math.nan, 3.5 / 0.75])
    assert len(asker.asked) == 4
    assert sum(counted) == 5
    assert judge.counts == {
        **{
            "verdicts": 2,
            "without_verdict": 1,
            "too_long": 1,
            "verdicts/measured": 2,
            "verdicts/mass": pytest.approx(1.55),
        },
        **{"input_tokens": 270, "output_tokens": 18},
    }
    assert verdict_metrics(judge.counts) == {"mass_on_verdicts": pytest.approx(0.775)}
    assert verdict_words(judge.counts, verdict_metrics(judge.counts)) == (
        "2 verdicts; 77.5 % of the probability is on possible verdicts"
    )


def test_ten_grades_are_those_of_one_digit():
    asker = Scripted(lambda messages: reply(("9", {"9": 0.5, "0": 0.5})))
    (score,) = LlmJudge(config(grades=range(10)), asker).score(rows("Say."), ["x"])
    assert score == 4.5
    assert "from 0 (worst) to 9 (best)" in asker.asked[0][-1].content


QUALITY = {"best": 0.9, "fair": 0.6, "poor": 0.2}


def places(messages):
    """Returns the answers in a rubric of `OWN`."""
    return messages[-1].content.split("|")[2:]


def preferring_first(bias):
    """Returns a judge's model that prefers the better answer, and whatever is shown first."""

    def judged(messages):
        first, second = places(messages)
        p = np.clip(0.5 + (QUALITY[first] - QUALITY[second]) / 2 + bias, 0.01, 0.99)
        return reply(("A" if p > 0.5 else "B", {"A": 0.8 * p, "B": 0.8 * (1 - p), "C": 0.2}))

    return judged


@pytest.mark.parametrize("bias", [0.0, 0.1, -0.12])
def test_pairs_are_compared_in_both_orders_and_a_preference_for_a_place_cancels(bias):
    asker = Scripted(preferring_first(bias))
    judge = LlmJudge(config(mode="pairwise", rubric=OWN, tie_margin=0.01), asker)
    (row,) = rows("Say.")
    scores = judge.score([row] * 3, list(QUALITY))
    assert sorted(map(tuple, map(places, asker.asked))) == sorted(itertools.permutations(QUALITY, 2))
    # The oracle: mean over the others of a half plus half the difference of quality.
    for score, (name, own) in zip(scores, QUALITY.items(), strict=True):
        others = [value for other, value in QUALITY.items() if other != name]
        assert score == pytest.approx(np.mean([0.5 + (own - value) / 2 for value in others]))
    metrics = verdict_metrics(judge.counts)
    assert metrics["first_preferred"] == pytest.approx(0.5 + bias)
    assert metrics["mass_on_verdicts"] == pytest.approx(0.8)
    assert {name: judge.counts[name] for name in ("verdicts", "pairs_compared", "ties", "orders_disagree")} == {
        "verdicts": 6,
        "pairs_compared": 3,
        "ties": 0,
        "orders_disagree": 0,
    }


@pytest.mark.parametrize(
    ("shown_first", "shown_second", "expected"),
    [
        (0.9, 0.7, (0.8, False, False)),
        (0.52, 0.53, (0.5, True, False)),  # Within the margin.
        (0.95, 0.1, (0.5, True, True)),  # Whatever is shown first.
        (0.99, 0.3, (0.5, True, True)),
        (0.95, 0.47, (0.71, False, False)),  # The second order has no preference beyond the margin.
        (math.nan, 0.9, (math.nan, False, False)),
    ],
)
def test_a_pair_is_a_tie_within_the_margin_or_if_the_orders_disagree(shown_first, shown_second, expected):
    found = pair_outcome(shown_first, shown_second, 0.05)
    np.testing.assert_allclose(found, expected)
    mirrored = pair_outcome(1 - shown_second, 1 - shown_first, 0.05)
    np.testing.assert_allclose(mirrored, (1 - expected[0], *expected[1:]))


def test_a_pair_counts_only_if_both_orders_have_a_verdict():
    def judged(messages):
        return (
            Reply("I cannot.", [Token("I", {})])
            if places(messages) == ["poor", "best"]
            else preferring_first(0)(messages)
        )

    judge = LlmJudge(config(mode="pairwise", rubric=OWN, tie_margin=0.0), Scripted(judged))
    one, other, single = rows("Say.", "Do.", "Be.")
    scores = judge.score([one] * 3 + [other] * 2 + [single], ["best", "fair", "poor", "best", "poor", "best"])
    # Without the pair of best and poor: each was compared with fair alone. Of the second row nothing is left; one answer ties.
    np.testing.assert_allclose(scores, [0.65, 0.5 * (0.35 + 0.7), 0.3, math.nan, math.nan, 0.5])
    counts = judge.counts
    assert (counts["verdicts"], counts["without_verdict"], counts["pairs_compared"]) == (6, 2, 2)
    assert verdict_metrics(counts)["first_preferred"] == pytest.approx(0.5)


def table_of(*answers):
    return pa.table({"answers": pa.array([[text] for text in answers], pa.list_(pa.string()))})


def test_every_question_and_reply_is_kept_beside_the_scores():
    judge = LlmJudge(config(mode="pairwise", rubric=OWN, tie_margin=0.0), Scripted(preferring_first(0)))
    scorer = AnswerScorer(config(mode="pairwise"), judge, 1, [False] * 3)
    table, counts = scorer.score(
        corpus("one", "two"), [table_of("best", "fair"), table_of(None, "poor"), table_of("poor", "fair")]
    )
    check_schema(table, with_verdicts(REWARDS), "here")
    np.testing.assert_allclose(
        np.array(table["scores"].to_pylist(), dtype=float), [[0.85, math.nan, 0.15], [0.7, 0.3, 0.7]]
    )
    first, second = table["verdicts"].to_pylist()
    # Equal answers are judged once, as the first of them.
    assert [(each["first"], each["second"]) for each in first] == [(0, 2), (2, 0)]
    assert [(each["first"], each["second"]) for each in second] == [(0, 1), (1, 0)]
    kept = first[0]
    assert kept["messages"][0]["content"].endswith("|one|best|poor")
    assert (kept["reply"], kept["refused"]) == ("A", None)
    assert kept["score"] == pytest.approx(0.85)
    np.testing.assert_allclose(kept["masses"], [0.8 * 0.85, 0.8 * 0.15])
    assert (counts["rows"], counts["answers"], counts["verdicts"]) == (2, 5, 4)


def test_a_judge_of_some_categories_keeps_its_verdicts_where_they_belong():
    settings = config(categories=["math"])
    judge = ForSomeRows(LlmJudge(settings, Scripted(lambda messages: reply(("2", {"2": 1.0})))), settings)
    table = corpus("one", "two", "three")
    categories = pa.array(["prose", "math", None])
    table = table.set_column(table.column_names.index("category"), table.schema.field("category"), categories)
    found, counts = AnswerScorer(settings, judge, 1, [False]).score(table, [table_of("a", "b", "c")])
    assert [len(each) for each in found["verdicts"].to_pylist()] == [0, 1, 0]
    assert (counts["answers"], counts["answers_not_judged"], counts["verdicts"]) == (1, 2, 1)


def test_held_out_answers_are_judged_with_their_verdicts_kept():
    judge = LlmJudge(config(mode="pairwise", rubric=OWN, tie_margin=0.0), Scripted(preferring_first(0)))
    predictions = {"target": ["fair", "poor"], "fused": ["best", "poor"], "blank": [" ", None]}
    table = judge_table(judge, rows("Say.", "Do."), predictions, keeps_verdicts=True)
    check_schema(table, with_verdicts(JUDGE), "here")
    assert [row["score"] for row in table.to_pylist()] == pytest.approx([0.35, 0.5, 0.65, 0.5, None, None])
    kept = [(row["model"], each["first"], each["second"]) for row in table.to_pylist() for each in row["verdicts"]]
    assert kept == [("target", 0, 1), ("fused", 1, 0)]


def test_length_control_sees_a_judge_that_prefers_long_answers():
    scores = LlmJudge(config(), Scripted(lambda m: reply(("5", {str(min(5, len(m[-1].content) // 400)): 1.0}))))
    (row,) = rows("Say.")
    found = scores.score([row] * 2, ["x" * 40, "x" * 1200])
    share, pairs = longer_wins(np.array([[40.0, 1200.0]]), found[None])
    assert (share, pairs) == (1.0, 1)


@pytest.mark.parametrize("name", RUBRICS)
@pytest.mark.parametrize("mode", ["pointwise", "pairwise"])
def test_a_shipped_rubric_shows_prompt_reference_and_answers(name, mode):
    (row,) = rows("What is {{ 7 }}?")
    row |= {
        "response": "<think>hm</think>It is 7.",
        "messages": [{"role": "system", "content": "Be brief."}, *row["messages"]],
    }
    answers = ["{% raw %}", "</s> B"][: 1 + (mode == "pairwise")]
    (message,) = conversation(config(rubric=name, mode=mode), row, answers)
    for text in ("system: Be brief.\n\nuser: What is {{ 7 }}?", "\nIt is 7.\n", *answers):
        assert text in message.content
    assert "think" not in message.content
    assert rubric_of(config(rubric=name, mode=mode)) == RUBRICS[name][mode]


def test_a_rubric_cannot_reach_the_system():
    attack = config(rubric={"prompt": "{{ response.__class__.__mro__ }}"})
    with pytest.raises(UserError, match=r"rewards.referee.rubric: row .* access to attribute '__class__'"):
        conversation(attack, rows("x")[0], ["y"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"rubric": {"prompt": "{{ respons }}"}}, "a rubric has no variable 'respons'; it has prompt"),
        ({"rubric": {"prompt": "{{ response "}}, "line 1: unexpected end of template"),
        ({"rubric": {"prompt": "Grade it."}}, "rubric.prompt does not show 'response'"),
        ({"mode": "pairwise", "rubric": {"prompt": "{{ response_a }}"}}, "does not show 'response_b'"),
        ({"mode": "pairwise", "rubric": OWN | {"system": "{{ response }}"}}, "mode: pairwise has no 'response'"),
        ({"mode": "pairwise", "grades": [1, 2]}, "a pair is compared by the letters A and B"),
        ({"grades": [2, 1]}, "grades must rise"),
        ({"grades": [1, 10]}, "less than or equal to 9"),
        ({"model": ""}, "give either a model or an endpoint"),
        ({"template": {"kind": "own", "thinking": "keep"}}, "use strip or off"),
        ({"model": "", "endpoint": {"base_url": "http://x/v1", "model": "m", "tokenizer": "t"}}, "leave it out"),
    ],
)
def test_a_judge_that_cannot_be_asked_is_refused_by_its_recipe(settings, words):
    with pytest.raises(ValueError, match=words):
        config(**settings)


def test_a_stored_recipe_is_valid_although_it_has_every_setting():
    endpoint = {"base_url": "http://x/v1", "model": "m"}
    for settings in ({"mode": "pairwise"}, {"model": "", "endpoint": endpoint}, {"template": {"kind": "own"}}):
        made = config(**settings)
        assert LlmJudgeConfig(**made.model_dump(mode="json")) == made
