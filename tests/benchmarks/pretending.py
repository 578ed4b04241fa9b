"""A fake source without a model: random answers and distributions in a real engine's format, as fast as possible."""

from typing import Any

import numpy as np

import profuser.engines.loading
from profuser.engines.base import Request, Response
from profuser.signals.codec import TopK
from ray_jobs.stages.collect import CollectWorker

NUM_ANSWERS, POOL_TOKENS, LONGEST = 16, 4096, 64


class PretendingEngine:
    """Stands in for `load_engine`, with only a model's tokenizer and vocabulary."""

    def __init__(self, path: str, revision: str | None, config: Any, end_ids: list[int]):
        from transformers import AutoConfig, AutoTokenizer

        self.tokenizer: Any = AutoTokenizer.from_pretrained(path)
        self.vocab_size = AutoConfig.from_pretrained(path).vocab_size
        self.max_model_len, self.end_ids = config.max_model_len, list(end_ids)
        texts = [f"{95 + number}" for number in range(NUM_ANSWERS)]
        encoded = [[*self.tokenizer.encode(text, add_special_tokens=False), *self.end_ids[:1]] for text in texts]
        self._answers = [np.array(ids, dtype=np.int64) for ids in encoded]
        random = np.random.default_rng(0)
        self._ids = random.integers(0, self.vocab_size, (POOL_TOKENS, LONGEST))
        self._logprobs = np.sort(-1 - random.exponential(3, (POOL_TOKENS, LONGEST)).astype(np.float32))[:, ::-1]
        self._waiting: list[tuple[int, Request]] = []

    def add(self, number: int, request: Request) -> None:
        self._waiting.append((number, request))

    def step(self) -> list[tuple[int, Response]]:
        waiting, self._waiting = self._waiting, []
        return [(number, self._respond(request)) for number, request in waiting]

    def close(self) -> None:
        pass

    def _respond(self, request: Request) -> Response:
        place = sum(request.prompt_ids)
        given = request.response_ids
        ids = self._answers[place % NUM_ANSWERS] if given is None else np.array(given, dtype=np.int64)
        start = place % (POOL_TOKENS - len(ids))
        part = slice(start, start + len(ids))
        candidates, logprobs = self._ids[part].copy(), self._logprobs[part]
        candidates[:, 0] = ids
        topk = TopK(candidates[:, : request.top_k], logprobs[:, : request.top_k])
        return Response(ids, logprobs[:, 0], topk, "stop" if given is None else "given")


class PretendingWorker(CollectWorker):
    """The actor of `collect`, with the fake engine."""

    def __init__(self, *arguments: Any):
        profuser.engines.loading.load_engine = PretendingEngine
        super().__init__(*arguments)
