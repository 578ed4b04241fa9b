"""Trains and scores the arms of an ablation without Ray, vLLM or MLflow, and prints its table.

    python -m tests.benchmarks arms --recipe open-trio.yaml --arms sft-gt,progressive --seeds 2

The artifacts are those that the stages would write, with the same losses for the same seed, so `profuser lab ablate` continues from
them, and this command from those of `profuser lab ablate`. With `--base` it also makes the teachers' pass, with the Transformers
engine, on a machine that may have nothing but PyTorch and Transformers.
"""

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path
from typing import Any

from profuser.ablation.arms import SCHEDULES, Ablation, find_arms, plan_ablation
from profuser.ablation.results import gather_results
from profuser.ablation.table import notes, render
from profuser.errors import UserError, one_line
from profuser.run.fusing_artifacts import MODEL, TRAINING_METRICS
from profuser.run.fusion_run import FusionRun
from profuser.run.stages import FUSED, TARGET
from tests.benchmarks import base_run

RECIPES = Path(__file__).parents[2] / "ray_jobs" / "recipes"
Log = Callable[[str], None]


def run(show: Callable[[Any], None], log: Log, options: list[str]) -> None:
    """Runs what is unfinished of every arm and seed, and shows the table of all that are measured."""
    chosen, start = parse(options), time.monotonic()
    ablation = plan(options)
    if chosen.base:
        base = ablation.base
        base_run.prepare(base)
        names = [source.name for source in base.recipe.sources]
        target = [] if any(base.recipe.is_target(source) for source in base.recipe.sources) else [TARGET]
        spread(partial(read, options), [*names, *target], chosen.at_once, log)
        for each in [base, *(one.run for one in ablation.runs)]:
            for reward in each.recipe.rewards:
                base_run.reward(each, reward)
        base_run.select(base)
        log(f"base run: {time.monotonic() - start:.0f} s")
    check_base(ablation)
    start = time.monotonic()
    failed = spread(partial(train, options), [each.recipe.name for each in ablation.runs], chosen.at_once, log)
    results = gather_results(ablation)
    for table in render(results):
        show(table)
    for note in notes(results):
        log(note)
    log(f"{len(ablation.runs) - len(failed)} runs in {time.monotonic() - start:.0f} s")
    if failed:
        raise UserError(f"failed, and not in the table: {', '.join(failed)}; run again to try what is missing")


def parse(options: list[str]) -> argparse.Namespace:
    """Parses the command's options."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks arms", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", required=True, help="the recipe of the ablation")
    parser.add_argument("--arms", action="append", help="names or groups, as of `profuser lab ablate`")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of each arm")
    parser.add_argument("--base", action="store_true", help="make what is missing of the base run, verifiers only")
    parser.add_argument("--at-once", type=int, default=1, help="processes, each with one source or run")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    return parser.parse_args(options)


def plan(options: list[str]) -> Ablation:
    """Returns the ablation of the command's options."""
    chosen = parse(options)
    arms = find_arms(chosen.arms or [SCHEDULES], RECIPES)
    return plan_ablation(chosen.recipe, chosen.settings, arms, chosen.seeds, RECIPES)


def check_base(ablation: Ablation) -> None:
    """Raises UserError unless the base run is finished up to `select` and has measured target and sources."""
    missing = [stage for stage, artifact in ablation.shared.items() if not artifact.is_complete()]
    if missing:
        raise UserError(
            f"{ablation.base.recipe.name}: unfinished: {', '.join(missing)}; run profuser lab ablate, or add --base"
        )


def spread(make: Callable[[str], str], names: list[str], at_once: int, log: Log) -> list[str]:
    """Calls a function with each name and logs what it returns; returns the names with which it failed: one stops no other."""
    failed = []
    for name, result in _calls(make, names, at_once):
        try:
            log(result())
        except Exception as error:
            log(f"{name}: failed: {one_line(error)}")
            failed.append(name)
    return failed


