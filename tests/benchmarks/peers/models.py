"""The released models, the rows that they read, and each model's full distribution at every token of an answer.

Legend: S tokens of an answer in a model's own tokenizer (its end of turn included), V vocabulary, K top-k.
"""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from profuser.alignment.spans import Spans, byte_spans
from profuser.alignment.token_bytes import TokenBytes
from profuser.corpus import EncodedExample, Message, encode_examples
from profuser.corpus.template import end_token_id
from profuser.recipe.models import OwnTemplate
from profuser.signals.codec import TopK
from profuser.signals.ragged import Ragged

NAMES = ("smollm2", "qwen", "gemma")
FOLDER = Path(os.environ.get("PROFUSER_PEER_MODELS", "models"))
DATA = Path(__file__).parents[4] / "shared" / "data"
MANY = 1024
"""Candidates that stand for the whole vocabulary where the top-k cut is not under test."""
SHORT_BYTES = range(20, 300)
"""Lengths of the Alpaca answers that are read: many ends of turn for few tokens."""


class Row(NamedTuple):
    question: str
    answer: str


def gsm8k(num: int) -> list[Row]:
    """Returns the first rows of GSM8K's training split, with unchanged answers."""
    lines = (DATA / "gsm8k_train.jsonl").read_text().splitlines()[:num]
    return [Row(entry["question"], entry["answer"]) for entry in map(json.loads, lines)]


def alpaca(num: int) -> list[Row]:
    """Returns the first rows of Alpaca with a short answer."""
    rows = json.loads((DATA / "alpaca_5000.json").read_text())
    found = [Row("\n".join(filter(None, (r["instruction"], r["input"]))), r["output"].strip()) for r in rows]
    return [row for row in found if len(row.answer.encode()) in SHORT_BYTES][:num]


@dataclass(frozen=True, eq=False)
class Reading:
    """A model's distributions over one answer, teacher-forced in float32."""

    prompt_ids: list[int]
    ids: Int[np.ndarray, "S"]
    spans: Spans
    logprobs: Float[Tensor, "S V"]
    """Natural log-probabilities; row s is the distribution of token s."""

    @cached_property
    def own(self) -> Float[np.ndarray, "S"]:
        """Log-probability of each token."""
        return self.logprobs.gather(1, torch.from_numpy(self.ids)[:, None])[:, 0].numpy()

    @cached_property
    def ends(self) -> Int[np.ndarray, "tokens"]:
        """Byte ends of the answer's tokens, without the end of turn."""
        return self.spans.ends[:-1]

    @cached_property
    def probabilities(self) -> Float[Tensor, "S V"]:
        return self.logprobs.exp()

    @cached_property
    def squares(self) -> Float[np.ndarray, "S"]:
        """Sum of the squared probabilities at each position."""
        return torch.linalg.vector_norm(self.probabilities, dim=1).double().square().numpy()

    @cached_property
    def _best(self) -> TopK:
        found = self.logprobs.topk(min(MANY, self.logprobs.shape[1]), dim=1)
        return TopK(found.indices.int().numpy(), found.values.numpy())

    def at(self, places: Int[np.ndarray, "s"]) -> "Reading":
        """Returns some of the positions."""
        spans = Spans(self.spans.starts[places], self.spans.ends[places], {})
        return Reading(self.prompt_ids, self.ids[places], spans, self.logprobs[places])

    def topk(self, k: int) -> TopK:
        """Returns the k most probable tokens at each position, at most `MANY`."""
        return TopK(self._best.ids[:, :k], self._best.logprobs[:, :k])


@dataclass(frozen=True, eq=False)
class Model:
    name: str
    tokenizer: Any
    tokens: TokenBytes
    net: Any

    @classmethod
    def load(cls, name: str, folder: Path) -> "Model":
        """Loads one of the folders that `../shared/models/make_models.py` writes."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(folder / name)
        net: Any = AutoModelForCausalLM.from_pretrained(folder / name, dtype=torch.float32).eval()
        end = end_token_id(tokenizer, OwnTemplate())
        tokens = TokenBytes.from_tokenizer(tokenizer, net.get_output_embeddings().weight.shape[0], [end])
        return cls(name, tokenizer, tokens, net)

    def encode(self, rows: list[Row]) -> list[EncodedExample]:
        """Returns prompts and answers under the model's own template, which accepts every question and its answer."""
        examples = [([Message("user", row.question)], row.answer) for row in rows]
        encoded = []
        for each in encode_examples(self.tokenizer, examples, OwnTemplate()):
            assert isinstance(each, EncodedExample), each
            encoded.append(each)
        return encoded

    @torch.inference_mode()
    def read(self, example: EncodedExample, answer: str) -> Reading:
        """Runs one pass over prompt and answer."""
        ids = np.array(example.response_ids)
        whole = torch.tensor([example.prompt_ids + example.response_ids[:-1]])
        logprobs = self.net(whole, logits_to_keep=len(ids)).logits[0].log_softmax(-1)
        spans = byte_spans(self.tokens, Ragged.from_rows([ids]), [answer.encode()])
        return Reading(example.prompt_ids, ids, spans, logprobs)
