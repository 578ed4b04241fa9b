"""Reads corpus rows with one source: teacher-forces the ground truth and generates answers, in one batch of requests.

Training mode: the ground truth, teacher-forced. Inference mode: the source's own answers, whose distributions come from the same
pass that generated them.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pyarrow as pa

from profuser.alignment.source_signals import NextSteps, SourceSignals
from profuser.alignment.token_bytes import Role, TokenBytes
from profuser.corpus import EncodedExample, Message, encode_examples
from profuser.engines.base import ReadSettings, Request, Response, SourceEngine
from profuser.engines.loop import EngineLoop
from profuser.recipe.models import TemplateConfig
from profuser.signals.codec import RaggedTopK, TopK

RowDone = Callable[[], None]
MAX_CHARACTER_BYTES = 4
"""Maximum number of bytes of a character in UTF-8."""


@dataclass
class RowSignals:
    """A source's signals for one row."""

    row_id: str
    response_bytes: int
    refused: str | None = None
    """Reason why the source refused the row; the other signals are then missing."""
    training: Response | None = None
    answers: list[Response] = field(default_factory=list)
    texts: list[str | None] = field(default_factory=list)
    """Texts of the answers; None for one that is blank or not text."""


class SourceReader:
    """Reads corpus rows with an engine. Several threads may read concurrently; their requests share batches.

    Raises:
        AlignmentError: the tokenizer cannot be expressed in bytes.
    """

    def __init__(self, engine: SourceEngine, template: TemplateConfig):
        self.engine, self.template = engine, template
        ends = getattr(engine, "end_ids", ())
        self.tokens = TokenBytes.from_tokenizer(engine.tokenizer, engine.vocab_size, ends)
        self.loop = EngineLoop(engine)

    def read(self, rows: pa.Table, how: ReadSettings, row_done: RowDone | None = None) -> list[RowSignals]:
        """Reads all rows of a table of the corpus schema.

        Args:
            rows: what to read.
            how: settings of generation and of the distributions.
            row_done: called, in the engine's thread, when all responses to a row have arrived.

        Returns:
            One entry per row, in order; a row that exceeds the source's context is refused with the reason.
        """
        signals, requests, owners = [], [], []
        records = rows.to_pylist()
        for row, encoded in zip(records, self._encode(records), strict=True):
            entry = RowSignals(row["row_id"], len(row["response"].encode()), self._refusal(encoded))
            signals.append(entry)
            if entry.refused is None:
                requests.append(Request(encoded.prompt_ids, how.top_k, encoded.response_ids))
                requests += self._answer_requests(row["row_id"], encoded.prompt_ids, how)
                owners.append(entry)
        responses = iter(self.loop.run(requests, row_done and _by_row(row_done, 1 + how.num_samples, len(owners))))
        for entry in owners:
            entry.training = next(responses)
            entry.answers = [self.whole(next(responses)) for _ in range(how.num_samples)]
            entry.texts = [self.text(answer) for answer in entry.answers]
        return signals

    def force(
        self, rows: list[dict], response_ids: list[list[int]], top_k: int, row_done: RowDone | None = None
    ) -> list[Response]:
        """Teacher-forces given responses, in the source's own tokens, after the prompts of corpus rows; `row_done` as in `read`."""
        pairs = zip(self._encode(rows), response_ids, strict=True)
        requests = [Request(encoded.prompt_ids, top_k, response) for encoded, response in pairs]
        return self.loop.run(requests, row_done and _by_row(row_done, 1, len(requests)))

    def step_after(
        self, rows: list[dict], signals: SourceSignals, used_up: tuple[np.ndarray, np.ndarray], top_k: int
    ) -> NextSteps:
        """Requests the distributions of the token after candidates, each substituted for a response token.

        A request ends with the candidate and generates one token: an engine with a prefix cache reads little more than that.

        Args:
            rows: corpus rows.
            signals: the source's signals along a response to each row.
            used_up: positions among all tokens of `signals`, ascending, and the candidates to put there.
            top_k: K of the distributions.

        Returns:
            The steps, without those that exceed the source's context.
        """
        prompts, owners = [encoded.prompt_ids for encoded in self._encode(rows)], signals.ids.row_of
        requests, kept = [], []
        for place, (position, candidate) in enumerate(zip(*(part.tolist() for part in used_up), strict=True)):
            row = int(owners[position])
            before = signals.ids.values[signals.ids.offsets[row] : position].tolist()
            request = Request([*prompts[row], *before, candidate], top_k, max_tokens=1)
            if len(request.prompt_ids) < self.engine.max_model_len:
                requests.append(request)
                kept.append(place)
        found = [response.topk for response in self.loop.run(requests)]
        none = TopK(np.zeros((0, top_k), dtype=np.int32), np.zeros((0, top_k), dtype=np.float32))
        topk = RaggedTopK.from_rows([none, *found]).topk
        return NextSteps(used_up[0][kept], used_up[1][kept], topk)

    def _encode(self, rows: list[dict]) -> list[EncodedExample]:
        examples = [([Message(m["role"], m["content"]) for m in row["messages"]], row["response"]) for row in rows]
        return encode_examples(self.engine.tokenizer, examples, self.template)

    def _answer_requests(self, row_id: str, prompt_ids: list[int], how: ReadSettings) -> list[Request]:
        limit = min(how.generation.max_tokens, self.engine.max_model_len - len(prompt_ids))
        seeds = [_seed(how.seed, row_id, sample) for sample in range(how.num_samples)]
        return [
            Request(prompt_ids, how.top_k, generation=how.generation, max_tokens=limit, seed=seed) for seed in seeds
        ]

    def _refusal(self, encoded: EncodedExample) -> str | None:
        total, limit = len(encoded.prompt_ids) + len(encoded.response_ids), self.engine.max_model_len
        if total >= limit:
            return f"prompt and response are {total} tokens; this source takes fewer than {limit}"
        return None

    def whole(self, response: Response) -> Response:
        """Returns an answer, without the tokens of its last character if the length limit cut it inside that character."""
        for dropped in range(MAX_CHARACTER_BYTES if response.finish_reason == "length" else 0):
            kept = slice(0, max(0, len(response.ids) - dropped))
            if _decoded(self.tokens.spell(response.ids[kept])) is not None:
                return replace(
                    response, ids=response.ids[kept], logprobs=response.logprobs[kept], topk=response.topk[kept]
                )
        return response

    def text(self, response: Response) -> str | None:
        """Returns the answer's text from its tokens' bytes; None if it is blank, not UTF-8, or contains a special token."""
        roles = self.tokens.roles[response.ids]
        ended = bool(len(roles)) and roles[-1] == Role.END
        if (roles[: len(roles) - ended] != Role.TEXT).any():
            return None
        text = _decoded(self.tokens.spell(response.ids))
        return text.removeprefix(" ") if text and text.strip() else None


def _by_row(row_done: RowDone, per_row: int, num_rows: int) -> Callable[[int], None]:
    """Returns a function of a request's index that calls `row_done` with the last of a row's `per_row` requests."""
    left = [per_row] * num_rows

    def answered(index: int) -> None:
        left[index // per_row] -= 1
        if not left[index // per_row]:
            row_done()

    return answered


def _decoded(spelt: bytes) -> str | None:
    try:
        return spelt.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _seed(seed: int, row_id: str, sample: int) -> int:
    """Returns the seed of a row's sample, below 2**31 and independent of shard, batch and order."""
    text = f"{seed}/{row_id}/{sample}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big") >> 1
