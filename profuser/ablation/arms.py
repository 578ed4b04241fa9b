"""Plans the arms of an ablation and their runs: names, recipes, progress, and an estimate of the time left. Starts nothing.

Run `{name}.base` holds the teachers' pass and the scores of target and sources; `{name}.{arm}.s{seed}` is one arm trained with
one seed, and reuses those of the base's artifacts that fit it. Each is an ordinary run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

from profuser.artifacts.artifact import Artifact, Manifest, read_manifest
from profuser.errors import UserError
from profuser.recipe.layers import ARMS, find_recipe, merge, read_layers, read_tree, recipe_names
from profuser.recipe.loading import apply_overrides, parse_recipe
from profuser.recipe.models import Recipe
from profuser.run.failures import FAILED_PARTS
from profuser.run.fusion_run import FusionRun
from profuser.run.stages import FUSED, STAGES
from profuser.storage.folder import Folder

ABLATIONS = "ablations"
"""Subfolder of the arms: those that change one thing in the progressive arm."""
SEARCH = "search"
"""Subfolder of the ablations: those that may be better than the paper's recipe."""
TWINS = "twins"
"""Subfolder of the ablations: those that need sources that do not ship."""
SCHEDULES, ALL = "schedules", "all"
PROGRESSIVE, SFT_GT = "progressive", "sft-gt"
"""Reference arms, which all others are compared with."""
MEASURED = ("evaluate", "benchmarks")
"""Stages with one or more parts per model."""
NAMED = ("sources", "rewards")
"""Lists from which an ablation may select items by name."""
DEFAULTS = {"evaluate": {"judged": False}}
"""Settings under the recipe's own: the table shows no win rates, and judging an arm's answers takes longer than evaluating it."""
LONGEST_NAME = 40
"""Maximum length of the recipe's name; the runs' names add arm and seed."""


@dataclass(frozen=True)
class Arm:
    """An arm, identified by its file."""

    file: Path

    @property
    def name(self) -> str:
        """Name in runs, tables and plots."""
        return self.file.stem

    @property
    def is_ablation(self) -> bool:
        """Whether it is the progressive arm with one change, not a separate schedule."""
        return ABLATIONS in (self.file.parent.name, self.file.parent.parent.name)

    @property
    def about(self) -> str:
        """Description from the comments of its file."""
        lines = self.file.read_text(encoding="utf-8").splitlines()
        return " ".join(line.removeprefix("#").strip() for line in lines if line.startswith("#"))


def find_arms(wanted: Sequence[str], shipped: Path) -> list[Arm]:
    """Returns the arms of groups (`schedules`, `ablations`, `search`, `all`) and names, without duplicates, references first.

    Args:
        wanted: groups and names; an item may hold several, separated by commas.
        shipped: folder of the shipped recipes.

    Raises:
        UserError: there is no such arm.
    """
    folders = {
        SCHEDULES: shipped / ARMS,
        ABLATIONS: shipped / ARMS / ABLATIONS,
        SEARCH: shipped / ARMS / ABLATIONS / SEARCH,
        TWINS: shipped / ARMS / ABLATIONS / TWINS,
    }
    groups = {
        group: [Arm(folder / f"{name}.yaml") for name in recipe_names(folder)] for group, folder in folders.items()
    }
    by_name = {arm.name: [arm] for group in folders for arm in groups[group]}
    groups[ALL] = groups[SCHEDULES] + groups[ABLATIONS] + groups[SEARCH]
    del groups[TWINS]
    known = by_name | groups
    names = [name.strip() for item in wanted for name in item.split(",") if name.strip()]
    found: list[Arm] = []
    for name in names:
        if name not in known:
            raise UserError(f"--arms {name}: no such arm or group; available: {', '.join([*groups, *by_name])}")
        found += [arm for arm in known[name] if arm not in found]
    if not found:
        raise UserError(f"--arms: name at least one arm, or a group: {', '.join(groups)}")
    return sorted(found, key=lambda arm: (arm.is_ablation, arm.name not in (SFT_GT, PROGRESSIVE)))


@dataclass(frozen=True)
class ArmRun:
    """One arm with one seed."""

    arm: Arm
    seed: int
    recipe: Recipe

    @cached_property
    def run(self) -> FusionRun:
        """Run with the locations of its artifacts."""
        return FusionRun(self.recipe)

    @cached_property
    def parts(self) -> dict[str, Artifact]:
        """Every artifact by its stage; those that another run has finished are located in that run."""
        return {artifact.stage: artifact for stage in STAGES for artifact in self.run.artifacts(stage)}

    @property
    def state(self) -> str:
        """`finished`, `begun` or `waiting`."""
        if (report := self.manifest("report")) and not report.counts.get(FAILED_PARTS):
            return "finished"
        return "begun" if self.run.folder.exists() else "waiting"

    @property
    def is_measured(self) -> bool:
        """Whether its model is trained and evaluated; the report may still be missing."""
        return all(self.parts[stage].manifest() is not None for stage in ("fuse", f"evaluate/{FUSED}"))

    def manifest(self, stage: str) -> Manifest | None:
        """Returns the manifest of a stage that this run produced itself, with these settings; else None."""
        found = read_manifest(self.run.folder / stage)
        return found if found and found.fingerprint == self.parts[stage].fingerprint else None


