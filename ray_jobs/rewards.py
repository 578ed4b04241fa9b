"""Stage `rewards`, once per reward: scores every source's answer to every row. Cached, so changing the vote reruns no model."""

import math

import numpy as np
import pyarrow as pa

from profuser.artifacts import Artifact, Manifest
from profuser.recipe.rewards import RewardConfig, RewardModelConfig
from profuser.rewards.judges import load_judge
from profuser.run import FusionRun
from profuser.schemas import REWARDS
from ray_jobs.cluster import gpus_for
from ray_jobs.shards import finish, run_shards


class RewardWorker:
    """One reward model or verifier; turns shards of answers into shards of scores, one per source (NaN where it has none)."""

    def __init__(
        self, corpus: Artifact, collected: list[Artifact], output: Artifact, reward: RewardConfig, path: str | None
    ):
        self.corpus, self.collected, self.output = corpus, collected, output
        self.judge = load_judge(reward, path)

    def process(self, shard: int) -> dict[str, float]:
        """Scores one shard."""
        rows = self.corpus.read_shard(shard).to_pylist()
        column = "inference_text"
        answers = [artifact.read_shard(shard, [column])[column].to_pylist() for artifact in self.collected]
        scores = np.full((len(rows), len(answers)), math.nan)
        places = [(row, source) for source, texts in enumerate(answers) for row, text in enumerate(texts) if text]
        if places:
            texts = [answers[source][row] for row, source in places]
            scores[tuple(zip(*places, strict=True))] = self.judge.score([rows[row] for row, _ in places], texts)
        table = pa.table({"row_id": [r["row_id"] for r in rows], "scores": list(scores)}, schema=REWARDS)
        counts: dict[str, float] = {"rows": len(rows), "answers": len(places)}
        self.output.write_shard(shard, table, counts)
        return counts


def score_answers(run: FusionRun, reward: RewardConfig) -> Manifest:
    """Runs the stage for one reward."""
    output = run.rewards(reward)
    is_model = isinstance(reward, RewardModelConfig)
    num_gpus = gpus_for(reward, reward.pool) if is_model else reward.pool.num_gpus or 0.0
    arguments = {
        "corpus": run.corpus(),
        "collected": run.artifacts("collect"),
        "output": output,
        "reward": reward,
        "path": run.model(reward).path if is_model else None,
    }
    counts, seconds = run_shards(output, run.corpus(), RewardWorker, arguments, reward.pool, num_gpus)
    return finish(output, counts, seconds)
