"""Stage `rewards`, once per reward: scores every source's answers to every row. Cached: changing the vote reruns no model."""

import math
from functools import partial

import numpy as np
import pyarrow as pa

from profuser.artifacts.artifact import Artifact, Manifest
from profuser.artifacts.schemas import REWARDS
from profuser.corpus.thinking import without_thinking
from profuser.engines.signal_tables import candidate_answers
from profuser.recipe.rewards import RewardConfig
from profuser.run.fusion_run import FusionRun
from ray_jobs.runtime.concurrency import reward_models_at_once
from ray_jobs.runtime.engine_fit import fit_engine
from ray_jobs.runtime.judge_worker import JudgingWorker
from ray_jobs.runtime.shards import OnDraining, finish, run_shards


class RewardWorker(JudgingWorker):
    """One reward model or verifier; turns shards of answers into shards of scores, one per answer, NaN for a missing
    answer and for a row that the reward does not judge."""

    def __init__(
        self,
        corpus: Artifact,
        collected: list[Artifact],
        output: Artifact,
        reward: RewardConfig,
        path: str | None,
        num_samples: int,
        keeps: list[bool],
    ):
        super().__init__(reward, path)
        self.corpus, self.collected, self.output, self.num_samples = corpus, collected, output, num_samples
        self.reward, self.keeps = reward, keeps

    def _judged(self, answer: str, place: int) -> str:
        """Returns an answer as it is judged: without the thinking that the recipe keeps."""
        return without_thinking(answer, inside=True) if self.keeps[place // self.num_samples] else answer

    def process(self, shard: int) -> dict[str, float]:
        """Scores one shard."""
        rows = self.corpus.read_shard(shard).to_pylist()
        tables = [artifact.read_shard(shard, ["answers"]) for artifact in self.collected]
        answers = candidate_answers(tables, self.num_samples)
        scores = np.full((len(rows), len(tables) * self.num_samples), math.nan)
        places = [(row, place) for row, texts in enumerate(answers) for place, text in enumerate(texts) if text]
        if places:
            self.count_answers(shard, len(rows), len(places))
            texts = [self._judged(answers[row][place] or "", place) for row, place in places]
            scores[tuple(zip(*places, strict=True))] = self.judge.score([rows[row] for row, _ in places], texts)
        table = pa.table({"row_id": [r["row_id"] for r in rows], "scores": list(scores)}, schema=REWARDS)
        judged = int((~np.isnan(scores)).sum())
        foreign = sum(not self.reward.judges(rows[row]["category"]) for row, _ in places)
        counts: dict[str, float] = {"rows": len(rows), "answers": judged, "answers_not_judged": foreign}
        refused = len(places) - judged - foreign
        counts |= {"refused": refused} if refused else {}
        self.output.write_shard(shard, table, counts)
        return counts


def rewards(run: FusionRun, reward: RewardConfig, draining: OnDraining | None = None) -> Manifest:
    """Runs the stage for one reward; calls `draining` when its last shards are being scored."""
    output, path = run.rewards(reward), run.reward_path(reward)
    fitted = fit_engine(run, run.reward(reward), path, reward_models_at_once(run.recipe))
    worker = partial(
        RewardWorker,
        run.corpus(),
        run.artifacts("collect"),
        output,
        fitted.model,
        path,
        run.recipe.collect.samples_per_source,
        [run.template(source).thinking == "keep" for source in run.recipe.sources],
    )
    counts, seconds = run_shards(
        output, run.corpus(), worker, fitted.pool, fitted.num_gpus, draining=draining, needs=fitted.needs
    )
    return finish(output, counts, seconds)
