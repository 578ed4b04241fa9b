"""Stage `rewards`, once per reward: scores every source's answers to every row. Cached: changing the vote reruns no model."""

from functools import partial

from profuser.artifacts.artifact import Artifact, Manifest
from profuser.recipe.rewards import RewardConfig
from profuser.rewards.kinds import Place
from profuser.rewards.scoring import AnswerScorer
from profuser.run.endpoints import judge_place
from profuser.run.fusion_run import FusionRun
from ray_jobs.runtime.concurrency import reward_models_at_once
from ray_jobs.runtime.engine_fit import fit_engine
from ray_jobs.runtime.judge_worker import JudgingWorker, finish_judging
from ray_jobs.runtime.shards import OnDraining, run_shards


class RewardWorker(JudgingWorker):
    """One reward model, generative judge or verifier; turns shards of answers into shards of scores."""

    def __init__(
        self,
        corpus: Artifact,
        collected: list[Artifact],
        output: Artifact,
        reward: RewardConfig,
        place: Place,
        num_samples: int,
        keeps: list[bool],
    ):
        super().__init__(reward, place)
        self.corpus, self.collected, self.output = corpus, collected, output
        self.scorer = AnswerScorer(reward, self.judge, num_samples, keeps)

    def process(self, shard: int) -> dict[str, float]:
        """Scores one shard."""
        rows = self.corpus.read_shard(shard)
        tables = [artifact.read_shard(shard, ["answers"]) for artifact in self.collected]
        table, counts = self.scorer.score(rows, tables, partial(self.count_answers, shard, rows.num_rows))
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
        judge_place(run, reward),
        run.recipe.collect.samples_per_source,
        [run.template(source).thinking == "keep" for source in run.recipe.sources],
    )
    counts, seconds = run_shards(
        output, run.corpus(), worker, fitted.pool, fitted.num_gpus, draining=draining, needs=fitted.needs
    )
    return finish_judging(output, counts, seconds)
