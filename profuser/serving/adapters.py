"""Checks the LoRA adapters of a served model: what vLLM can apply, and whether they were made for this model."""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from profuser.errors import UserError
from profuser.models.formats import ADAPTER_CONFIG, Format, quantization
from profuser.models.reference import SAMPLE_BYTES, WEIGHT_SUFFIXES, ModelRef
from profuser.storage.folder import Folder

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks for which vLLM reserves memory; an adapter takes that of the next one."""
UNUSED = ("modules_to_save", "rank_pattern", "alpha_pattern", "target_parameters", "trainable_token_indices")
"""Settings of peft that vLLM refuses or ignores."""
OUTPUT = "lm_head"
PREFIX, PARTS = "base_model.model.", (".lora_A.weight", ".lora_B.weight")


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that is applied to a served model.

    Attributes:
        name: its name in the API.
        folder: local folder of its files.
        rank: its rank.
        note: a line on what could not be checked; None if all was.
    """

    name: str
    folder: str
    rank: int
    note: str | None


def read_adapter(name: str, location: str, model: ModelRef) -> Adapter:
    """Reads an adapter, and checks it against the model that it is served with.

    Args:
        name: its name in the API.
        location: a folder, a URI or a Hub name.
        model: the served model.

    Raises:
        UserError: it is not an adapter, vLLM would apply it wrongly, or it is one of another model.
    """
    setting = f"--lora {name}"
    ref = ModelRef(location)
    if ref.format is not Format.ADAPTER:
        raise UserError(
            f"{setting}: {location!r} is not a LoRA adapter: no {ADAPTER_CONFIG} in it, or whole weights too"
        )
    folder = ref.fetched(True, setting)
    config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    merged = f"; merged into its model it can be served: --model {name}={location}"
    if (kind := config.get("peft_type", "LORA")) != "LORA":
        raise UserError(f"{setting}: {location}: an adapter of type {kind}; vLLM applies LoRA only{merged}")
    unused = [key for key in UNUSED if config.get(key)]
    unused += [key for key in ("use_dora", "lora_bias", "fan_in_fan_out") if config.get(key) is True]
    unused += ["bias"] if config.get("bias", "none") != "none" else []
    if unused:
        raise UserError(f"{setting}: {location}: vLLM does not apply `{unused[0]}` of {ADAPTER_CONFIG}{merged}")
    rank = config.get("r")
    if type(rank) is not int or not 0 < rank <= RANKS[-1]:
        raise UserError(f"{setting}: {location}: rank {rank!r}; vLLM applies 1 to {RANKS[-1]}{merged}")
    note = _check_base(setting, location, ref.base(setting), model)
    _check_shapes(setting, location, folder, model)
    return Adapter(name, str(folder), rank, note)


def adapter_flags(adapters: Collection[Adapter], on_gpu: bool) -> list[str]:
    """Returns the flags of `vllm serve` for adapters: all of them at once, of the largest rank.

    On a CPU one more slot is reserved, and stays empty: vLLM 0.27 applies what is in the last slot to requests without an adapter
    in a batch with one that has (index -1 in `vllm/lora/ops/torch_ops`).
    """
    if not adapters:
        return []
    rank = next(rank for rank in RANKS if rank >= max(each.rank for each in adapters))
    modules = [json.dumps({"name": each.name, "path": each.folder}) for each in adapters]
    slots = str(len(modules) + (not on_gpu))
    flags = ["--enable-lora", "--max-lora-rank", str(rank), "--max-loras", slots, "--max-cpu-loras", slots]
    return [*flags, "--lora-modules", *modules]


def _check_base(setting: str, location: str, base: ModelRef, model: ModelRef) -> str | None:
    """Raises UserError if an adapter names another model; returns a note where that cannot be known."""
    if base.path == model.path or Path(base.path).expanduser().resolve() == Path(model.path).expanduser().resolve():
        return None
    if base.is_local and not _exists(base):
        return f"{setting}: its base {base.path} does not exist here; only the shapes of its weights were compared"
    if base.is_local and model.is_local and _weights(base) == _weights(model):
        return None
    if (
        not (base.is_local and model.is_local)
        and base.path.rpartition("/")[2] == model.path.rstrip("/").rpartition("/")[2]
    ):
        return f"{setting}: its base {base.path} was taken for {model.path}, by its name"
    raise UserError(
        f"{setting}: {location} is an adapter of {base.path}, and the served model is {model.path}; serve its own model, or set "
        f"base_model_name_or_path in its {ADAPTER_CONFIG} if it is to be applied to this one"
    )


def _exists(base: ModelRef) -> bool:
    return Folder.at(base.path).without_retry().exists("config.json")


def _weights(model: ModelRef) -> dict[str, tuple[int, bytes]]:
    """Returns size and both ends of each file of weights."""
    folder = Folder.at(model.path).without_retry()
    sizes = {name: size for name, size in folder.sizes().items() if Path(name).suffix in WEIGHT_SUFFIXES}
    return {name: (size, folder.read_ends(name, SAMPLE_BYTES)) for name, size in sizes.items()}


def _check_shapes(setting: str, location: str, folder: Path, model: ModelRef) -> None:
    """Raises UserError if an adapter's matrices do not fit the model's. A model that is not a local folder is left to vLLM."""
    is_plain = model.format is Format.PLAIN and Path(model.path).is_dir() and not quantization(model.config(setting))
    base = dict(_shapes(Path(model.path))) if is_plain else {}
    for name, (rows, columns) in _shapes(folder):
        part = next((part for part in PARTS if name.endswith(part)), None)
        if not base or part is None:
            continue
        layer = name.removeprefix(PREFIX).removesuffix(part)
        if layer == OUTPUT and f"{layer}.weight" not in base:
            continue  # the weights of the embedding
        if (shape := base.get(f"{layer}.weight")) is None:
            raise UserError(
                f"{setting}: {location} has weights for {layer}, which {model.path} lacks: it is of another model"
            )
        found, expected = (columns, shape[1]) if part == PARTS[0] else (rows, shape[0])
        if found != expected:
            raise UserError(
                f"{setting}: {location} has {found} features for {layer}, and {model.path} has {expected}: it is of another model"
            )


def _shapes(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yields names and shapes of the matrices in a folder's files of weights."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="np") as tensors:
            for name in tensors.keys():  # noqa: SIM118
                if len(shape := tensors.get_slice(name).get_shape()) == 2:
                    yield name, shape
