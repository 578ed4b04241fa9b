"""The vLLM engine: continuous batching for both kinds of requests at once."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from profuser.engines.base import Request, Response
from profuser.engines.device import vllm_arguments
from profuser.errors import EngineError, one_line
from profuser.recipe.models import EngineConfig
from profuser.signals.codec import TopK

# One process per actor: simpler to kill, and nothing is copied from and to an engine core.
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
for _name, _value in ENVIRONMENT.items():
    # Set before the first import of vLLM, which reads them.
    os.environ.setdefault(_name, _value)


def unsupported_reason(path: str, revision: str | None, trust_remote_code: bool) -> str | None:
    """Returns why the installed vLLM cannot run a model, or None if it can."""
    try:
        from vllm.model_executor.models import ModelRegistry
    except ImportError as error:
        return f"vLLM cannot be imported ({error})"
    from transformers import AutoConfig

    architectures = AutoConfig.from_pretrained(
        path, revision=revision, trust_remote_code=trust_remote_code
    ).architectures or ["unknown"]
    known = set(ModelRegistry.get_supported_archs())
    missing = [name for name in architectures if name not in known]
    return f"vLLM does not support {missing[0]}" if missing else None


class VllmEngine:
    """A `vllm.LLM` in this process."""

    def __init__(self, path: str, revision: str | None, config: EngineConfig, end_ids: Sequence[int] = ()):
        import vllm
        from vllm.sampling_params import RequestOutputKind

        try:
            self.llm = vllm.LLM(path, revision=revision, max_logprobs=64, **vllm_arguments(config))
        except (RuntimeError, ValueError, TypeError, OSError, AssertionError, NotImplementedError) as error:
            raise EngineError(_load_failure(path, error)) from error
        self.tokenizer: Any = self.llm.get_tokenizer()
        model_config = self.llm.llm_engine.model_config
        self.max_model_len = int(model_config.max_model_len)
        self.vocab_size = int(model_config.get_vocab_size())
        self.end_ids = sorted(set(end_ids))
        self.requests: dict[str, Request] = {}
        # vLLM looks up its package's names again at every access.
        self._make_prompt, self._make_parameters = vllm.TokensPrompt, vllm.SamplingParams
        # No text of candidates, no partial answers, no copies of the parameters; log-probabilities as flat lists of numbers.
        self._common: dict[str, Any] = {
            "detokenize": False,
            "output_kind": RequestOutputKind.FINAL_ONLY,
            "skip_clone": True,
            "flat_logprobs": True,
        }

    def add(self, number: int, request: Request) -> None:
        """See `SourceEngine.add`. The scheduler mixes both kinds of requests."""
        self.requests[str(number)] = request
        prompt = self._make_prompt(prompt_token_ids=request.prompt_ids + (request.response_ids or []))
        self.llm.llm_engine.add_request(str(number), prompt, self._parameters(request))

    def step(self) -> list[tuple[int, Response]]:
        """See `SourceEngine.step`: one step of the scheduler."""
        outputs = [output for output in self.llm.llm_engine.step() if output.finished]
        return [(int(output.request_id), _response(self.requests.pop(output.request_id), output)) for output in outputs]

    @property
    def num_running(self) -> int:
        """Number of requests in the scheduler's batch; the others wait for a slot or for memory."""
        core = getattr(self.llm.llm_engine.engine_core, "engine_core", None)  # None if it is a separate process
        return len(core.scheduler.running) if core else len(self.requests)

    def _parameters(self, request: Request) -> Any:
        if request.response_ids is not None:
            return self._make_parameters(max_tokens=1, prompt_logprobs=request.top_k, **self._common)
        generation = request.generation
        return self._make_parameters(
            max_tokens=request.max_tokens,
            temperature=generation.temperature,
            top_p=generation.top_p,
            top_k=generation.top_k or 0,
            min_p=generation.min_p,
            repetition_penalty=generation.repetition_penalty,
            seed=request.seed,
            stop_token_ids=self.end_ids,
            logprobs=request.top_k,
            **self._common,
        )

    def close(self) -> None:
        """Stops the engine and frees its memory."""
        del self.llm


def _response(request: Request, output: Any) -> Response:
    """Converts a finished output of vLLM, with log-probabilities in its flat form (`FlatLogprobs`)."""
    if request.response_ids is not None:
        ids, reason, found = request.response_ids, "given", output.prompt_logprobs
        first = len(request.prompt_ids) - 1  # vLLM stores nothing for a prompt's first position
    else:
        ids, reason, found = output.outputs[0].token_ids, output.outputs[0].finish_reason, output.outputs[0].logprobs
        first = 0
    # K + 1 entries a position: the token itself, then ranks 1..K.
    token_ids = np.array(found.token_ids, dtype=np.int32).reshape(-1, request.top_k + 1)[first:]
    logprobs = np.array(found.logprobs, dtype=np.float32).reshape(-1, request.top_k + 1)[first:]
    return Response(
        ids=np.asarray(ids, dtype=np.int64),
        logprobs=logprobs[:, 0],
        topk=TopK(ids=token_ids[:, 1:], logprobs=logprobs[:, 1:]),
        finish_reason=reason,
    )


def _load_failure(path: str, error: BaseException) -> str:
    text = one_line(error)
    low = text.lower()
    if "out of memory" in low or "no available memory" in low or "free memory" in low:
        remedy = "lower engine.max_model_len or raise engine.tensor_parallel_size or engine.gpu_memory_utilization"
    elif "max_model_len" in low or "max seq len" in low:
        remedy = "set engine.max_model_len to what the model allows"
    else:
        remedy = "try engine.kind: transformers"
    return f"{path}: vLLM could not load the model: {text}; {remedy}"
