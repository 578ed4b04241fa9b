"""The pipeline's stages, in order: one record each."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from profuser.artifacts.artifact import Artifact
from profuser.recipe.models import SourceConfig
from profuser.recipe.resources import PoolConfig
from profuser.run import stage_plans
from profuser.run.fusing_artifacts import ROUNDS, round_part
from profuser.run.stage import CorpusSize, Part, PlanLine, Stage

if TYPE_CHECKING:
    from profuser.run.fusion_run import FusionRun

TARGET, FUSED = "target", "fused"
"""Names of two evaluated models; the others are named after their source."""


def _part(
    name: str,
    make: Callable[[], Artifact],
    *arguments: Any,
    pool: PoolConfig | None = None,
    group: str | None = None,
    job: str | None = None,
) -> Part:
    return Part(name, lambda: [make()], arguments, pool, group, job)


def _collect(run: "FusionRun") -> list[Part]:
    return [_part(f"collect/{s.name}", partial(run.collect, s), s, pool=s.pool) for s in run.recipe.sources]


def _rewards(run: "FusionRun") -> list[Part]:
    return [_part(f"rewards/{r.name}", partial(run.rewards, r), r, pool=r.pool) for r in run.recipe.rewards]


def _signals(run: "FusionRun") -> list[Part]:
    """Returns parts only if signals are lazy."""
    sources = run.recipe.sources if run.recipe.collect.signals == "lazy" else ()
    return [_part(f"signals/{s.name}", partial(run.signals, s), s, pool=s.pool) for s in sources]


def _rounds(run: "FusionRun") -> list[Part]:
    """Returns what lies between the examples of the first round and the training of the last, in order; nothing for one round."""
    recipe, out = run.recipe, []
    for number in range(1, recipe.fuse.num_rounds + 1):
        if number > 1:
            out += [_of_round(number, "collect", run.collect, source) for source in recipe.answering]
            out += [_of_round(number, "signals", run.signals, source) for source in recipe.readers]
            out.append(_of_round(number, "select", run.select, pool=recipe.select.pool))
        if number < recipe.fuse.num_rounds:
            out.append(_of_round(number, "fuse", run.fuse))
    return out


def _of_round(
    round_number: int,
    job: str,
    make: Callable[..., Artifact],
    *sources: SourceConfig,
    pool: PoolConfig | None = None,
) -> Part:
    """Returns a part of a round, of one source or none, that the function of another stage makes."""
    name = "/".join([job, *(source.name for source in sources)])
    pool = sources[0].pool if sources else pool
    arguments = (*sources, round_number)
    return _part(round_part(round_number, name), partial(make, *arguments), *arguments, pool=pool, job=job)


def _evaluate(run: "FusionRun") -> list[Part]:
    return [
        _part(f"evaluate/{name}", partial(run.evaluate, name), name, pool=run.evaluated_config(name).pool)
        for name in run.evaluated()
    ]


def _benchmarks(run: "FusionRun") -> list[Part]:
    return [
        _part(
            f"benchmarks/{name}/{b.name}",
            partial(run.benchmark, name, b),
            name,
            b,
            pool=run.evaluated_config(name).pool,
            group=f"benchmarks/{name}",
        )
        for name in run.benchmarked()
        for b in run.recipe.evaluate.benchmarks
    ]


def _judge(run: "FusionRun") -> list[Part]:
    rewards = run.recipe.rewards if run.recipe.evaluate.judged else ()
    return [_part(f"judge/{r.name}", partial(run.judge, r), r, pool=r.pool) for r in rewards]


def _prepared(counts: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Returns the report's phrases for `prepare`."""
    rows = {name: int(found.get("rows", 0)) for name, found in counts.items()}
    refused = int(sum(found.get("quarantined", 0) for found in counts.values()))
    heldout = [f"{rows['prepare/heldout']:,} rows held out"] if "prepare/heldout" in rows else []
    return [f"{rows.get('prepare/train', 0):,} training rows", *heldout, f"{refused:,} rows refused"]


