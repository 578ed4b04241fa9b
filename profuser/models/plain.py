"""Makes plain model folders, once per machine in the cache: GGUF files and FP8 weights are dequantised, LoRA adapters are merged.

What Transformers and peft read is written as Transformers saves it, so that engines, training and export need no other format.
"""

import json
import shutil
import struct
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from profuser.errors import UserError, one_line
from profuser.models.formats import ADAPTER_CONFIG, TOKENIZER_FILES
from profuser.models.hub import SMALL_FILES
from profuser.storage.cache import CACHE, exclusive

PLAIN = CACHE / "plain"
CONFIG = "config.json"
SHARD_SIZE = "5GB"
TYPES = {0: "float32", 1: "float16"}
"""Type of the dequantised weights by GGUF's `general.file_type`; all others become bfloat16."""
SAVED = ("embed_tokens", "lm_head")
"""Layers that an adapter may hold whole, with rows for added tokens."""

CANNOT_CONVERT = (ValueError, OSError, ImportError, RuntimeError, LookupError, NotImplementedError, struct.error)
"""What Transformers and peft raise for a file that they do not support, or that is damaged."""

Write = Callable[[Path], None]


def make_plain(digest: str, what: str, header: Write, weights: Write | None) -> Path:
    """Returns a plain folder of the cache, made by the first process of this machine that needs it.

    Args:
        digest: digest of what it is made from.
        what: the model and its format, for messages.
        header: writes config and tokenizer.
        weights: writes the weights; None if they are not needed.

    Raises:
        UserError: the model cannot be converted.
    """
    whole, light = PLAIN / digest / "model", PLAIN / digest / "header"
    with exclusive(f"plain {digest}"):
        if whole.is_dir() or (light.is_dir() and weights is None):
            return whole if whole.is_dir() else light
        if weights is not None:
            print(f"{what}: converted once into {whole}", flush=True)
        target = light if weights is None else whole
        temporary = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            for write in (weights, header):
                if write is not None:
                    write(temporary)
            temporary.replace(target)
        except CANNOT_CONVERT as error:
            raise UserError(f"{what}: it cannot be converted: {one_line(error)}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def gguf_header(file: Path) -> Write:
    """Returns a function that writes the config, tokenizer and chat template of a GGUF file."""

    def write(folder: Path) -> None:
        from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig, AutoTokenizer

        given = {"gguf_file": file.name}
        config = AutoConfig.from_pretrained(file.parent, **given)
        known: Any = MODEL_FOR_CAUSAL_LM_MAPPING
        config.architectures = [known[type(config)].__name__]
        config.dtype = _gguf_type(file)
        config.save_pretrained(folder)
        AutoTokenizer.from_pretrained(file.parent, **given).save_pretrained(folder)

    return write


def gguf_weights(file: Path) -> Write:
    """Returns a function that writes the dequantised weights of a GGUF file."""

    def write(folder: Path) -> None:
        from accelerate import init_empty_weights
        from transformers import AutoModelForCausalLM, GgufConfig

        dtype = _gguf_type(file)
        unpacked = GgufConfig(dequantize=True)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=dtype, quantization_config=unpacked
        )
        settings = model.config
        for name in ("quantization_config", "_pre_quantization_dtype"):
            if hasattr(settings, name):
                delattr(settings, name)
        # A model that was loaded from GGUF refuses to be saved.
        with init_empty_weights():
            plain = AutoModelForCausalLM.from_config(settings, dtype=dtype)
        plain.tie_weights()
        plain.save_pretrained(folder, state_dict=model.state_dict(), max_shard_size=SHARD_SIZE)

    return write


def dequantised_header(source: Path) -> Write:
    """Returns a function that copies a folder's small files, with a config that names no quantisation."""

    def write(folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for file in (file for pattern in SMALL_FILES for file in source.glob(pattern)):
            if not file.name.endswith(".index.json"):
                shutil.copyfile(file, folder / file.name)
        config = json.loads((source / CONFIG).read_text(encoding="utf-8"))
        for part in (config, config.get("text_config") or {}):
            part.pop("quantization_config", None)
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    return write


def dequantised_weights(source: Path) -> Write:
    """Returns a function that writes FP8 weights multiplied by their scales, in bfloat16 or the config's type."""

    def write(folder: Path) -> None:
        import torch
        from transformers import AutoConfig, FineGrainedFP8Config

        from profuser.models.classes import language_model_class

        config = AutoConfig.from_pretrained(source)
        dtype: Any = config.dtype or config.get_text_config().dtype or torch.bfloat16
        model = language_model_class(config).from_pretrained(
            source, dtype=dtype, quantization_config=FineGrainedFP8Config(dequantize=True)
        )
        model.save_pretrained(folder, max_shard_size=SHARD_SIZE)

    return write


def adapted_header(adapter: Path, base: Path) -> Write:
    """Returns a function that writes the base's config, and the adapter's tokenizer, or the base's if the adapter has none."""

    def write(folder: Path) -> None:
        dequantised_header(base)(folder)
        for name in TOKENIZER_FILES if (adapter / "tokenizer_config.json").is_file() else ():
            (folder / name).unlink(missing_ok=True)
            if (adapter / name).is_file():
                shutil.copyfile(adapter / name, folder / name)
        if rows := _saved_rows(adapter):
            config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
            (config if "vocab_size" in config else config["text_config"])["vocab_size"] = rows
            (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")

    return write


def merged_weights(adapter: Path, base: Path) -> Write:
    """Returns a function that writes the base's weights with a LoRA adapter merged."""

    def write(folder: Path) -> None:
        from peft import PeftModel
        from transformers import AutoConfig

        from profuser.models.classes import language_model_class

        config = AutoConfig.from_pretrained(base)
        model = language_model_class(config).from_pretrained(base, dtype="auto")
        if (rows := _saved_rows(adapter)) and rows != model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(rows)
        merged: Any = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
        merged.save_pretrained(folder, max_shard_size=SHARD_SIZE)

    return write


def adapter_base(adapter: Path, setting: str) -> tuple[str, str | None]:
    """Returns the model that an adapter belongs to, and its revision.

    Raises:
        UserError: the adapter names none, or is of a kind that cannot be merged into a language model.
    """
    config = json.loads((adapter / ADAPTER_CONFIG).read_text(encoding="utf-8"))
    base = config.get("base_model_name_or_path")
    if not base:
        raise UserError(f"{setting}: {adapter / ADAPTER_CONFIG} names no base_model_name_or_path; add it")
    if (task := config.get("task_type")) not in (None, "CAUSAL_LM"):
        raise UserError(f"{setting}: {adapter}: an adapter for {task} cannot be merged into a language model")
    return base, config.get("revision") or None


def _saved_rows(adapter: Path) -> int | None:
    """Returns the rows of an embedding or output layer that an adapter holds whole; None if it holds neither."""
    from safetensors import safe_open

    file = adapter / "adapter_model.safetensors"
    if not file.is_file():
        return None
    with safe_open(file, framework="np") as tensors:
        names = [name for name in tensors.keys() if any(f".{layer}.weight" in f".{name}" for layer in SAVED)]  # noqa: SIM118
        return tensors.get_slice(names[0]).get_shape()[0] if names else None


def _gguf_type(file: Path) -> Any:
    import torch
    from transformers.integrations.gguf.reader import read_gguf_metadata

    metadata, _ = read_gguf_metadata(str(file))
    return getattr(torch, TYPES.get(metadata.get("general.file_type", -1), "bfloat16"))
