"""The kinds of reward, one record each.

To add a kind, add its recipe section (`recipe/verifiers.py`, `recipe/rewards.py`) and a record here.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from profuser.corpus.thinking import without_thinking
from profuser.engines.endpoint.access import JudgeAccess
from profuser.recipe.llm_judge import LlmJudgeConfig
from profuser.recipe.rewards import RewardConfig, RewardModelConfig
from profuser.recipe.verifiers import CallableConfig, ChrfConfig, RougeLConfig
from profuser.rewards.callables import call_function, load_callable, source_digest
from profuser.rewards.code_answers import CodeTests, check_sandbox, num_workers, sandbox_line
from profuser.rewards.json_answers import JsonSchema, check_schema, with_schema
from profuser.rewards.judges import CountsAnswers, GivesReasons, Judge, KeepsVerdicts, RunsEngine, Verdict
from profuser.rewards.math_answers import MathVerify, check_library
from profuser.rewards.rubrics import check_rubric, with_rubric
from profuser.rewards.verdicts import VerdictRow
from profuser.rewards.verifiers import exact_match, plain, same_last_number

WORD = re.compile("[a-z0-9]")
"""A word of ROUGE, whose tokens are runs of these."""
Place = str | JudgeAccess | None
"""Where a judge's model is: its folder, URI or Hub name; or the access to its server; None for a judge without one."""
Rule = Callable[[Mapping[str, Any], str], float | Verdict]
"""Scores an answer to a corpus row, with or without a reason; higher is better, NaN if it cannot judge the row."""


@dataclass(frozen=True)
class RewardKind:
    """Everything specific to one kind of reward."""

    load: Callable[[Any, Place], Judge]
    """Makes the judge of a configuration; the second argument is where its model is."""
    check: Callable[[Any], object] = lambda config: None
    """Raises UserError if the judge cannot be made, without loading a model."""
    resolve: Callable[[Any], RewardConfig] = lambda config: config
    """Returns a configuration with what the files that it names hold, so that no other node needs them."""
    line: Callable[[Any], str | None] = lambda config: None
    """Returns a line for `--dry-run` on what this machine has for the judge."""
    digests: Callable[[Any], dict[str, str]] = lambda config: {}
    """Returns digests of the code that determines the scores."""
    runs_answers: bool = False
    """Whether it executes the answers: then only the actors of its own stage score with it."""
    keeps_verdicts: bool = False
    """Whether it is a `KeepsVerdicts`, whose questions and replies are stored beside the scores."""


class Verifier:
    """A judge that scores each answer separately, by a rule, in one or more threads."""

    def __init__(self, rule: Rule, num_workers: int = 1):
        self.rule, self.num_workers = rule, num_workers
        self.answered: Callable[[int], None] = lambda number: None
        self.reasons: Counter[str] = Counter()

    def score(self, rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> Float[np.ndarray, "N"]:
        """See `Judge.score`. If the recipe's function fails, raises UserError with the row's id."""
        if self.num_workers == 1:
            verdicts = list(map(self._verdict, rows, answers))
        else:
            with ThreadPoolExecutor(self.num_workers) as pool:
                verdicts = list(pool.map(self._verdict, rows, answers))
        self.reasons = Counter(verdict.reason for verdict in verdicts if verdict.reason)
        return np.array([verdict.reward for verdict in verdicts], dtype=np.float64)

    def _verdict(self, row: Mapping[str, Any], answer: str) -> Verdict:
        found = self.rule(row, answer)
        self.answered(1)
        return found if isinstance(found, Verdict) else Verdict(found)


def _reward_model(config: RewardModelConfig, place: Place) -> Judge:
    # Imported here: verifiers need neither torch nor vLLM.
    from profuser.rewards.reward_model import load_reward_model

    return load_reward_model(config, place if isinstance(place, str) else config.model)


def _llm_judge(config: LlmJudgeConfig, place: Place) -> Judge:
    from profuser.rewards.judge_askers import EndpointAsker, ModelAsker
    from profuser.rewards.llm_judge import LlmJudge

    if isinstance(place, JudgeAccess):
        return LlmJudge(config, EndpointAsker(config, place))
    return LlmJudge(config, ModelAsker(config, place or config.model))


def _callable(config: CallableConfig, _: Place) -> Judge:
    function = load_callable(config)
    return Verifier(lambda row, answer: call_function(function, config, row, answer))


def _by_rule(rule: Callable[[Any, str, str], float]) -> RewardKind:
    """Returns the kind of verifier whose rule takes its configuration, the answer and the ground truth without any thinking."""
    return RewardKind(
        lambda config, _: Verifier(lambda row, answer: rule(config, answer, without_thinking(row["response"])))
    )


def _chrf(config: ChrfConfig, _: Place) -> Judge:
    from sacrebleu.metrics.chrf import CHRF

    metric = CHRF(char_order=config.char_order, word_order=config.word_order, beta=config.beta)
    return Verifier(lambda row, answer: metric.sentence_score(answer, [without_thinking(row["response"])]).score / 100)


def _rouge_l(config: RougeLConfig, _: Place) -> Judge:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=config.stem)

    def rule(row: Mapping[str, Any], answer: str) -> float:
        truth = without_thinking(row["response"])
        return scorer.score(truth, answer)["rougeL"].fmeasure if WORD.search(truth.lower()) else math.nan

    return Verifier(rule)


