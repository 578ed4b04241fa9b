"""Reads corpus rows with one source: teacher-forces the ground truth and generates answers, in one batch of requests.

Training mode: the ground truth, teacher-forced. Inference mode: the source's own answers, whose distributions come from the same
pass that generated them.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from profuser.alignment.source_signals import NextSteps, SourceSignals
from profuser.alignment.spans import misspelt
from profuser.alignment.token_bytes import TokenBytes
from profuser.corpus import EncodedExample, Message, Refusal, encode_examples, render_prompts
from profuser.corpus.thinking import begins_with_thinking
from profuser.engines.answers import Answer, AnswerReader
from profuser.engines.base import ReadSettings, Request, Response, SourceEngine, Usage
from profuser.engines.loop import EngineLoop
from profuser.errors import EngineError
from profuser.recipe.template import TemplateConfig
from profuser.signals.codec import RaggedTopK, TopK
from profuser.signals.ragged import Ragged

RowDone = Callable[[], None]


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
    """Texts of the answers; None for one that is none."""
    unreadable: list[str | None] = field(default_factory=list)
    """Why an answer has no text, a key of `UNREADABLE`."""
    thinking_tokens: int = 0
    """Tokens of thinking in the answers."""
    usage: Usage | None = None
    """Tokens of all requests, as a server counted them."""
    in_bytes: bool = False
    """Whether the tokenizer is not known: the ids of its responses are bytes, or their own."""

    @property
    def answer_tokens(self) -> int:
        """Tokens of all answers: by the server's count if the tokenizer is not known."""
        if self.in_bytes and self.usage:
            return self.usage.output_tokens
        return sum(len(answer.ids) for answer in self.answers)

    def add(self, answer: Answer) -> None:
        """Adds an answer."""
        self.answers.append(answer.response)
        self.texts.append(answer.text)
        self.unreadable.append(answer.unreadable)
        self.thinking_tokens += answer.thinking_tokens


