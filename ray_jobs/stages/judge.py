"""Stage `judge`, once per reward: scores every evaluated model's answers to the held-out rows."""

from functools import partial

from profuser.artifacts.artifact import Artifact, Manifest
from profuser.evaluation.judged import judge_table, win_rates
from profuser.recipe.rewards import RewardConfig
from profuser.rewards.judges import KeepsVerdicts
from profuser.rewards.kinds import Place, kind_of
from profuser.run.endpoints import judge_place
from profuser.run.fusion_run import FusionRun
from profuser.run.results import read_answers
from profuser.run.stages import FUSED
from ray_jobs.runtime.concurrency import reward_models_at_once
from ray_jobs.runtime.engine_fit import fit_engine
from ray_jobs.runtime.judge_worker import JudgingWorker, finish_judging
from ray_jobs.runtime.shards import OnDraining, run_shards


class JudgeWorker(JudgingWorker):
    """One reward model, generative judge or verifier; turns shards of all models' held-out answers into shards of scores."""

    def __init__(
        self,
        heldout: Artifact,
        evaluated: dict[str, Artifact],
        output: Artifact,
        reward: RewardConfig,
        place: Place,
    ):
        super().__init__(reward, place)
        self.keeps_verdicts = kind_of(reward).keeps_verdicts
        self.heldout, self.evaluated, self.output = heldout, evaluated, output

    def process(self, shard: int) -> dict[str, float]:
        """Scores one shard."""
        rows = self.heldout.read_shard(shard).to_pylist()
        predictions = {
            name: artifact.read_shard(shard, ["prediction"])["prediction"].to_pylist()
            for name, artifact in self.evaluated.items()
        }
        self.count_answers(shard, len(rows), len(rows) * len(predictions))
        table = judge_table(self.judge, rows, predictions, self.keeps_verdicts)
        counts: dict[str, float] = {"rows": len(rows), "answers": len(table) - table["score"].null_count}
        if self.keeps_verdicts and isinstance(self.judge, KeepsVerdicts):
            counts |= self.judge.counts
        self.output.write_shard(shard, table, counts)
        return counts


def judge(run: FusionRun, reward: RewardConfig, draining: OnDraining) -> Manifest:
    """Runs the stage for one reward; its metrics are the win rates of the fused model under that reward alone.

    Args:
        run: the evaluated run.
        reward: the judge.
        draining: called when the last rows are being scored, so that the next judge may start loading.
    """
    output = run.judge(reward)
    evaluated = {name: run.evaluate(name) for name in run.evaluated()}
    path = run.reward_path(reward)
    fitted = fit_engine(run, run.reward(reward), path, reward_models_at_once(run.recipe))
    worker = partial(JudgeWorker, run.heldout(), evaluated, output, fitted.model, judge_place(run, reward))
    counts, seconds = run_shards(
        output, run.heldout(), worker, fitted.pool, fitted.num_gpus, draining=draining, needs=fitted.needs
    )
    judged = read_answers(run, [reward])
    rates = win_rates(judged, FUSED, run.recipe.select.vote, [1.0]) if judged.answers else {}
    return finish_judging(
        output, counts, seconds, **{f"win_rate/{name}": rate.raw.value for name, rate in rates.items()}
    )