@dataclass(frozen=True)
class Ablation:
    """All runs of an experiment."""

    base: FusionRun
    """Run of all stages until `select`; also measures the target and the sources."""
    runs: tuple[ArmRun, ...]
    """Runs seed by seed, so that a complete table of one seed is available early."""

    @property
    def folder(self) -> Folder:
        """Folder of the tables, `{storage}/{name}.ablation`."""
        storage, name = self.base.recipe.storage, self.base.recipe.name.removesuffix(".base")
        return Folder.at(storage) / f"{name}.ablation"

    @property
    def arms(self) -> list[Arm]:
        """Arms in order, without duplicates."""
        return list(dict.fromkeys(each.arm for each in self.runs))

    def finished(self) -> list[ArmRun]:
        """Returns the finished runs."""
        return [each for each in self.runs if each.state == "finished"]

    def measured(self) -> list[ArmRun]:
        """Returns the runs with a row in the table."""
        return [each for each in self.runs if each.is_measured]

    @cached_property
    def shared(self) -> dict[str, Artifact]:
        """Artifacts of the base by stage: all until `select`, and the measurements of every model but the fused one."""
        parts = [artifact for stage in STAGES[: STAGES.index("fuse")] for artifact in self.base.artifacts(stage)]
        measured = [artifact for stage in MEASURED for artifact in self.base.artifacts(stage)]
        parts += [artifact for artifact in measured if artifact.stage.split("/")[1] != FUSED]
        return {artifact.stage: artifact for artifact in parts}

    def check(self) -> None:
        """Raises UserError if an artifact was made with other settings, naming the setting."""
        for artifact in (*self.shared.values(), *(a for each in self.runs for a in each.parts.values())):
            artifact.is_complete()


@dataclass(frozen=True)
class TimeLeft:
    """Estimate of the time left: every missing artifact takes the mean time of the finished ones of its stage."""

    seconds: float
    unknown: tuple[str, ...]
    """Stages without a finished artifact; their time is not included."""


def time_left(ablation: Ablation) -> TimeLeft:
    """Estimates the stage time of all missing artifacts, without the start of Ray, engine processes and MLflow."""
    folders = [ablation.base.folder, *(each.run.folder for each in ablation.runs)]
    stages = dict.fromkeys([*ablation.shared, *(stage for each in ablation.runs for stage in each.parts)])
    made = [manifest for folder in folders for stage in stages if (manifest := read_manifest(folder / stage))]
    known: dict[str, list[float]] = {}
    for manifest in made:
        known.setdefault(manifest.stage, []).append(manifest.seconds)
    needed = {a.fingerprint: a for each in ablation.runs for a in each.parts.values()}
    needed |= {a.fingerprint: a for a in ablation.shared.values()}
    done = {manifest.fingerprint for manifest in made}
    missing = [a.stage for mark, a in needed.items() if mark not in done and a.manifest() is None]
    seconds = sum(fmean(known[stage]) for stage in missing if stage in known)
    return TimeLeft(seconds, tuple(dict.fromkeys(stage for stage in missing if stage not in known)))


def plan_ablation(recipe: str, settings: Sequence[str], arms: Sequence[Arm], num_seeds: int, shipped: Path) -> Ablation:
    """Plans the runs of an ablation.

    Args:
        recipe: path or shipped name.
        settings: `key.path=value`, for all arms; an arm's own settings override them.
        arms: to run.
        num_seeds: seeds of every arm, 0, 1, ...; they affect training only.
        shipped: folder of the shipped recipes.

    Raises:
        UserError: a setting is wrong, or an arm does not fit the recipe.
    """
    file = find_recipe(recipe, Path(), shipped, f"recipe {recipe}")
    tree = merge(DEFAULTS, read_layers(file, shipped))
    apply_overrides(tree, settings)
    plain = parse_recipe(tree, str(file))
    if len(plain.name) > LONGEST_NAME:
        raise UserError(f"name: {plain.name!r} is too long for the runs of an ablation; --set name=SHORTER")
    base = _named(plain, f"{plain.name}.base", plain.reuse)
    runs = []
    for seed in range(num_seeds):
        for arm in arms:
            name, first = f"{plain.name}.{arm.name}.s{seed}", f"{plain.name}.{arm.name}.s0"
            own = parse_recipe(arm_tree(tree, arm, shipped), f"{file} --arms {arm.name}")
            own = own.model_copy(update={"fuse": own.fuse.model_copy(update={"seed": seed})})
            # Artifacts that an arm does not share with the base are shared by its seeds.
            reuse = (base.name, *([first] if seed else []), *plain.reuse)
            runs.append(ArmRun(arm, seed, _named(own, name, reuse)))
    return Ablation(FusionRun(base), tuple(runs))


def arm_tree(tree: dict[str, Any], arm: Arm, shipped: Path) -> dict[str, Any]:
    """Merges an arm's settings over a recipe's; those of an ablation go over the progressive arm and may pick sources and rewards.

    Raises:
        UserError: the recipe has no source or reward with a name that the arm picks.
    """
    own = read_tree(arm.file)
    if arm.is_ablation:
        tree = merge(tree, read_tree(shipped / ARMS / f"{PROGRESSIVE}.yaml"))
    for key in NAMED:
        if key in own:
            own[key] = _picked(tree.get(key, []), own[key], f"--arms {arm.name}: {key}")
    return merge(tree, own)


def _picked(items: list[dict[str, Any]], wanted: list[Any], where: str) -> list[Any]:
    """Resolves names to items; an entry that is not a name is an item itself."""
    known = {item["name"]: item for item in items}
    missing = [name for name in wanted if isinstance(name, str) and name not in known]
    if missing:
        raise UserError(f"{where}: the recipe has none named {missing[0]!r}; available: {', '.join(known)}")
    return [known[item] if isinstance(item, str) else item for item in wanted]


def _named(recipe: Recipe, name: str, reuse: Sequence[str]) -> Recipe:
    return recipe.model_copy(update={"name": name, "reuse": tuple(reuse)})