class ForSomeRows:
    """A judge of some categories only; the rewards of other rows are NaN."""

    def __init__(self, judge: Judge, config: RewardConfig):
        self.judge, self.config = judge, config
        self.answered: Callable[[int], None] = lambda number: None
        self.reasons: Counter[str] = Counter()
        self.loop = judge.loop if isinstance(judge, RunsEngine) else None
        self.verdicts: Sequence[VerdictRow] = ()
        self.counts: Mapping[str, float] = {}

    def score(self, rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> Float[np.ndarray, "N"]:
        """See `Judge.score`."""
        own = [place for place, row in enumerate(rows) if self.config.judges(row["category"])]
        out = np.full(len(rows), math.nan)
        self.reasons, self.verdicts, self.counts = Counter(), (), {}
        if isinstance(self.judge, CountsAnswers):
            self.judge.answered = self.answered
        if own:
            out[own] = self.judge.score([rows[place] for place in own], [answers[place] for place in own])
            self.reasons = self.judge.reasons if isinstance(self.judge, GivesReasons) else self.reasons
            if isinstance(self.judge, KeepsVerdicts):
                self.verdicts, self.counts = [each.moved(own) for each in self.judge.verdicts], self.judge.counts
        return out


KINDS: dict[str, RewardKind] = {
    "reward_model": RewardKind(_reward_model),
    "llm_judge": RewardKind(_llm_judge, check_rubric, with_rubric, keeps_verdicts=True),
    "last_number": _by_rule(lambda config, answer, truth: same_last_number(answer, truth, config.tolerance)),
    "exact_match": _by_rule(lambda config, answer, truth: plain(answer, config) == plain(truth, config)),
    "answer_match": _by_rule(lambda config, answer, truth: exact_match(answer, truth, config.pattern)),
    "chrf": RewardKind(_chrf),
    "rouge_l": RewardKind(_rouge_l),
    "math_verify": RewardKind(lambda config, _: Verifier(MathVerify(config)), check_library),
    "code_tests": RewardKind(
        lambda config, _: Verifier(CodeTests(config), num_workers(config)),
        check_sandbox,
        line=sandbox_line,
        runs_answers=True,
    ),
    "json_schema": RewardKind(lambda config, _: Verifier(JsonSchema(config)), check_schema, with_schema),
    "callable": RewardKind(_callable, load_callable, digests=lambda config: {"code": source_digest(config)}),
}
"""Reward kinds by the recipe's `kind`."""


def kind_of(config: RewardConfig) -> RewardKind:
    """Returns the kind of a reward."""
    return KINDS[config.kind]


def load_judge(config: RewardConfig, place: Place = None) -> Judge:
    """Makes a reward.

    Args:
        config: its section of the recipe.
        place: where its model is.

    Raises:
        EngineError: the model cannot be loaded, or its server gives something else than when the run began.
        UserError: the verifier's function cannot be imported, or the model's server cannot be used.
    """
    judge = kind_of(config).load(config, place)
    return ForSomeRows(judge, config) if config.categories or config.except_categories else judge
