"""Defines the actors that hold one reward, shared by `rewards` and `judge`."""

from profuser.recipe.rewards import RewardConfig
from profuser.rewards.judges import CountsAnswers
from profuser.rewards.kinds import load_judge
from ray_jobs.runtime.row_progress import RowReporter, ShardKey


class JudgingWorker:
    """An actor with one reward model or verifier.

    Args:
        reward: its section of the recipe.
        path: folder, URI or Hub name of a reward model.
    """

    def __init__(self, reward: RewardConfig, path: str | None):
        self.judge = load_judge(reward, path)
        self.reporter: RowReporter | None = None

    def report_to(self, reporter: RowReporter) -> None:
        """See `ReportsRows`."""
        self.reporter = reporter

    def count_answers(self, shard: int, num_rows: int, num_answers: int) -> None:
        """Reports the judge's progress on a shard while it scores up to that many answers, if it counts them."""
        if self.reporter and num_answers and isinstance(self.judge, CountsAnswers):
            self.judge.answered = self.reporter.shard(ShardKey("process", shard), num_rows, num_answers)