def _calls(make: Callable[[str], str], names: list[str], at_once: int) -> Iterator[tuple[str, Callable[[], str]]]:
    """Yields each name with a function that returns its result, from this process or from several."""
    if at_once == 1:
        yield from ((name, partial(make, name)) for name in names)
        return
    threads = max(1, len(os.sched_getaffinity(0)) // at_once)
    with ProcessPoolExecutor(at_once, multiprocessing.get_context("spawn"), _use_threads, (threads,)) as pool:
        running = {pool.submit(make, name): name for name in names}
        for done in as_completed(running):
            yield running[done], done.result


def _use_threads(number: int) -> None:
    import torch

    torch.set_num_threads(number)


def read(options: list[str], name: str) -> str:
    """Makes one model's part of the base run."""
    ablation, start = plan(options), time.monotonic()
    base_run.read([ablation.base, *(each.run for each in ablation.runs)], name)
    return f"{name}: read in {time.monotonic() - start:.0f} s"


def train(options: list[str], name: str) -> str:
    """Selects, trains and evaluates what is unfinished of a run."""
    start, run = time.monotonic(), next(each.run for each in plan(options).runs if each.recipe.name == name)
    if run.recipe.fuse.num_rounds > 1:
        raise UserError("fuse.rounds: rounds start engines between updates; run profuser lab ablate")
    base_run.select(run)
    selected = time.monotonic()
    if not run.fuse().is_complete():
        fuse(run)
    trained = time.monotonic()
    if not run.evaluate(FUSED).is_complete():
        path, config = run.evaluated_model(FUSED)
        reader = base_run.load(run, config, path)
        base_run.evaluate(reader, run, run.evaluate(FUSED))
        reader.loop.close()
    took = (selected - start, trained - selected, time.monotonic() - trained)
    return f"{name}: selected, trained and evaluated in {' + '.join(f'{each:.0f}' for each in took)} s"


def fuse(run: FusionRun) -> None:
    """Does the work of stage `fuse` with one worker, without checkpoints."""
    import torch

    from profuser.training.batches import UpdatePlan, read_packs
    from profuser.training.checks import check_vocabulary
    from profuser.training.examples import LIGHT_COLUMNS, ExampleIndex, ExampleReader
    from profuser.training.export import export
    from profuser.training.loop import Hooks, Trainer
    from profuser.training.target import load_target
    from tests.training.made import stream_from

    start, config, seed, chosen = time.monotonic(), run.recipe.fuse, run.recipe.training_seed, run.select()
    output = run.fuse()
    light = ((shard, chosen.read_shard(shard, LIGHT_COLUMNS)) for shard in chosen.shards())
    plan = UpdatePlan(ExampleIndex.build(light, config.max_tokens, config.weighting), config, seed)
    width = run.vocab_size("target.model")
    reader = ExampleReader(chosen.read_shard, run.recipe.collect.top_k, width, config.max_tokens)
    target = run.recipe.target
    path = run.model(target).local(setting="target.model", trained=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = load_target(path, target.revision, config, device, seed)
    check_vocabulary(module.model, width, path)
    pad_id = module.model.config.get_text_config().pad_token_id or 0
    validation = list(read_packs(plan.index, reader, plan.deal_validation(1, 0), pad_id))
    trainer = Trainer(module, plan, config, seed, validation)
    trainer.run(stream_from(plan, reader, 1, 0, pad_id), Hooks())
    with tempfile.TemporaryDirectory() as folder:
        export(module, path, target, run.recipe.template_of(target), Path(folder))
        (output.folder / MODEL).upload(Path(folder))
    lines = "".join(json.dumps(record) + "\n" for record in trainer.history)
    output.folder.write_bytes(TRAINING_METRICS, lines.encode())
    counts = {"steps": len(trainer.history), "tokens": sum(int(record["tokens"]) for record in trainer.history)}
    output.finish([counts], time.monotonic() - start)
