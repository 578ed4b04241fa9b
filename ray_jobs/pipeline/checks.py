"""Checks of a run before anything is written, and look-ups of stages and parts by name."""

import os
from collections.abc import Sequence
from pathlib import Path

import psutil

from profuser.artifacts.artifact import Artifact
from profuser.errors import TrainingError, UserError
from profuser.models.checkpoint import Checkpoint
from profuser.run.fusion_run import FusionRun
from profuser.run.stages import REGISTRY, STAGES, stage_name
from profuser.storage.folder import Folder

LARGE_TARGET = 2**26
"""Bytes of a target's weights from which its memory without a GPU is planned before the run."""
FULL = 0.7
"""Share of a machine's memory above which training is said to need too much: Ray, the driver and libraries take the rest."""
JOB_MARK = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable that Ray sets in a submitted job."""


def is_part(name: str, of: str) -> bool:
    """Returns whether `name` is `of` or belongs to it, as `benchmarks/fused/mmlu` belongs to `benchmarks/fused`."""
    return f"{name}/".startswith(f"{of}/")


def stage_index(name: str, option: str) -> int:
    """Returns a stage's index in the order of stages; raises UserError, with the option's name, if there is no such stage."""
    if name not in STAGES:
        raise UserError(f"{option} {name}: no such stage; there are: {', '.join(STAGES)}")
    return STAGES.index(name)


def check_storage(storage: str) -> None:
    """Raises UserError if an object store is not writable, or a Ray job would write to its working directory, which Ray deletes."""
    if JOB_MARK in os.environ and "://" not in storage and not Path(storage).expanduser().is_absolute():
        raise UserError(
            f"storage: {storage!r} is relative, but Ray deletes a job's working directory when the job ends; "
            "give a folder that all nodes share, or a URI: --set storage=/shared/runs"
        )
    folder = Folder.at(storage)
    # Before the corpus and models, which may be stored there too.
    if not folder.is_local:
        folder.check_writable()


def check_only(names: Sequence[str], only: str, redo: Sequence[str]) -> None:
    """Raises UserError where a run has no such stage or part (`names`), or where more would be deleted than is rebuilt."""
    stage = stage_name(only)
    stage_index(stage, "--only")
    parts = [name for name in names if stage_name(name) == stage]
    if not parts:
        raise UserError(f"--only {only}: this recipe has no {stage}")
    if not any(is_part(name, only) for name in parts):
        raise UserError(f"--only {only}: no such part; there are: {', '.join(parts)}")
    for name in redo:
        if name != only:
            raise UserError(f"--redo {name}: with --only {only} it would be deleted but not rebuilt")


def check_inputs_finished(run: FusionRun, only: str, chosen: Sequence[Artifact]) -> None:
    """Raises UserError where a direct or indirect input of a stage's or part's artifacts is not finished."""
    there = {artifact.stage: artifact for artifact in run.all_artifacts()}
    needed: set[str] = set()
    left = [name for artifact in chosen for name in artifact.inputs]
    while left:
        name = left.pop()
        if name not in needed:
            needed.add(name)
            left += there[name].inputs
    missing = [name for name, artifact in there.items() if name in needed and artifact.manifest() is None]
    if missing:
        raise UserError(
            f"{only} needs unfinished inputs: {', '.join(missing)}; begin with the stage {stage_name(missing[0])}"
        )


def check_fits_recipe(run: FusionRun) -> None:
    """Raises UserError where a finished artifact no longer fits the recipe, and names the later stages that it affects.

    A result that was added to or removed from the recipe affects only the stages that are written again by themselves.
    """
    for index, stage in enumerate(STAGES):
        if REGISTRY[stage].rewritten:
            continue
        for artifact in run.artifacts(stage):
            try:
                artifact.is_complete()
            except UserError as error:
                after = ", ".join(STAGES[index + 1 :])
                raise UserError(f"{error}{f'; it affects {after} too' if after else ''}") from None


def check_reward_categories(run: FusionRun) -> None:
    """Raises UserError where a reward names a category that no training row has; needs `prepare`, and runs before `collect`."""
    named = {
        f"rewards.{reward.name}.{key}": getattr(reward, key) or ()
        for reward in run.recipe.rewards
        for key in ("categories", "except_categories")
    }
    if not any(named.values()):
        return
    there = {name for table in run.corpus().tables(["category"]) for name in table["category"].to_pylist() if name}
    for setting, names in named.items():
        for name in set(names) - there:
            known = ", ".join(sorted(there)[:20]) or "none"
            raise UserError(f"{setting}: no training row has the category {name!r}; there are: {known}")


def check_tokenizers(run: FusionRun) -> None:
    """Raises UserError where a source's tokenizer cannot be aligned with the target's; runs before anything is collected."""
    from profuser.run.tokenizers import read_tokenizer_pairs

    read_tokenizer_pairs(run)


def check_target(run: FusionRun) -> list[str]:
    """Checks the target before anything is collected.

    Returns:
        Lines for the user: what is trained, and what could not be checked.

    Raises:
        UserError: the target cannot be trained as the recipe says.
    """
    from profuser.training.target import check_trainable

    path = run.model(run.recipe.target).local(weights=False, setting="target.model", trained=True)
    return check_trainable(path, run.recipe.target.revision, run.recipe.fuse)


def cpu_memory_lines(run: FusionRun) -> list[str]:
    """Returns a line on the memory that training takes without GPUs; none for a small target, or one that cannot be planned.

    Call it where there are no GPUs: planning takes some ten seconds.
    """
    ref, target, fuse = run.model(run.recipe.target), run.recipe.target, run.recipe.fuse
    path = ref.local(weights=False, setting="target.model", trained=True)
    if fuse.workers.use_gpu or (Checkpoint.of(path, target.revision).weights_bytes or 0) < LARGE_TARGET:
        return []
    from transformers import AutoConfig

    from profuser.training.memory import estimate

    config = AutoConfig.from_pretrained(path, revision=target.revision, local_files_only=True)
    workers, dtype = fuse.workers.num_workers, "float32" if fuse.dtype == "auto" else fuse.dtype
    try:
        each = estimate(config, fuse, workers, dtype).peak_bytes / 2**30
    except TrainingError:
        return []
    there = psutil.virtual_memory().total / 2**30
    line = (
        f"fuse: without a GPU, {workers} workers need {each:.1f} GiB each, in {dtype}; this machine has {there:.1f} GiB"
    )
    if workers * each > FULL * there:
        line += (
            f": lower fuse.micro_batch_tokens ({fuse.micro_batch_tokens}) or fuse.workers.num_workers, "
            "or set fuse.memory.activation_checkpointing: full"
        )
    return [line]