class SourceReader:
    """Reads corpus rows with an engine. Several threads may read concurrently; their requests share batches.

    Raises:
        AlignmentError: the tokenizer cannot be expressed in bytes.
    """

    def __init__(self, engine: SourceEngine, template: TemplateConfig):
        self.engine, self.template = engine, template
        self.forces: bool = getattr(engine, "forces", True)
        """Whether the engine can teacher-force; without, there are no signals of training mode."""
        self.in_bytes: bool = getattr(engine, "in_bytes", False)
        self.own_vocabularies: bool = getattr(engine, "own_vocabularies", False)
        """Whether the ids of answers with distributions are those of the answers' own vocabularies."""
        ends = getattr(engine, "end_ids", ())
        self.tokens = TokenBytes.from_tokenizer(engine.tokenizer, engine.vocab_size, ends)
        self.answers = AnswerReader(engine.tokenizer, self.tokens, template)
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
        examples = self._encode(records)
        for row, encoded, asked in zip(records, examples, self._asked(records, examples), strict=True):
            entry = RowSignals(row["row_id"], len(row["response"].encode()), in_bytes=self.in_bytes)
            signals.append(entry)
            if isinstance(encoded, Refusal) or isinstance(asked, Refusal):
                entry.refused = refused_by_template(row, encoded if isinstance(encoded, Refusal) else asked)
                continue
            entry.refused = self._too_long(encoded, asked)
            if entry.refused is None:
                if self.forces:
                    requests.append(Request(encoded.prompt_ids, how.top_k, encoded.response_ids))
                requests += self._answer_requests(row, asked, how)
                owners.append(entry)
        per_row = self.forces + how.num_samples
        responses = self.loop.run(requests, row_done and _by_row(row_done, per_row, len(owners)))
        for place, entry in enumerate(owners):
            self._fill(entry, responses[place * per_row : (place + 1) * per_row])
        return signals

    def _fill(self, entry: RowSignals, responses: list[Response]) -> None:
        """Adds the responses to a row: that to the ground truth first, unless the engine cannot teacher-force."""
        usages = [response.usage for response in responses if response.usage]
        entry.usage = sum(usages, Usage()) if usages else None
        entry.refused = next((response.refusal for response in responses if response.refusal), None)
        if entry.refused is None:
            entry.training = responses[0] if self.forces else None
            for response in responses[self.forces :]:
                entry.add(self.answers.read(response))

    def force(
        self,
        rows: list[dict],
        response_ids: list[list[int]],
        top_k: int,
        generated: bool = False,
        row_done: RowDone | None = None,
    ) -> list[Response]:
        """Teacher-forces given responses, in the source's own tokens, after the prompts of corpus rows.

        Args:
            rows: corpus rows.
            response_ids: a response to each.
            top_k: K of the distributions.
            generated: whether the responses are the source's own answers.
            row_done: called, in the engine's thread, as each response arrives.
        """
        pairs = zip(self._prompts(rows, response_ids, generated), response_ids, strict=True)
        requests = [Request(prompt, top_k, response) for prompt, response in pairs]
        responses = self.loop.run(requests, row_done and _by_row(row_done, 1, len(requests)))
        refused = next((response.refusal for response in responses if response.refusal), None)
        if refused:
            raise EngineError(f"a response that was read before cannot be read again: {refused}; run again to retry")
        return responses

    def encode_answers(self, rows: list[dict], answers: list[str], cut: list[bool]) -> list[list[int] | None]:
        """Returns another model's answers to corpus rows in the source's tokens; None for one that it cannot read: its template
        refuses the conversation, it is too long, the source's tokens spell another text, or the engine cannot teacher-force.

        Args:
            rows: corpus rows.
            answers: an answer to each.
            cut: whether each was cut, so that no end of turn follows.
        """
        if not self.forces:
            return [None] * len(rows)
        pairs = [(_messages(row), answer) for row, answer in zip(rows, answers, strict=True)]
        out: list[list[int] | None] = []
        encoded = encode_examples(self.engine.tokenizer, pairs, self.template, [True] * len(rows))
        for one, answer, is_cut in zip(encoded, answers, cut, strict=True):
            if isinstance(one, Refusal) or self._too_long(one, []) or self._misspells(one.response_ids, answer):
                out.append(None)
            else:
                out.append((one.response_ids[:-1] if is_cut else one.response_ids) or None)
        return out

    def _misspells(self, ids: list[int], text: str) -> bool:
        return bool(misspelt(self.tokens, Ragged.from_rows([ids], dtype=np.int64), [text.encode()]))

    def step_after(
        self,
        rows: list[dict],
        signals: SourceSignals,
        used_up: tuple[np.ndarray, np.ndarray],
        top_k: int,
        generated: bool = False,
    ) -> NextSteps:
        """Requests the distributions of the token after candidates, each substituted for a response token.

        A request ends with the candidate and generates one token: an engine with a prefix cache reads little more than that.

        Args:
            rows: corpus rows.
            signals: the source's signals along a response to each row.
            used_up: positions among all tokens of `signals`, ascending, and the candidates to put there.
            top_k: K of the distributions.
            generated: whether the responses are the source's own answers.

        Returns:
            The steps, without those that exceed the source's context.
        """
        responses = [signals.ids.row(row).tolist() for row in range(len(rows))]
        prompts, owners = self._prompts(rows, responses, generated), signals.ids.row_of
        requests, kept = [], []
        for place, (position, candidate) in enumerate(zip(*(part.tolist() for part in used_up), strict=True)):
            row = int(owners[position])
            before = signals.ids.values[signals.ids.offsets[row] : position].tolist()
            request = Request([*prompts[row], *before, candidate], top_k, max_tokens=1)
            if len(request.prompt_ids) < self.engine.max_model_len:
                requests.append(request)
                kept.append(place)
        responses = self.loop.run(requests)
        kept = [place for place, response in zip(kept, responses, strict=True) if response.refusal is None]
        found = [response.topk for response in responses if response.refusal is None]
        none = TopK(np.zeros((0, top_k), dtype=np.int32), np.zeros((0, top_k), dtype=np.float32))
        topk = RaggedTopK.from_rows([none, *found]).topk
        return NextSteps(used_up[0][kept], used_up[1][kept], topk)

    def _encode(self, rows: list[dict]) -> list[EncodedExample | Refusal]:
        """Returns the ground truth of rows in the source's tokens."""
        return encode_examples(
            self.engine.tokenizer, [(_messages(row), row["response"]) for row in rows], self.template
        )

    def _asked(self, rows: list[dict], examples: list[EncodedExample | Refusal]) -> list[list[int] | Refusal]:
        """Returns the prompts that the source answers: those of the ground truth, unless it thinks first."""
        differ = [self.answers.thinks or begins_with_thinking(row["response"]) for row in rows]
        asked = [_messages(row) for row, differs in zip(rows, differ, strict=True) if differs]
        own = iter(render_prompts(self.engine.tokenizer, asked, self.template))
        return [
            next(own) if differs else one if isinstance(one, Refusal) else one.prompt_ids
            for one, differs in zip(examples, differ, strict=True)
        ]

    def _prompts(self, rows: list[dict], response_ids: list[list[int]], generated: bool) -> list[list[int]]:
        """Returns the prompts of responses to rows that the source has not refused."""
        texts = [self.tokens.spell(np.array(ids, dtype=np.int64)).decode(errors="replace") for ids in response_ids]
        examples = [(_messages(row), text) for row, text in zip(rows, texts, strict=True)]
        found = encode_examples(self.engine.tokenizer, examples, self.template, [generated] * len(rows))
        return [one.prompt_ids for one in found if not isinstance(one, Refusal)]

    def _answer_requests(self, row: dict, prompt_ids: list[int], how: ReadSettings) -> list[Request]:
        limit = min(how.generation.max_tokens, self.engine.max_model_len - len(prompt_ids))
        asked = Request(prompt_ids, how.top_k, generation=how.generation, max_tokens=limit, stop=self.template.stop)
        asked = replace(asked, messages=tuple(_messages(row)))
        return [replace(asked, seed=_seed(how.seed, row["row_id"], sample)) for sample in range(how.num_samples)]

    def _too_long(self, encoded: EncodedExample, asked: list[int]) -> str | None:
        limit = self.engine.max_model_len
        total = max(len(encoded.prompt_ids) + len(encoded.response_ids), len(asked))
        if total >= limit:
            return f"prompt and response are {total} tokens; this source takes fewer than {limit}"
        beyond = [index for index in (*encoded.prompt_ids, *encoded.response_ids) if index >= self.engine.vocab_size]
        if beyond:
            return (
                f"its text contains the token {beyond[0]}, beyond the {self.engine.vocab_size:,} logits of this source"
            )
        return None


def refused_by_template(row: Mapping[str, Any], refusal: Any) -> str:
    """Returns the reason of a row that a template does not accept, with the row's place."""
    return f"{row['source_file']}:{row['source_line']}: the chat template refuses it: {refusal.reason}"


def _by_row(row_done: RowDone, per_row: int, num_rows: int) -> Callable[[int], None]:
    """Returns a function of a request's index that calls `row_done` with the last of a row's `per_row` requests."""
    left = [per_row] * num_rows

    def answered(index: int) -> None:
        left[index // per_row] -= 1
        if not left[index // per_row]:
            row_done()

    return answered


def _messages(row: Mapping[str, Any]) -> list[Message]:
    return [Message(m["role"], m["content"]) for m in row["messages"]]


def _seed(seed: int, row_id: str, sample: int) -> int:
    """Returns the seed of a row's sample, below 2**31 and independent of shard, batch and order."""
    text = f"{seed}/{row_id}/{sample}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:4], "big") >> 1
