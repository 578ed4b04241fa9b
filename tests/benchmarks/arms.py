"""Trains and scores the arms of an ablation in one process, without Ray, vLLM or MLflow, and prints its table.

    python -m tests.benchmarks arms --recipe open-trio.yaml --arms sft-gt,progressive --seeds 2

The base run (`profuser lab ablate` makes it) must be finished up to `select`. The artifacts are those that the stages would write,
with the same losses for the same seed, so `profuser lab ablate` continues from them, and this command from those of
`profuser lab ablate`. On a machine with a GPU and nothing but PyTorch this trains an arm in seconds.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from profuser.ablation.arms import SCHEDULES, Ablation, ArmRun, find_arms, plan_ablation
from profuser.ablation.results import gather_results
from profuser.ablation.table import render
from profuser.artifacts.artifact import Artifact
from profuser.engines.base import ReadSettings
from profuser.engines.loading import ReadModel
from profuser.errors import UserError
from profuser.evaluation.heldout import evaluate_table, score
from profuser.run.choosing import make_chooser, reward_scales
from profuser.run.fusion_run import MODEL, TRAINING_METRICS, FusionRun
from profuser.run.stages import FUSED
from profuser.run.tokenizers import read_tokenizer_pairs
from profuser.selection.examples import Selector

RECIPES = Path(__file__).parents[2] / "ray_jobs" / "recipes"
Log = Callable[[str], None]


def run(show: Callable[[Any], None], log: Log, options: list[str]) -> None:
    """Runs what is unfinished of every arm and seed, and shows the table of all that are measured."""
    chosen = parse(options)
    ablation = plan_ablation(
        chosen.recipe, chosen.settings, find_arms(chosen.arms or [SCHEDULES], RECIPES), chosen.seeds, RECIPES
    )
    check_base(ablation)
    start = time.monotonic()
    for number, each in enumerate(ablation.runs, 1):
        log(f"run {number} of {len(ablation.runs)}: {each.recipe.name}")
        for artifact, make in steps(each):
            if not artifact.is_complete():
                began = time.monotonic()
                make(each.run, artifact)
                log(f"  {artifact.stage}: {time.monotonic() - began:.1f} s")
    for table in render(gather_results(ablation)):
        show(table)
    log(f"{len(ablation.runs)} runs in {time.monotonic() - start:.0f} s")


def parse(options: list[str]) -> argparse.Namespace:
    """Parses the command's options."""
    parser = argparse.ArgumentParser("python -m tests.benchmarks arms", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--recipe", required=True, help="the recipe of the ablation")
    parser.add_argument("--arms", action="append", help="names or groups, as of `profuser lab ablate`")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of each arm")
    parser.add_argument("--set", action="append", default=[], dest="settings", metavar="KEY=VALUE")
    return parser.parse_args(options)


def check_base(ablation: Ablation) -> None:
    """Raises UserError unless the base run is finished up to `select` and has measured target and sources."""
    missing = [stage for stage, artifact in ablation.shared.items() if not artifact.is_complete()]
    if missing:
        raise UserError(f"{ablation.base.recipe.name}: unfinished: {', '.join(missing)}; run profuser lab ablate first")


def steps(each: ArmRun) -> Iterator[tuple[Artifact, Callable[[FusionRun, Artifact], None]]]:
    """Yields an arm's artifacts in order, each with the function that makes it."""
    yield each.run.select(), select
    yield each.run.fuse(), fuse
    yield each.run.evaluate(FUSED), evaluate


def select(run: FusionRun, output: Artifact) -> None:
    """Does the work of stage `select`."""
    start, recipe, pairs = time.monotonic(), run.recipe, read_tokenizer_pairs(run)
    collected, rewards, lazy = (run.artifacts(stage) for stage in ("collect", "rewards", "signals"))
    chooser = make_chooser(recipe, [each.source for each in pairs.projections], reward_scales(rewards))
    selector = Selector(chooser, pairs.projections, pairs.target, recipe.collect.top_k)
    counts = []
    for shard in run.corpus().shards():
        tables = ([a.read_shard(shard) for a in artifacts] for artifacts in (collected, rewards, lazy))
        signals, scores, later = tables
        table, found = selector.select(run.corpus().read_shard(shard), signals, scores, later or None)
        output.write_shard(shard, table, found)
        counts.append(found)
    output.finish(counts, time.monotonic() - start)


def fuse(run: FusionRun, output: Artifact) -> None:
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


def evaluate(run: FusionRun, output: Artifact) -> None:
    """Does the work of stage `evaluate` for the fused model, with an engine in this process."""
    start, recipe, heldout = time.monotonic(), run.recipe, run.heldout()
    path, config = run.evaluated_model(FUSED)
    reader = ReadModel(path, config, run.template(config)).load()
    counts = []
    for shard in heldout.shards():
        rows = heldout.read_shard(shard)
        signals = reader.read(rows, ReadSettings(recipe.evaluate.generation, 0, recipe.seed))
        keeps = reader.template.thinking == "keep"
        table = evaluate_table(rows, signals, reader.tokens, recipe.evaluate.answer_pattern, keeps)
        counts.append({"rows": len(table), "refused": len(table) - table["refused"].null_count})
        output.write_shard(shard, table, counts[-1])
    whole = pa.concat_tables(output.tables())
    found = score(whole, {row["row_id"] for row in whole.to_pylist() if row["refused"] is None})
    output.finish(
        counts, time.monotonic() - start, {"bits_per_byte": found.bits_per_byte, "exact_match": found.exact_match}
    )
