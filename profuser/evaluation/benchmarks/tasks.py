"""Loads lm-evaluation-harness tasks for a recipe's benchmarks: the harness prompts and scores, the data may be local."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.metrics import mean
from lm_eval.tasks import TaskManager

from profuser.errors import UserError, one_line
from profuser.evaluation.benchmarks.data import Pack
from profuser.recipe.benchmarks import PRESETS
from profuser.recipe.evaluating import BenchmarkConfig

FEWSHOT_SEED = 1234
"""The harness's own seed: it selects the worked examples of published results."""
WITHOUT_EXAMPLES = {"fewshot_split": None, "fewshot_config": None}
SPLITS = {"training_split": "train", "validation_split": "validation", "test_split": "test"}
"""The harness's settings of a task's splits, and their names in the six."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as the harness runs it."""

    config: BenchmarkConfig
    tasks: dict[str, Any]
    """The harness's tasks by name: for MMLU one per subject, else one."""
    metric: str
    """The headline metric."""
    filter: str
    """Answer filter of the headline metric."""


def load_benchmark(config: BenchmarkConfig, pack: Pack | None = None) -> Benchmark:
    """Makes a benchmark's tasks, with their data.

    Args:
        config: the benchmark.
        pack: local data of one of the six; without it the data come from the Hub.

    Raises:
        UserError: the Hub is unreachable, or a user's own task cannot be loaded or its metric is not a mean over items.
    """
    tasks = _own_task(config) if config.task else _preset_tasks(config, pack)
    if config.shots is not None:
        for task in tasks.values():
            task.set_config("num_fewshot", config.shots)
    for task in tasks.values():
        if task.get_config("num_fewshot") is None:
            task.set_config("num_fewshot", 0)
        task.set_fewshot_seed(FEWSHOT_SEED)
    metric, answers = (config.preset.metric, config.preset.filter) if config.preset else _headline(config, tasks)
    return Benchmark(config, tasks, metric, answers)


def _preset_tasks(config: BenchmarkConfig, pack: Pack | None) -> dict[str, Any]:
    root = Path(lm_eval.__file__).parent / "tasks" / (PRESETS[config.name].tasks or config.name)
    # The whole index has thousands of files.
    manager = TaskManager(include_defaults=False, include_path=[str(root)])
    names = list(pack.tables) if pack else manager.all_subtasks if config.name == "mmlu" else [config.name]
    members: list[dict[str, Any]] = [{"task": name} for name in names]
    if pack:
        for member in members:
            member["custom_dataset"] = _dataset(pack, member["task"])
            # The harness opens every split that a task names, even those that the measurement does not need.
            there = pack.tables[member["task"]]
            member |= {setting: None for setting, split in SPLITS.items() if split not in there}
            if PRESETS[config.name].examples not in there:
                member |= WITHOUT_EXAMPLES
    try:
        # In a group these settings override those of the task's own file; for a single task the harness would take nothing else.
        return dict(manager.load({"group": f"profuser_{config.name}", "task": members})["tasks"])
    except (OSError, ValueError) as error:
        raise UserError(f"evaluate.benchmarks.{config.name}: {' '.join(str(error).split())[:300]}") from error


def _dataset(pack: Pack, task: str) -> Callable[..., Any]:
    """Returns a function that gives the harness a task's data, by split."""

    def load(**_: Any) -> Any:
        from datasets import Dataset, DatasetDict

        return DatasetDict({split: Dataset(table) for split, table in pack.tables[task].items()})

    return load


def _own_task(config: BenchmarkConfig) -> dict[str, Any]:
    setting = f"evaluate.benchmarks.{config.name}.task"
    try:
        tasks = TaskManager(include_defaults=False).load([str(config.task)])["tasks"]
    except (KeyError, ValueError, TypeError, OSError, AttributeError, ImportError) as error:
        text = one_line(error)
        raise UserError(f"{setting}: the harness cannot load {config.task}: {text or type(error).__name__}") from error
    return dict(tasks)


def _headline(config: BenchmarkConfig, tasks: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the metric and filter of a user's own task."""
    setting = f"evaluate.benchmarks.{config.name}"
    task = next(iter(tasks.values()))
    metrics = task.aggregation()
    metric = config.metric or next(iter(metrics))
    if metric not in metrics:
        raise UserError(f"{setting}.metric: {config.task} has no metric {metric!r}; there are: {', '.join(metrics)}")
    if metrics[metric] is not mean:
        raise UserError(
            f"{setting}.metric: {metric!r} of {config.task} is not a mean over items, so models cannot be compared item by item; "
            "choose another with metric"
        )
    return metric, (task.get_config("filter_list") or [{"name": "none"}])[0]["name"]
