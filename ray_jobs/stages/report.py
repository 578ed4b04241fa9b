"""Stage `report`: gathers a run's results into tables, plots and one page, and writes the fused model's card."""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from profuser.artifacts.artifact import SHARD_NAME, Artifact, Manifest, git_commit, read_manifest, versions
from profuser.artifacts.tracking import RunHandle
from profuser.errors import UserError
from profuser.evaluation.heldout import scores
from profuser.evaluation.writing import writing
from profuser.planning.plan_file import PlanError, compare, measure, read_plan, token_money
from profuser.report.comparisons import benchmark_comparisons, benchmark_estimates, heldout_comparisons
from profuser.report.facts import RunFacts, StageFact
from profuser.report.model_card import model_card
from profuser.report.page import write_report
from profuser.report.tables.plan import plan_error_table
from profuser.report.tables.results import benchmark_table, failed_benchmarks, judged_table
from profuser.report.tables.selection import (
    agreement_table,
    judges_table,
    selection_words,
    verdict_lines,
    win_rates_table,
)
from profuser.report.tables.table import render_scores, who_wins_table
from profuser.report.tables.writing import writing_table
from profuser.run.failures import FAILED_PARTS, read_failures
from profuser.run.fusing_artifacts import TRAINING_METRICS
from profuser.run.fusion_run import FusionRun
from profuser.run.results import judged_by_category, judged_win_rates, read_benchmarks
from profuser.run.stages import REGISTRY, STAGES
from profuser.selection.rows import coverage_by_category, read_categories, read_rows, wins_by_category
from profuser.selection.summary import SelectionFacts, facts_by_category, selection_facts
from ray_jobs.runtime.progress import console, print_line
from ray_jobs.runtime.shards import finish

NUM_SAMPLES = 8
MAX_QUARANTINED, MAX_CONTAMINATED = 200, 50
PAGE = "index.html"
NEEDED = STAGES[: STAGES.index("evaluate") + 1]
"""Stages that a report requires; benchmarks and judges are included as far as they are finished."""


def report(run: FusionRun, handle: RunHandle) -> Manifest:
    """Writes the report and the model card; returns the stage's manifest, which counts the failed parts of optional stages."""
    start, failed = time.monotonic(), read_failures(run)
    write_run_report(run, handle)
    return finish(run.report(), [{FAILED_PARTS: len(failed)}] if failed else [], time.monotonic() - start)


def write_run_report(run: FusionRun, handle: RunHandle | None = None) -> None:
    """Writes the report and the model card; also logs the files to MLflow if a handle is given."""
    facts = gather(run)
    output = run.report().folder
    with tempfile.TemporaryDirectory() as folder:
        write_report(facts, Path(folder))
        output.upload(Path(folder))
        if handle:
            handle.log_artifacts(Path(folder), "report")
    manifests = [m for artifact in run.all_artifacts() if (m := artifact.manifest())]
    run.fused_model.write_bytes("README.md", model_card(facts, manifests).encode())


def print_report(run: FusionRun) -> None:
    """Prints who won where, how the judges voted, the held-out scores of all models, and the page's path."""
    facts = gather(run)
    for make in (who_wins_table, win_rates_table, judges_table, agreement_table):
        # With one source there are no pairs of sources, with one reward no pairs of rewards.
        if (table := make(facts)).row_count:
            console.print(table)
    for sentence in (*verdict_lines(facts), *selection_words(facts)):
        print_line(sentence)
    console.print(render_scores(facts, console.width))
    console.print(writing_table(facts))
    if facts.benchmarks:
        console.print(benchmark_table(facts))
    for line in failed_benchmarks(facts):
        print_line(line)
    if facts.judged:
        console.print(judged_table(facts))
    if facts.plan_errors:
        console.print(plan_error_table(facts))
    print_line(f"report: {run.report().folder.path(PAGE)}")


def gather(run: FusionRun) -> RunFacts:
    """Reads everything that the report shows from a run's artifacts.

    Raises:
        UserError: the run is not finished up to evaluation.
    """
    manifests = {stage: [(a.stage, a.manifest()) for a in run.artifacts(stage)] for stage in NEEDED}
    missing = [name for stage in NEEDED for name, manifest in manifests[stage] if manifest is None]
    if missing:
        raise UserError(
            f"run {run.recipe.name!r} has no report yet: {missing[0]} is not finished; profuser run continues it"
        )
    tables = {name: pa.concat_tables(run.evaluate(name).tables()) for name in run.evaluated()}
    benchmarks = read_benchmarks(run)
    fused, selected = read_manifest(run.fuse().folder), read_manifest(run.select().folder)
    history = run.fuse().folder.read_bytes(TRAINING_METRICS).decode().splitlines()
    selection, by_category = _selection(run)
    return RunFacts(
        name=run.recipe.name,
        recipe=run.recipe.model_dump(mode="json"),
        settings=run.recipe.model_dump(mode="json", exclude_defaults=True),
        commit=fused.commit if fused else git_commit(),
        versions=fused.versions if fused else versions(),
        stages=tuple(_stages(run)),
        scores=scores(tables),
        writing=writing(tables),
        comparisons=(*heldout_comparisons(tables), *benchmark_comparisons(benchmarks)),
        benchmarks=benchmark_estimates(benchmarks),
        judged=judged_win_rates(run),
        judged_by_category=judged_by_category(run),
        taught=wins_by_category(run.select()),
        aligned=coverage_by_category(run.select()),
        source_is_target=next((s.name for s in run.recipe.sources if run.recipe.is_target(s)), None),
        history=[json.loads(line) for line in history],
        selection_counts=selected.counts | selected.metrics if selected else {},
        quarantined=_rows(run.quarantine(), MAX_QUARANTINED),
        quarantine_reasons=_reasons(run.quarantine()),
        contaminated=_rows(found, MAX_CONTAMINATED) if (found := run.contaminated()) else (),
        samples=_samples(run, tables),
        vote_agreement=_vote_agreement(run.select()),
        selection=selection,
        selection_by_category=by_category,
        plan_errors=plan_errors(run),
        failures=read_failures(run),
    )


