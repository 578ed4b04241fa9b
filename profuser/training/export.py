"""Exports the fused model as a plain Hugging Face folder: the target's files, with the fused weights in the same type, and with the
chat template and the end-of-turn token of its training.
"""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from profuser.corpus.rendering import chat_texts
from profuser.corpus.template import end_token_id
from profuser.errors import ArtifactError
from profuser.models.classes import language_model_class
from profuser.models.formats import TOKENIZER_FILES
from profuser.recipe.models import TargetConfig
from profuser.recipe.template import TemplateConfig
from profuser.training.lora import ADAPTER, MARK, adapted_layers, merged, plain_name, weight_name
from profuser.training.step import FusionModule

SHARD_SIZE = "5GB"
CONFIG, GENERATION = "config.json", "generation_config.json"
TOKENIZER, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
KEPT = (CONFIG, GENERATION, *TOKENIZER_FILES, "vocab.txt", "*.model", "*.tiktoken", "*.py", "LICENSE*", "NOTICE*")
"""Files copied unchanged from the target, so that tools that read the target also read the fused model. Code is copied for
tokenizers that need it, licences because they may have to be passed on."""


def export(module: FusionModule, target: str, config: TargetConfig, template: TemplateConfig, folder: Path) -> None:
    """Writes the fused model; adapters are merged into the weights.

    All workers gather the weights, one after another; the first worker collects and writes them. They have the target's type,
    except those that its architecture needs in another (routers' in float32).

    Args:
        module: the trained target.
        target: folder or Hub name that it was loaded from.
        config: the target's section of the recipe.
        template: template of the run's prompts.
        folder: output folder.

    Raises:
        ArtifactError: the weights do not match the target's architecture.
    """
    from accelerate import init_empty_weights
    from transformers import AutoConfig

    settings = AutoConfig.from_pretrained(target, revision=config.revision)
    dtype: Any = settings.dtype or settings.get_text_config().dtype or torch.float32
    with init_empty_weights(include_buffers=False):
        plain = language_model_class(settings).from_config(settings, dtype=dtype)
    plain.tie_weights()  # init_empty_weights untied them
    dtypes = {name: parameter.dtype for name, parameter in plain.named_parameters()}
    first = not dist.is_initialized() or dist.get_rank() == 0
    weights: dict[str, Tensor] = {}
    for name, weight in whole_weights(module.model):
        if first:
            weights[name] = weight.to("cpu", dtypes.get(name))
    if not first:
        return
    wrong = weights.keys() ^ {name for name, _ in whole_weights(plain)}
    if wrong:
        raise ArtifactError(
            f"fused model: weights missing from or unknown to {type(plain).__name__}: {sorted(wrong)[:3]}"
        )
    plain.save_pretrained(folder, state_dict=weights, max_shard_size=SHARD_SIZE)
    _copy_files(target, config.revision, folder, keep_config=type(plain.config) is type(settings))
    _write_turn_settings(template, config.engine.trust_remote_code, folder)


@torch.no_grad()
def whole_weights(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Yields the model's weights (on every worker), one after another, unsharded and under their names without adapters."""
    layers = {weight_name(name, layer): layer for name, layer in adapted_layers(model).items()}
    for name, parameter in model.named_parameters():
        if MARK in name:
            continue
        plain, weight = plain_name(name), _whole(parameter)
        if layer := layers.get(plain):
            a, b = (_whole(getattr(layer, part)[ADAPTER].weight) for part in ("lora_A", "lora_B"))
            weight = merged(layer, weight, a, b)
        yield plain, weight
    kept = model.state_dict().keys()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in kept)


def _whole(parameter: Tensor) -> Tensor:
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter.detach()


def _copy_files(target: str, revision: str | None, folder: Path, keep_config: bool) -> None:
    """Replaces files written by Transformers with the target's own.

    Its config stays out where the fused model is only the text part of a multimodal target (Llama 4), which has another.
    """
    there = Path(target)
    if not there.is_dir():
        from huggingface_hub import snapshot_download

        there = Path(snapshot_download(target, revision=revision, allow_patterns=list(KEPT)))
    for file in (file for pattern in KEPT for file in there.glob(pattern) if file.is_file()):
        if file.name != CONFIG or keep_config:
            shutil.copyfile(file, folder / file.name)
    # Training used Transformers' own class, not code shipped with the model; `_name_or_path` is obsolete.
    _edit(folder / CONFIG, auto_map=None, _name_or_path=None)


def _write_turn_settings(template: TemplateConfig, trust_remote_code: bool, folder: Path) -> None:
    """Writes the run's template if it is not the tokenizer's own, and makes generation stop at the end of a trained turn."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    text = served_text(tokenizer, template)
    if not tokenizer.chat_template or text != tokenizer.get_chat_template():
        (folder / TEMPLATE).write_text(text, encoding="utf-8")
        _edit(folder / TOKENIZER, chat_template=None)
    end = end_token_id(tokenizer, template)
    known = json.loads((folder / GENERATION).read_text()).get("eos_token_id")
    ends = known if isinstance(known, list) else [] if known is None else [known]
    if end not in ends:
        _edit(folder / GENERATION, eos_token_id=[*ends, end])


def served_text(tokenizer: Any, template: TemplateConfig) -> str:
    """Returns the chat template whose prompts are those of the training; its date is the day of the request."""
    texts = chat_texts(tokenizer, template.model_copy(update={"date": None}))
    return texts.asking if template.thinking == "keep" else texts.answering


def _edit(file: Path, **settings: Any) -> None:
    """Sets settings of a JSON file; removes those that are None."""
    if file.is_file():
        found = json.loads(file.read_text(encoding="utf-8")) | settings
        text = json.dumps({key: found[key] for key in found if settings.get(key, key) is not None}, indent=2)
        file.write_text(text + "\n", encoding="utf-8")
