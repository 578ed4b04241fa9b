"""Stage `rewards`, once per reward: scores every source's answer to every row. Cached, so changing the vote reruns no model."""

import math

import numpy as np
import pyarrow as pa

from profuser.artifacts import Artifact, Manifest
from profuser.corpus import Message
from profuser.recipe.models import PoolConfig, RewardConfig, RewardModelConfig
from profuser.rewards.verifiers import exact_match
from profuser.run import FusionRun
from profuser.schemas import REWARDS
from ray_jobs.cluster import total_gpus
from ray_jobs.shards import finish, run_shards


class RewardWorker:
    """One reward model or verifier; turns shards of answers into shards of scores, one per source (NaN where it has none)."""

    def __init__(self, corpus: Artifact, collected: list[Artifact], output: Artifact, reward: RewardConfig, path: str):
        self.corpus, self.collected, self.output, self.reward = corpus, collected, output, reward
        if isinstance(reward, RewardModelConfig):
            from profuser.rewards.reward_model import RewardModel

            self.model = RewardModel(path, reward)

    def process(self, shard: int) -> dict[str, float]:
        """Scores one shard."""
        rows = self.corpus.read_shard(shard).to_pylist()
        answers = [artifact.read_shard(shard)["inference_text"].to_pylist() for artifact in self.collected]
        scores = np.full((len(rows), len(answers)), math.nan)
        places = [(row, source) for source, texts in enumerate(answers) for row, text in enumerate(texts) if text]
        if places:
            texts = [answers[source][row] for row, source in places]
            scores[tuple(zip(*places, strict=True))] = self._score([rows[row] for row, _ in places], texts)
        table = pa.table({"row_id": [r["row_id"] for r in rows], "scores": list(scores)}, schema=REWARDS)
        counts: dict[str, float] = {"rows": len(rows), "answers": len(places)}
        self.output.write_shard(shard, table, counts)
        return counts

    def _score(self, rows: list[dict], answers: list[str]) -> np.ndarray:
        if isinstance(self.reward, RewardModelConfig):
            prompts = [[Message(m["role"], m["content"]) for m in row["messages"]] for row in rows]
            return self.model.score(prompts, answers)
        pattern = self.reward.pattern
        pairs = zip(rows, answers, strict=True)
        return np.array([float(exact_match(answer, row["response"], pattern)) for row, answer in pairs])


def score_answers(run: FusionRun, reward: RewardConfig) -> Manifest:
    """Runs the stage for one reward."""
    output = run.rewards(reward)
    is_model = isinstance(reward, RewardModelConfig)
    pool = reward.pool if is_model else PoolConfig()
    num_gpus = (pool.num_gpus if pool.num_gpus is not None else float(total_gpus() > 0)) if is_model else 0.0
    arguments = {
        "corpus": run.corpus(),
        "collected": run.artifacts("collect"),
        "output": output,
        "reward": reward,
        "path": run.model(reward).path if is_model else "",
    }
    counts, seconds = run_shards(output, run.corpus(), RewardWorker, arguments, pool, num_gpus)
    return finish(output, counts, seconds)
