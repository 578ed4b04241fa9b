"""Recognises how a model is stored: plain weights, a GGUF file, a LoRA adapter, or quantised weights. Light."""

from collections.abc import Collection, Mapping
from enum import Enum
from typing import Any

from profuser.errors import UserError

ADAPTER_CONFIG = "adapter_config.json"
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Files of which a folder of plain weights has at least one."""
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tekken.json",
    "chat_template.jinja",
)
GGUF = ".gguf"
FP8 = "fp8"
"""`quant_method` of weights in 8-bit floats with a scale for each block or tensor, which Transformers multiplies out."""


class Format(Enum):
    """How a model is stored."""

    PLAIN = "plain"
    GGUF = "gguf"
    ADAPTER = "adapter"


def format_of(names: Collection[str]) -> Format:
    """Returns the format of a folder with these files."""
    if any(name in names for name in WEIGHTS):
        return Format.PLAIN
    if ADAPTER_CONFIG in names:
        return Format.ADAPTER
    return Format.GGUF if gguf_files(names) else Format.PLAIN


def gguf_files(names: Collection[str]) -> list[str]:
    """Returns the GGUF files of a language model; `mmproj` files hold the vision part of a multimodal one."""
    return sorted(name for name in names if name.endswith(GGUF) and not name.startswith("mmproj"))


def only_gguf(names: Collection[str], setting: str, path: str) -> str:
    """Returns the one GGUF file of a folder; raises UserError if there are several."""
    found = gguf_files(names)
    if len(found) > 1:
        listed = ", ".join(found[:6])
        raise UserError(f"{setting}: {path!r} has {len(found)} GGUF files: {listed}; name one: {path}/{found[0]}")
    return found[0]


def quantization(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Returns the quantisation that a model's config.json states; None for plain weights."""
    text = config.get("text_config")
    # Older compressed-tensors checkpoints name it `compression_config`.
    for part in (config, text if isinstance(text, Mapping) else {}):
        if found := part.get("quantization_config") or part.get("compression_config"):
            return found
    return None


def quantization_name(settings: Mapping[str, Any]) -> str:
    """Returns the name of a quantisation, as users know it."""
    method = str(settings.get("quant_method") or "an unnamed method")
    if method == "bitsandbytes":
        return f"bitsandbytes, {'4' if settings.get('load_in_4bit') else '8'} bits"
    if method == "compressed-tensors":
        return f"compressed-tensors, {settings.get('format') or 'no format named'}"
    bits = settings.get("bits") or settings.get("w_bit")
    return f"{method}, {bits} bits" if bits else method


def check_can_be_trained(config: Mapping[str, Any], setting: str, path: str) -> None:
    """Raises UserError for quantised weights that are not FP8 with scales."""
    found = quantization(config)
    if found is not None and found.get("quant_method") != FP8:
        raise UserError(
            f"{setting}: {path}: its weights are quantised ({quantization_name(found)}), and such weights cannot be trained or "
            "merged; name the checkpoint that they were made from (its model card names it: base_model), or dequantise it once "
            "and save it; FP8 with scales and GGUF are dequantised automatically. A quantised model can be a source"
        )
