"""Loads lm-evaluation-harness tasks for a recipe's benchmarks: the harness prompts and scores, the data may be local."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import lm_eval
from lm_eval.api.metrics import mean
from lm_eval.tasks import TaskManager

from profuser.errors import UserError, one_line
from profuser.evaluation.benchmarks.data import Pack
from profuser.recipe.benchmarks import LEADERBOARD, PRESETS
from profuser.recipe.evaluating import BenchmarkConfig

FEWSHOT_SEED = 1234
"""The harness's own seed: it selects the worked examples of published results."""
LOAD_ERRORS = (KeyError, ValueError, TypeError, OSError, AttributeError, ImportError)
WITHOUT_EXAMPLES = {"fewshot_split": None, "fewshot_config": None}
SPLITS = {"training_split": "train", "validation_split": "validation", "test_split": "test"}
"""The harness's settings of a task's splits, and their names in the six."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as the harness runs it."""

    config: BenchmarkConfig
    tasks: dict[str, Any]
    """The harness's tasks by name: for MMLU one per subject, for a group one per member, else one."""
    metric: str
    """The headline metric."""
    filter: str
    """Answer filter of the headline metric."""


def load_benchmark(config: BenchmarkConfig, pack: Pack | None = None) -> Benchmark:
    """Makes a benchmark's tasks, with their data.

    Args:
        config: the benchmark.
        pack: local data; without it the data come from the Hub.

    Raises:
        UserError: the Hub is unreachable, or the harness has no such task; or one that is none of the six cannot be loaded, has a
            metric that is not a mean over items, or runs code that models write and may not.
    """
    load = _preset_tasks if config.preset else _harness_tasks
    tasks = _own_task(config) if config.task else load(config, pack)
    unsafe = [name for name, task in tasks.items() if task.get_config("unsafe_code")]
    if unsafe and not config.allow_code:
        raise UserError(
            f"evaluate.benchmarks.{config.name}: {unsafe[0]} runs the code that models write, without a sandbox; set allow_code: "
            "true to let it, or use a reward of kind code_tests, which has one"
        )
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
            # The harness opens every split that a task names, even those that the measurement does not need.
            there = pack.tables[member["task"]]
            member |= _local(pack, member["task"])
            member |= {setting: None for setting, split in SPLITS.items() if split not in there}
            if PRESETS[config.name].examples not in there:
                member |= WITHOUT_EXAMPLES
    try:
        return _load_group(manager, config, members)
    except (OSError, ValueError) as error:
        raise UserError(f"evaluate.benchmarks.{config.name}: {' '.join(str(error).split())[:300]}") from error


def _load_group(manager: TaskManager, config: BenchmarkConfig, members: list[dict[str, Any]]) -> dict[str, Any]:
    """Loads tasks with settings of ours. In a group they override those of the task's own file; for a single task the harness would
    take nothing else."""
    return dict(manager.load({"group": f"profuser_{config.name}", "task": members})["tasks"])


def _harness_tasks(config: BenchmarkConfig, pack: Pack | None) -> dict[str, Any]:
    """Loads a task of the harness by its name, or all tasks of a group."""
    setting, manager = f"evaluate.benchmarks.{config.name}", _whole_harness()
    if config.name not in manager.all_tasks:
        near = difflib.get_close_matches(config.name, [*PRESETS, LEADERBOARD], n=1)
        near = near or difflib.get_close_matches(config.name, manager.all_tasks, n=3)
        hint = f"did you mean {' or '.join(map(repr, near))}?" if near else "lm-eval ls tasks lists them"
        raise UserError(f"{setting}: no benchmark of this name, {hint}; your own task needs task: FILE.yaml")
    if unknown := [task for task in pack.tables if task not in manager.all_subtasks] if pack else []:
        raise UserError(f"{setting}.path: {config.path} has data of {unknown[0]!r}, and the harness has no such task")
    try:
        if pack:
            tasks = _load_group(manager, config, [{"task": task} | _local(pack, task) for task in pack.tables])
        else:
            tasks = dict(manager.load([config.name])["tasks"])
    except LOAD_ERRORS as error:
        text = one_line(error) or type(error).__name__
        hint = "" if pack else "; without the Hub, give its data with path: FOLDER"
        raise UserError(f"{setting}: the harness cannot load it: {text}{hint}") from error
    return tasks


@cache
def _whole_harness() -> TaskManager:
    """Returns the index of all tasks; it takes seconds to read."""
    return TaskManager()


def _local(pack: Pack, task: str) -> dict[str, Any]:
    """Returns settings that give the harness a task's local data."""
    return {"custom_dataset": _dataset(pack, task)}


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
    except LOAD_ERRORS as error:
        text = one_line(error)
        raise UserError(f"{setting}: the harness cannot load {config.task}: {text or type(error).__name__}") from error
    return dict(tasks)


def _headline(config: BenchmarkConfig, tasks: Mapping[str, Any]) -> tuple[str, str]:
    """Returns the metric and filter of a task that is none of the six, or of all tasks of a group."""
    setting = f"evaluate.benchmarks.{config.name}"
    metric = config.metric or next(iter(next(iter(tasks.values())).aggregation()))
    filters = set()
    for name, task in tasks.items():
        metrics, own = task.aggregation(), config.task or name
        if metric not in metrics:
            raise UserError(f"{setting}.metric: {own} has no metric {metric!r}; there are: {', '.join(metrics)}")
        if metrics[metric] is not mean:
            raise UserError(
                f"{setting}.metric: {metric!r} of {own} is not a mean over items, so models cannot be compared item by item; "
                "choose another with metric"
            )
        filters.add((task.get_config("filter_list") or [{"name": "none"}])[0]["name"])
    if len(filters) > 1:
        raise UserError(
            f"{setting}: its tasks take answers apart in different ways ({', '.join(sorted(filters))}); name one of them"
        )
    return metric, filters.pop()
