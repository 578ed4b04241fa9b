"""Reads a run's results from its artifacts: benchmark items and judged answers."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from profuser.artifacts.schemas import JUDGE
from profuser.evaluation.heldout import ALL, common_rows
from profuser.evaluation.judged import JudgedAnswers, JudgedWinRate, unless_blank, win_rates
from profuser.recipe.rewards import RewardConfig
from profuser.run.fusion_run import FusionRun
from profuser.run.stages import FUSED

MAJORITY = "majority vote"
"""Name of the judge that combines all rewards."""


def read_benchmarks(run: FusionRun) -> dict[str, dict[str, pa.Table]]:
    """Returns the items of all finished benchmarks of a run: `{benchmark: {model: table}}`, both in recipe order.

    Models are those of `run.benchmarked()`: `target`, sources' names, `fused`. A table has a row per item, sorted by item, with the
    columns `item_id` (str), `score` (float64, 0 to 1 in the benchmark's headline metric: 0 or 1 for accuracies and exact match, a
    probability for mc2) and `task` (str; for MMLU, the subject). A benchmark has the same items under all models of a run.
    Unfinished pairs are omitted, and so is a benchmark that no model has finished.
    """
    out: dict[str, dict[str, pa.Table]] = {}
    for benchmark in run.recipe.evaluate.benchmarks:
        for model in run.benchmarked():
            artifact = run.benchmark(model, benchmark)
            if artifact.manifest() is not None:
                table = pa.concat_tables(artifact.tables(["item_id", "score", "task"]))
                out.setdefault(benchmark.name, {})[model] = table.sort_by("item_id")
    return out


def read_answers(run: FusionRun, rewards: Sequence[RewardConfig]) -> JudgedAnswers:
    """Returns answers and scores for the rows that every model accepted, from the shards of `evaluate` and `judge`."""
    models = run.evaluated()
    tables = {name: pa.concat_tables(run.evaluate(name).tables()) for name in models}
    kept = common_rows(tables)[ALL]
    texts = {
        name: dict(zip(t["row_id"].to_pylist(), t["prediction"].to_pylist(), strict=True)) for name, t in tables.items()
    }
    row_ids = [row_id for row_id in texts[models[0]] if row_id in kept]
    place = {(row_id, name): (i, j) for i, row_id in enumerate(row_ids) for j, name in enumerate(models)}
    scores = np.full((len(row_ids), len(models), len(rewards)), np.nan)
    for index, reward in enumerate(rewards):
        for table in run.judge(reward).tables(JUDGE.names):
            for row in table.to_pylist():
                at = place.get((row["row_id"], row["model"]))
                if at is not None and row["score"] is not None:
                    scores[(*at, index)] = row["score"]
    answers = [[unless_blank(texts[name][row_id]) for name in models] for row_id in row_ids]
    return JudgedAnswers(tuple(models), tuple(reward.name for reward in rewards), answers, scores, row_ids)


def judged_win_rates(run: FusionRun) -> dict[str, dict[str, JudgedWinRate]]:
    """Returns the fused model's win rates, `{judge: {other model: rate}}`; the judges are `MAJORITY`, then each reward alone.

    Empty if the run is not judged, if judging has not finished, or if no row is left.
    """
    judged = _judged(run)
    if judged is None:
        return {}
    weights = {MAJORITY: [reward.weight for reward in run.recipe.rewards]}
    weights |= {name: [float(name == other) for other in judged.rewards] for name in judged.rewards}
    return {name: win_rates(judged, FUSED, run.recipe.select.vote, weight) for name, weight in weights.items()}


def judged_by_category(run: FusionRun) -> dict[str, dict[str, JudgedWinRate]]:
    """Returns the fused model's win rates under the majority vote, `{category: {other model: rate}}`; empty as above."""
    judged = _judged(run)
    if judged is None:
        return {}
    place = {row_id: index for index, row_id in enumerate(judged.row_ids)}
    weights = [reward.weight for reward in run.recipe.rewards]
    groups = common_rows({name: pa.concat_tables(run.evaluate(name).tables()) for name in run.evaluated()})
    return {
        category: win_rates(judged, FUSED, run.recipe.select.vote, weights, sorted(place[row_id] for row_id in ids))
        for category, ids in groups.items()
        if category != ALL
    }


def _judged(run: FusionRun) -> JudgedAnswers | None:
    """Returns the judged answers; None if there are none."""
    artifacts = run.artifacts("judge")
    if not artifacts or any(artifact.manifest() is None for artifact in artifacts):
        return None
    judged = read_answers(run, run.recipe.rewards)
    return judged if judged.answers else None
