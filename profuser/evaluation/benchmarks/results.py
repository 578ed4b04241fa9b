"""Computes a benchmark's scores from its table of items."""

import math

import pyarrow as pa


def benchmark_score(table: pa.Table) -> float:
    """Returns a benchmark's score: the mean over its items, 0 to 1; NaN without items.

    This holds for MMLU too: the harness weights each subject by its number of items (the leaderboard's own page weighted all
    subjects equally).
    """
    scores = table["score"].to_pylist()
    return sum(scores) / len(scores) if scores else math.nan


def standard_error(table: pa.Table) -> float:
    """Returns the standard error of the score; NaN for a single item.

    The harness pools it over tasks t of n_t items each: `sqrt(sum_t sum_i (score_ti - mean_t)^2 / (N - T) / N)`, N items and T
    tasks in all. For a benchmark of one task it is the sample standard deviation over the root of N. With one item per task
    (N = T) nothing is known about the spread inside tasks: then all items count as one task, which is no smaller on average.
    """
    by_task: dict[str, list[float]] = {}
    tasks = table["task"].to_pylist()
    pooled = len(set(tasks)) == len(tasks)
    for task, score in zip(tasks, table["score"].to_pylist(), strict=True):
        by_task.setdefault("" if pooled else task, []).append(score)
    squares = 0.0
    for scores in by_task.values():
        mean = sum(scores) / len(scores)
        squares += sum((score - mean) ** 2 for score in scores)
    freedom = table.num_rows - len(by_task)
    return math.sqrt(squares / freedom / table.num_rows) if freedom else math.nan


def metric_means(table: pa.Table) -> dict[str, float]:
    """Returns the means of all metrics over the items."""
    values: dict[str, list[float]] = {}
    for metrics in table["metrics"].to_pylist():
        for name, value in metrics:
            values.setdefault(name, []).append(value)
    return {name: sum(each) / len(each) for name, each in values.items()}
