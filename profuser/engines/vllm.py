"""The vLLM engine: continuous batching for both kinds of requests at once."""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from profuser.engines.base import Request, Response
from profuser.engines.device import device, vllm_arguments
from profuser.errors import EngineError, one_line
from profuser.recipe.engine import EngineConfig
from profuser.signals.codec import TopK

# One process per actor: simpler to kill, and nothing is copied from and to an engine core.
ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}
for _name, _value in ENVIRONMENT.items():
    # Set before the first import of vLLM, which reads them.
    os.environ.setdefault(_name, _value)

MESSAGE_CHARACTERS = 700
"""Characters of vLLM's own message in an error: what it says of memory is long, and has the numbers."""


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
            self.llm = vllm.LLM(path, revision=revision, max_logprobs=64, **vllm_arguments(config, path, revision))
        except (RuntimeError, ValueError, TypeError, OSError, AssertionError, NotImplementedError) as error:
            raise EngineError(_load_failure(path, error, config)) from error
        self.tokenizer: Any = self.llm.get_tokenizer()
        model_config = self.llm.llm_engine.model_config
        self.max_model_len = int(model_config.max_model_len)
        self.vocab_size = int(model_config.get_vocab_size())
        self.end_ids = sorted(set(end_ids))
        self.requests: dict[str, Request] = {}
        self._finished_tokens = 0
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
        found = [
            (int(output.request_id), _response(self.requests.pop(output.request_id), output)) for output in outputs
        ]
        self._finished_tokens += sum(_num_tokens(output) for output in outputs)
        return found

    @property
    def num_running(self) -> int:
        """Number of requests in the scheduler's batch; the others wait for a slot or for memory."""
        scheduler = self._scheduler
        return len(scheduler.running) if scheduler else len(self.requests)

    @property
    def num_tokens(self) -> int:
        """Tokens read and generated since the engine was loaded, those of unfinished requests included."""
        running = self._scheduler.running if self._scheduler else ()
        return self._finished_tokens + sum(request.num_computed_tokens for request in running)

    @property
    def _scheduler(self) -> Any:
        """The scheduler; None if the engine core is a separate process."""
        core = getattr(self.llm.llm_engine.engine_core, "engine_core", None)
        return core.scheduler if core else None

    def _parameters(self, request: Request) -> Any:
        if request.response_ids is not None:
            return self._make_parameters(max_tokens=1, prompt_logprobs=request.top_k, **self._common)
        generation = request.generation
        # Only with a text to stop at does vLLM need the answers' texts.
        common = self._common | {"stop": list(request.stop), "detokenize": bool(request.stop)}
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
            **common,
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


def _num_tokens(output: Any) -> int:
    return len(output.prompt_token_ids) + len(output.outputs[0].token_ids)


def _load_failure(path: str, error: BaseException, config: EngineConfig) -> str:
    text = one_line(error, MESSAGE_CHARACTERS)
    low = text.lower()
    if "kv cache is needed" in low and device() == "cpu":
        remedy = f"raise engine.kv_cache_gib ({config.kv_cache_gib:g}) or lower engine.max_model_len"
    elif "requested memory for kv" in low:
        remedy = f"lower engine.kv_cache_gib ({config.kv_cache_gib:g}), or free memory on this machine"
    elif any(words in low for words in ("out of memory", "no available memory", "free memory", "kv cache is needed")):
        remedy = "lower engine.max_model_len or raise engine.tensor_parallel_size or engine.gpu_memory_utilization"
    elif "max_model_len" in low or "max seq len" in low:
        remedy = "set engine.max_model_len to what the model allows"
    else:
        remedy = "try engine.kind: transformers"
    return f"{path}: vLLM could not load the model: {text}; {remedy}"
