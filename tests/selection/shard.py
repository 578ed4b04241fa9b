"""A shard of three rows and two sources, one of which misspells a ground truth, for tests of selection."""

from functools import cache

import numpy as np
import pyarrow as pa
from tokenizers import normalizers

from profuser.alignment.token_bytes import TokenBytes
from profuser.alignment.vocab_projection import VocabProjection
from profuser.artifacts.schemas import REWARDS
from profuser.corpus import Message, encode_example
from profuser.engines.base import Response
from profuser.engines.collecting import RowSignals
from profuser.engines.signal_tables import collect_table
from profuser.recipe.models import OwnTemplate, SelectConfig
from profuser.rewards.voting import RewardScale
from profuser.selection.examples import Selector, Target
from profuser.selection.teachers import Chooser
from profuser.signals.codec import TopK
from tests.engines.test_collecting import corpus
from tests.tiny import byte_level_tokenizer, sentencepiece_tokenizer

K, WIDTH = 4, 512
TEXTS = ("Sort the letters a b.", "cafe\u0301 au lait", "The answer is 7.")
ANSWERS = ("It is 7.", "It is 8.", "caf\u00e9")


def composing():
    """Returns a tokenizer that composes letters and accents."""
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


SOURCES = {"lossy": composing, "plain": sentencepiece_tokenizer}


@cache
def tokenizers():
    """Returns the sources' tokenizers and their tables of tokens."""
    made = [make() for make in SOURCES.values()]
    return made, [TokenBytes.from_tokenizer(tokenizer, WIDTH) for tokenizer in made]


def signals(tokenizer, nats, answers):
    """Returns the signals of a source that is equally surprised by every token and gives these answers."""

    def response(text, number, reason):
        turn = encode_example(tokenizer, [Message("user", "Say it.")], text, OwnTemplate())
        ids = np.array(turn.response_ids)
        others = (ids[:, None] + np.arange(K)) % len(tokenizer)
        return Response(ids, np.full(len(ids), -number), TopK(others, np.full((len(ids), K), -number)), reason)

    out = []
    for number, (text, answer) in enumerate(zip(TEXTS, answers, strict=True)):
        given, own = response(text, nats, "given"), response(answer, nats, "stop")
        out.append(RowSignals(str(number), len(text.encode()), None, given, [own], [answer]))
    return out


def select(teachers=tuple(SOURCES), tokenizer=None, scores=((1.0, 0.5),) * 3, other=ANSWERS, **settings):
    """Selects over the shard; the second source gives the answers `other`. The lossy source is always less surprised."""
    made, tables = tokenizers()
    each = zip(made, (1.5, 2.5), (ANSWERS, other), strict=True)
    collected = [collect_table(signals(*one), WIDTH, K) for one in each]
    rewards = [pa.table({"row_id": ["0", "1", "2"], "scores": [list(row) for row in scores]}, schema=REWARDS)]
    tokenizer = tokenizer or byte_level_tokenizer(480)
    target = Target(tokenizer, TokenBytes.from_tokenizer(tokenizer, WIDTH), OwnTemplate())
    projections = [VocabProjection.build(table, target.tokens) for table in tables]
    chooser = Chooser(list(SOURCES), teachers, tables, SelectConfig(**settings), [RewardScale(0.0, 1.0)])
    return Selector(chooser, projections, target, K).select(corpus(*TEXTS), collected, rewards)
