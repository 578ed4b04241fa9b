"""Checks benchmarks before anything is started: whether their data exist, their digests, and their sizes."""

import hashlib
import os
from pathlib import Path
from typing import Any

import yaml

from profuser.errors import UserError, one_line
from profuser.evaluation.benchmarks.data import (
    Pack,
    folder_digest,
    mmlu_subjects,
    pack_digest,
    read_folder,
    read_pack,
)
from profuser.recipe.benchmarks import PRESETS
from profuser.recipe.evaluating import BenchmarkConfig

CODE_SUFFIXES = (".py", ".yaml", ".yml")
HUB_SECONDS = 10


def data_digest(config: BenchmarkConfig) -> str:
    """Returns what identifies a benchmark's data: a digest of local files, or the name of a dataset on the Hub or of a task of the
    harness, which names its dataset.

    For a user's own task, the digest covers its file, the Python and YAML files beside it, and local files of its data.

    Raises:
        UserError: a local file does not exist.
    """
    if config.task:
        return _own_digest(config, Path(config.task).expanduser())
    if config.path:
        return pack_digest(config.name, config.path, config.shots or 0) if config.preset else folder_digest(config.path)
    return f"hub:{config.preset.hub}" if config.preset else f"harness:{config.name}"


def local_data(config: BenchmarkConfig) -> Pack | None:
    """Returns a benchmark's local data, or None; those of the six are checked. Raises UserError as `read_pack` does."""
    if not config.path:
        return None
    return (
        read_pack(config.name, config.path, config.shots or 0)
        if config.preset
        else read_folder(config.name, config.path)
    )


def check_data(config: BenchmarkConfig) -> None:
    """Raises a one-line UserError unless a benchmark's data can be read locally or fetched from the Hub."""
    if not config.preset:
        # The harness takes seconds to import.
        from profuser.evaluation.benchmarks.tasks import load_benchmark

        load_benchmark(config, local_data(config))
    elif config.path:
        local_data(config)
    elif not _is_cached(config.name) and (reason := _why_unreachable(PRESETS[config.name].hub)):
        raise UserError(
            f"evaluate.benchmarks.{config.name}: {PRESETS[config.name].hub} is not on this machine, and the Hub is unreachable "
            f"({reason}): give local data with path: FOLDER, in the same columns, or leave the benchmark out"
        )


def benchmark_size(config: BenchmarkConfig, pack: Pack | None = None) -> tuple[int, float]:
    """Returns the number of items, and an estimate of the tokens of all their prompts.

    Args:
        config: the benchmark; for a task that is none of the six only its limit is known.
        pack: its local data, if any.
    """
    preset = config.preset
    if preset is None:
        return config.limit or 0, 0.0
    if pack:
        items = pack.num_items(PRESETS[config.name].evaluated, config.limit)
    else:
        parts = len(mmlu_subjects()) if config.name == "mmlu" else 1
        items = min(preset.num_items, config.limit * parts) if config.limit else preset.num_items
    return items, items * preset.requests_per_item * ((config.shots or 0) + 1) * preset.example_tokens


def _is_cached(name: str) -> bool:
    """Returns whether the `datasets` library has a benchmark's data in its cache."""
    from datasets import config

    owner, _, dataset = PRESETS[name].hub.partition("/")
    folders = Path(config.HF_DATASETS_CACHE).glob(f"{owner}___{dataset.lower()}")
    return any((folder / (PRESETS[name].configuration or "")).is_dir() for folder in folders)


def _why_unreachable(hub: str) -> str | None:
    """Returns why a dataset of the Hub cannot be fetched, or None."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        return "HF_HUB_OFFLINE is set"
    try:
        # Forced, as a cached copy would prove nothing.
        hf_hub_download(hub, "README.md", repo_type="dataset", force_download=True, etag_timeout=HUB_SECONDS)
    except (HfHubHTTPError, OSError, ValueError) as error:
        cause = error.__cause__ or error
        return one_line(cause, 120)
    return None


class _AnyTag(yaml.SafeLoader):
    """Reads the harness's YAML without running the functions that its tags name."""


_AnyTag.add_multi_constructor("!", lambda loader, suffix, node: None)


def _own_digest(config: BenchmarkConfig, file: Path) -> str:
    setting = f"evaluate.benchmarks.{config.name}.task"
    try:
        tree = yaml.load(file.read_text(encoding="utf-8"), Loader=_AnyTag)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{setting}: {file} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"{setting}: {file} is not YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(tree, dict) or "task" not in tree:
        raise UserError(f"{setting}: {file} is not a task of lm-evaluation-harness: it has no key 'task'")
    sha = hashlib.sha256(file.read_bytes())
    for beside in sorted(f for f in file.absolute().parent.iterdir() if f.suffix in CODE_SUFFIXES and f.is_file()):
        sha.update(beside.name.encode() + beside.read_bytes())
    for name in _leaves((tree.get("dataset_kwargs") or {}).get("data_files")):
        if Path(name).is_file():
            sha.update(Path(name).read_bytes())
    return sha.hexdigest()[:16]


def _leaves(tree: Any) -> list[str]:
    """Returns the strings of a value, a list, or a mapping's values."""
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [leaf for item in tree for leaf in _leaves(item)] if isinstance(tree, list) else [tree] if tree else []
