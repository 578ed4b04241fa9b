"""The Transformers engine, for architectures that vLLM does not support, and the oracle for the vLLM engine in tests.

Legend: B requests of a batch, T tokens of the longest answer, N positions, V vocabulary, K top-k.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int

from profuser.engines.base import Request, Response
from profuser.engines.device import context_length, device, resolve_dtype
from profuser.errors import EngineError, one_line
from profuser.models.classes import backbone, language_model_class
from profuser.models.output_head import OutputHead, head_fits
from profuser.recipe.engine import EngineConfig
from profuser.signals.codec import TopK

BATCH_TOKENS = 4096
"""Tokens of a batch on a CPU, padding and those to be generated included."""
BATCH_MEMORY = 0.1
"""Share of a GPU's free memory that the forward pass of a teacher-forced batch, or the KV cache of a generated one, may fill."""
FORWARD_WIDTH = 16
"""Values that a token takes in a forward pass, as a multiple of the hidden size: a choice, above what the blocks of Llamas hold."""
ROUND_TOKENS = 128
"""Tokens that a batch of answers generates before the unfinished ones are batched again, so that long ones delay no other."""
READ_TOKENS = 1024
"""Positions whose logits are read at a time."""


class TransformersEngine:
    """An `AutoModelForCausalLM`, run in batches of requests of similar length."""

    def __init__(self, path: str, revision: str | None, config: EngineConfig, end_ids: Sequence[int] = ()):
        from transformers import AutoConfig, AutoTokenizer

        options: dict[str, Any] = {"revision": revision, "trust_remote_code": config.trust_remote_code}
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path, **options)
            factory = language_model_class(AutoConfig.from_pretrained(path, **options))
            model: Any = factory.from_pretrained(path, dtype=resolve_dtype(config.dtype, path, revision), **options)
        except (RuntimeError, ValueError, OSError, ImportError) as error:
            text = one_line(error)
            raise EngineError(f"{path}: Transformers could not load the model: {text}") from error
        self.model = model.to(device()).eval()
        self.max_model_len = context_length(self.model.config, config)
        self.vocab_size = self.model.get_output_embeddings().weight.shape[0]
        self.head = OutputHead.of(self.model) if head_fits(self.model) else None
        """Makes logits only where they are read; None if only the model itself can make its logits."""
        per_forced = FORWARD_WIDTH * self.head.weight.shape[1] if self.head else self.vocab_size
        self.batch_tokens = _batch_tokens(self.model, per_forced)
        own_end = self.model.generation_config.eos_token_id
        own = own_end if isinstance(own_end, list) else [own_end] if own_end is not None else []
        self.end_ids = sorted({*end_ids, *own})
        self.waiting: dict[int, Request] = {}
        self.begun: dict[int, Response] = {}
        """Answers so far, of waiting requests."""
        self.num_tokens = 0
        """Tokens of finished requests since the engine was loaded."""
        pad_id = self.tokenizer.pad_token_id
        # Many tokenizers have an added padding token that the model has no embedding for.
        self.pad_id = pad_id if pad_id is not None and pad_id < self.vocab_size else 0

    def add(self, number: int, request: Request) -> None:
        """See `SourceEngine.add`."""
        self.waiting[number] = request

    @torch.inference_mode()
    def step(self) -> list[tuple[int, Response]]:
        """See `SourceEngine.step`: one batch of similar requests. Greedy answers do not depend on the batch; sampled ones do."""
        left = {number: self._left(number) for number in self.waiting}
        batch = _batch(left, self.batch_tokens)
        requests = [left[number] for number in batch]
        if not requests:
            return []
        if requests[0].response_ids is None:
            begun = [self.begun.pop(number, None) for number in batch]
            responses = [_joined(*each) for each in zip(begun, self._generate(requests), strict=True)]
        else:
            responses = list(self._force(requests))
        finished = []
        for number, response in zip(batch, responses, strict=True):
            if self._is_unfinished(response, self.waiting[number]):
                self.begun[number] = response
            else:
                self.num_tokens += len(self.waiting.pop(number).prompt_ids) + len(response.ids)
                finished.append((number, response))
        return finished

    def _is_unfinished(self, response: Response, request: Request) -> bool:
        """Returns whether an answer neither ended nor reached its limit or a text that stops it."""
        if response.finish_reason != "length" or len(response.ids) >= request.max_tokens:
            return False
        return not (request.stop and any(stop in self.tokenizer.decode(response.ids) for stop in request.stop))

    def _left(self, number: int) -> Request:
        """Returns what the next batch can do of a waiting request: an answer that is begun is part of the prompt."""
        request = self.waiting[number]
        begun = self.begun[number].ids.tolist() if number in self.begun else []
        max_tokens = min(request.max_tokens - len(begun), ROUND_TOKENS)
        return replace(request, prompt_ids=request.prompt_ids + begun, max_tokens=max_tokens)

    def _padded(self, sequences: list[list[int]], left: bool) -> dict[str, torch.Tensor]:
        width = max(map(len, sequences))
        ids = torch.full((len(sequences), width), self.pad_id)
        mask = torch.zeros_like(ids)
        for row, sequence in enumerate(sequences):
            place = slice(width - len(sequence), width) if left else slice(0, len(sequence))
            ids[row, place] = torch.tensor(sequence)
            mask[row, place] = 1
        return {"input_ids": ids.to(self.model.device), "attention_mask": mask.to(self.model.device)}

    def _force(self, requests: list[Request]) -> Iterator[Response]:
        sequences = [r.prompt_ids + (r.response_ids or []) for r in requests]
        inputs = self._padded(sequences, left=False)
        if self.head:
            found, to_logits = backbone(self.model)(**inputs, use_cache=False).last_hidden_state, self.head.logits
        else:
            found, to_logits = self.model(**inputs, use_cache=False).logits, lambda logits: logits
        given = [np.asarray(r.response_ids, dtype=np.int64) for r in requests]
        lengths = [len(ids) for ids in given]
        rows = np.repeat(np.arange(len(given)), lengths)
        places = np.concatenate([len(r.prompt_ids) - 1 + np.arange(n) for r, n in zip(requests, lengths, strict=True)])
        index = [torch.from_numpy(each).to(found.device) for each in (rows, places, np.concatenate(given))]
        parts = [
            _read(to_logits(found[row, place]), own, requests[0].top_k)
            for row, place, own in zip(*(each.split(READ_TOKENS) for each in index), strict=True)
        ]
        own, ids, logprobs = (torch.cat(each).cpu().numpy() for each in zip(*parts, strict=True))
        ends = np.cumsum(lengths)
        for end, length, response in zip(ends, lengths, given, strict=True):
            part = slice(end - length, end)
            yield Response(response, own[part], TopK(ids[part], logprobs[part]), "given")

    def _generate(self, requests: list[Request]) -> Iterator[Response]:
        generation = requests[0].generation
        torch.manual_seed(requests[0].seed + len(requests[0].prompt_ids))
        sampling = {
            "temperature": generation.temperature,
            "top_p": generation.top_p,
            "top_k": generation.top_k or 0,
            "min_p": generation.min_p,
        }
        inputs = self._padded([r.prompt_ids for r in requests], left=True)
        steps = StepReader(requests[0].top_k)
        with steps.reading(self.model):
            sequences = self.model.generate(
                **inputs,
                max_new_tokens=max(r.max_tokens for r in requests),
                do_sample=generation.temperature > 0,
                **(sampling if generation.temperature > 0 else {}),
                repetition_penalty=generation.repetition_penalty,
                eos_token_id=self.end_ids or None,
                pad_token_id=self.pad_id,
            )
        own, top_ids, logprobs = steps.finish(sequences[:, -1])
        answers = sequences[:, inputs["input_ids"].shape[1] :].cpu().numpy()
        for row, request in enumerate(requests):
            ids = answers[row][: request.max_tokens]
            ends = np.flatnonzero(np.isin(ids, self.end_ids))
            ids = ids[: ends[0] + 1] if len(ends) else ids
            kept = row, slice(len(ids))
            topk = TopK(top_ids[kept], logprobs[kept])
            yield Response(ids.astype(np.int64), own[kept], topk, "stop" if len(ends) else "length")

    def close(self) -> None:
        """Frees the model's memory."""
        del self.model