def plan_errors(run: FusionRun) -> list[PlanError]:
    """Compares a probed run's plan with its manifests and files; a stage planned under other settings is left out."""
    plan = read_plan(run.folder)
    fingerprints = {stage.stage: stage.fingerprint for stage in plan.stages} if plan else {}
    measured: dict[str, dict[str, float]] = {}
    parts = [(made(source), source) for made in (run.collect, run.signals) for source in run.recipe.sources]
    for artifact, source in parts:
        manifest = artifact.manifest()
        if manifest and fingerprints.get(artifact.stage) == manifest.fingerprint:
            size = sum(size for name, size in artifact.folder.sizes().items() if SHARD_NAME.match(name))
            measured[artifact.stage] = measure(manifest, size, run.recipe.plan.price(source.pool), source.token_cost)
    return compare(plan, measured) if plan else []


def _selection(run: FusionRun) -> tuple[SelectionFacts, dict[str, SelectionFacts]]:
    """Returns the facts of the choice of teachers over all rows, and by category."""
    recipe = run.recipe
    names, teachers = ([source.name for source in sources] for sources in (recipe.sources, recipe.teachers))
    categories = read_categories(run.corpus())
    rows = read_rows(run.select(), run.artifacts("collect"), run.artifacts("rewards"), names, categories)
    given = (rows, names, teachers, recipe.rewards, recipe.select.vote)
    return selection_facts(*given), facts_by_category(*given)


def _vote_agreement(selected: Artifact) -> float | None:
    """Returns the share of the votes that went to the winner; None without votes."""
    won = cast = 0.0
    for table in selected.tables(["mode", "advantages"]):
        for row in table.to_pylist():
            if row["mode"] == "inference":
                won, cast = won + max(row["advantages"]), cast + sum(row["advantages"])
    return won / cast if cast else None


def _stages(run: FusionRun) -> Iterator[StageFact]:
    """Yields every finished part of the pipeline except the report itself, with the price of its devices."""
    plan = run.recipe.plan
    costs = {
        f"{stage}/{s.name}": s.token_cost for s in run.recipe.sources for stage in ("collect", "signals", "evaluate")
    }
    costs |= {f"{stage}/{j.name}": j.token_cost for j in run.recipe.llm_judges for stage in ("rewards", "judge")}
    for part in (part for stage in STAGES[:-1] for part in REGISTRY[stage].parts(run)):
        # Training workers name no accelerator.
        price = plan.price(part.pool) if part.pool else plan.price_per_device_hour
        for artifact in part.make():
            manifest = artifact.manifest()
            if manifest is not None:
                own = artifact.folder == run.folder / artifact.stage
                yield StageFact(
                    name=artifact.stage,
                    state="finished",
                    seconds=manifest.seconds,
                    counts=manifest.counts,
                    metrics=manifest.metrics,
                    device_seconds=manifest.device_seconds,
                    price_per_device_hour=price,
                    token_money=token_money(manifest.counts, costs.get(artifact.stage)),
                    reused_from=None
                    if own
                    else artifact.folder.uri.removesuffix(f"/{artifact.stage}").rsplit("/", 1)[-1],
                )


def _rows(artifact: Artifact, limit: int) -> list[dict[str, Any]]:
    """Returns the first rows of an artifact, at most `limit`."""
    out: list[dict[str, Any]] = []
    for table in artifact.tables():
        out += table.slice(0, limit - len(out)).to_pylist()
    return out


def _reasons(quarantine: Artifact) -> dict[str, int]:
    """Returns the number of quarantined rows per reason, the most frequent first."""
    found = Counter(reason for table in quarantine.tables(["reason"]) for reason in table["reason"].to_pylist())
    return dict(found.most_common())


def _samples(run: FusionRun, tables: dict[str, pa.Table]) -> list[dict[str, Any]]:
    """Returns some held-out prompts with every model's answer, spread over the categories."""
    answers, correct = (
        {name: dict(zip(t["row_id"].to_pylist(), t[c].to_pylist(), strict=True)) for name, t in tables.items()}
        for c in ("prediction", "correct")
    )
    by_category: dict[str | None, list[dict[str, Any]]] = {}
    for table in run.heldout().tables():
        for row in table.to_pylist():
            by_category.setdefault(row["category"], []).append(row)
    groups = list(by_category.values())
    picked = [group[i] for i in range(NUM_SAMPLES) for group in groups if i < len(group)][:NUM_SAMPLES]
    return [
        {
            "category": row["category"],
            "prompt": row["messages"][-1]["content"],
            "response": row["response"],
            "answers": {name: texts.get(row["row_id"]) or "" for name, texts in answers.items()},
            "correct": {name: found.get(row["row_id"]) for name, found in correct.items()},
        }
        for row in picked
    ]
