"""Defines the actors that hold one reward, shared by `rewards` and `judge`."""

from collections.abc import Mapping

from profuser.artifacts.artifact import Artifact, Manifest, sum_counts
from profuser.recipe.rewards import RewardConfig
from profuser.rewards.judges import CountsAnswers, RunsEngine
from profuser.rewards.kinds import Place, load_judge
from profuser.rewards.verdicts import verdict_metrics, verdict_words
from ray_jobs.runtime.progress import print_line
from ray_jobs.runtime.row_progress import RowReporter, ShardKey
from ray_jobs.runtime.shards import finish


class JudgingWorker:
    """An actor with one reward model, generative judge or verifier.

    Args:
        reward: its section of the recipe.
        place: where its model is.
    """

    def __init__(self, reward: RewardConfig, place: Place):
        self.judge = load_judge(reward, place)
        self.reporter: RowReporter | None = None

    def report_to(self, reporter: RowReporter) -> None:
        """See `ReportsRows`."""
        self.reporter = reporter
        if isinstance(self.judge, RunsEngine) and self.judge.loop:
            self.judge.loop.observe = reporter.tokens
            reporter.tokens(self.judge.loop.engine, 0)  # it has loaded

    def count_answers(self, shard: int, num_rows: int, num_answers: int) -> None:
        """Reports the judge's progress on a shard while it scores up to that many answers, if it counts them."""
        if self.reporter and num_answers and isinstance(self.judge, CountsAnswers):
            self.judge.answered = self.reporter.shard(ShardKey("process", shard), num_rows, num_answers)


def finish_judging(output: Artifact, counts: list[Mapping[str, float]], seconds: float, **metrics: float) -> Manifest:
    """Finishes an artifact of scores; prints a line on the verdicts of a generative judge."""
    sums = sum_counts(counts)
    found = verdict_metrics(sums)
    manifest = finish(output, counts, seconds, **found, **metrics)
    if words := verdict_words(sums, found):
        print_line(f"{output.stage}: {words}")
    return manifest