class StepReader:
    """Reads the logits of each generation step as it runs, and keeps only the top-k and the log-probability of the token itself.

    Transformers can keep the logits of all steps instead: 5 GB for 32 answers of 256 tokens over a vocabulary of 150,000.
    """

    def __init__(self, top_k: int):
        self.top_k = top_k
        self._logits: torch.Tensor | None = None
        self._steps: list[tuple[torch.Tensor, ...]] = []

    @contextmanager
    def reading(self, model: Any) -> Iterator[None]:
        """Reads each forward pass of the model in this context as a step; its input is the token that the previous step chose."""

        def read(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            if self._logits is not None:
                self._steps.append(_read(self._logits, kwargs["input_ids"][:, -1], self.top_k))
            self._logits = output.logits[:, -1]

        handle = model.register_forward_hook(read, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def finish(self, last: Int[torch.Tensor, "B"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns own log-probabilities `[B, T]`, and ids and log-probabilities of the top-k `[B, T, K]`, given the last tokens."""
        assert self._logits is not None
        self._steps.append(_read(self._logits, last, self.top_k))
        own, ids, logprobs = (torch.stack(each, dim=1).cpu().numpy() for each in zip(*self._steps, strict=True))
        return own, ids, logprobs


def _joined(begun: Response | None, new: Response) -> Response:
    """Returns an answer's first part and its continuation as one."""
    if begun is None:
        return new
    ids, logprobs = (np.concatenate([getattr(part, name) for part in (begun, new)]) for name in ("ids", "logprobs"))
    topk = TopK(*(np.concatenate([getattr(p.topk, name) for p in (begun, new)]) for name in ("ids", "logprobs")))
    return Response(ids, logprobs, topk, new.finish_reason)


def _read(
    logits: Float[torch.Tensor, "N V"], own: Int[torch.Tensor, "N"], top_k: int
) -> tuple[Float[torch.Tensor, "N"], Int[torch.Tensor, "N K"], Float[torch.Tensor, "N K"]]:
    """Returns log-probabilities of given tokens, and ids and log-probabilities of the top-k, in float32."""
    total = logits.float().logsumexp(-1, keepdim=True)
    top = logits.topk(top_k, dim=-1)
    return (logits.gather(-1, own[:, None]).float() - total)[:, 0], top.indices, top.values.float() - total


@dataclass(frozen=True)
class BatchTokens:
    """Tokens of a batch, padding and the longest allowed answers included."""

    forced: int
    generated: int


def _batch_tokens(model: Any, per_forced: int) -> BatchTokens:
    """Returns the tokens of a batch that fill `BATCH_MEMORY` of a GPU; `per_forced` is about the values that one takes in a forward
    pass."""
    if model.device.type != "cuda":
        return BatchTokens(BATCH_TOKENS, BATCH_TOKENS)
    config = model.config.get_text_config()
    num_heads = config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    cached = 2 * config.num_hidden_layers * (getattr(config, "num_key_value_heads", None) or num_heads) * width
    values = BATCH_MEMORY * torch.cuda.mem_get_info()[0] / model.dtype.itemsize
    return BatchTokens(*(max(BATCH_TOKENS, int(values / per_token)) for per_token in (per_forced, cached)))


def _batch(waiting: Mapping[int, Request], limits: BatchTokens) -> list[int]:
    """Returns numbers of requests of one kind and similar length, shortest first, whose padded tokens are within the limit."""

    def kind(request: Request) -> tuple:
        return request.response_ids is None, request.top_k, request.generation.model_dump_json()

    def length(number: int) -> int:
        request = waiting[number]
        return len(request.prompt_ids) + len(request.response_ids or []) + request.max_tokens

    first = next(iter(waiting), None)
    if first is None:
        return []
    limit = limits.generated if waiting[first].response_ids is None else limits.forced
    alike = sorted((n for n, request in waiting.items() if kind(request) == kind(waiting[first])), key=length)
    batch: list[int] = []
    for number in alike:
        if batch and length(number) * (len(batch) + 1) > limit:
            break
        batch.append(number)
    return batch