def _answered(counts: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Returns the report's phrases for `rounds`."""
    out = []
    for name, found in counts.items():
        if name.endswith("/select"):
            number, answers = name.split("/")[1], int(found.get("on_policy_examples", 0))
            out.append(f"round {number}: {answers:,} answers of the target")
    return out


_ALL = (
    Stage(
        name="prepare",
        purpose="Read the corpus and hold out rows for evaluation. Unusable rows are quarantined.",
        parts=lambda run: [Part("prepare/train", run.prepared)],
        plan=stage_plans.prepare,
        report=_prepared,
    ),
    Stage(
        name="collect",
        purpose="Read and answer every row with every source. Stores top-k distributions of the ground truth and of the answers.",
        parts=_collect,
        plan=stage_plans.collect,
        part_option="source",
        plural="sources",
        concurrency="sources",
    ),
    Stage(
        name="rewards",
        purpose="Score every answer with every reward model and verifier.",
        parts=_rewards,
        plan=stage_plans.rewards,
        part_option="reward",
        plural="judges",
        concurrency="rewards",
    ),
    Stage(
        name="signals",
        purpose="Collect the chosen teachers' distributions. Only if collect.signals is lazy.",
        parts=_signals,
        plan=stage_plans.signals,
        part_option="source",
        plural="sources",
        concurrency="sources",
    ),
    Stage(
        name="select",
        purpose="Choose teachers and write the training examples.",
        parts=lambda run: [_part("select", run.select, pool=run.recipe.select.pool)],
        plan=stage_plans.select,
    ),
    Stage(
        name=ROUNDS,
        purpose="Renew the target's answers for on-policy mode, between rounds of training. Only if fuse.rounds is above 1.",
        parts=_rounds,
        plan=stage_plans.rounds,
        report=_answered,
    ),
    Stage(
        name="fuse",
        purpose="Train the target on the examples; export the fused model.",
        parts=lambda run: [_part("fuse", run.fuse)],
        plan=stage_plans.fuse,
    ),
    Stage(
        name="evaluate",
        purpose="Measure all models on the held-out rows.",
        parts=_evaluate,
        plan=stage_plans.evaluate,
        part_option="model",
        plural="models",
        results=lambda name, metrics: {f"{name.removeprefix('evaluate/')}/{key}": v for key, v in metrics.items()},
    ),
    Stage(
        name="benchmarks",
        purpose="Run the recipe's benchmarks on all models.",
        parts=_benchmarks,
        plan=stage_plans.benchmarks,
        part_option="model",
        plural="pairs of model and benchmark",
        optional=True,
        concurrency="models",
        results=lambda name, metrics: {name.removeprefix("benchmarks/"): metrics["score"]},
    ),
    Stage(
        name="judge",
        purpose="Score all models' held-out answers with every reward.",
        parts=_judge,
        plan=stage_plans.judge,
        part_option="reward",
        plural="judges",
        concurrency="rewards",
    ),
    Stage(
        name="report",
        purpose="Write the HTML report and the model card.",
        parts=lambda run: [_part("report", run.report)],
        plan=lambda run, size: (),
        rewritten=True,
    ),
)
REGISTRY = {stage.name: stage for stage in _ALL}
STAGES = tuple(REGISTRY)
"""Stage names, in order."""


def stage_name(part: str) -> str:
    """Returns the name of a part's stage, e.g. `collect` of `collect/llama`."""
    return part.split("/")[0]


def stage_of(part: str) -> Stage:
    """Returns the stage of a part."""
    return REGISTRY[stage_name(part)]


def plan_run(run: "FusionRun", size: CorpusSize) -> dict[str, PlanLine]:
    """Returns the estimated cost of each part, by name and in order; stages of negligible cost are omitted."""
    out: dict[str, PlanLine] = {}
    for stage in REGISTRY.values():
        if lines := list(stage.plan(run, size)):
            out |= zip((part.name for part in stage.parts(run)), lines, strict=True)
    return out
