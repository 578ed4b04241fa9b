"""A shard of three rows and two sources, one of which misspells a ground truth, for tests of selection."""

from functools import cache

import numpy as np
import pyarrow as pa
from tokenizers import normalizers

from profuser.alignment.token_bytes import TokenBytes
from profuser.alignment.vocab_projection import VocabProjection
from profuser.artifacts.schemas import REWARDS, signals_schema
from profuser.corpus import Message, encode_example
from profuser.engines.base import Response
from profuser.engines.collecting import RowSignals
from profuser.engines.signal_tables import collect_table, signals_table
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


def response(tokenizer, text, nats, reason="given"):
    """Returns a source's response that is equally surprised by every token."""
    turn = encode_example(tokenizer, [Message("user", "Say it.")], text, OwnTemplate())
    ids = np.array(turn.response_ids)
    others = (ids[:, None] + np.arange(K)) % len(tokenizer)
    return Response(ids, np.full(len(ids), -nats), TopK(others, np.full((len(ids), K), -nats)), reason)


def signals(tokenizer, nats, answers):
    """Returns the signals of a source that is equally surprised by every token and gives these answers."""
    out = []
    for number, (text, answer) in enumerate(zip(TEXTS, answers, strict=True)):
        given, own = response(tokenizer, text, nats), response(tokenizer, answer, nats, "stop")
        out.append(RowSignals(str(number), len(text.encode()), None, given, [own], [answer]))
    return out


def lazy_signals(chooser, made, *inputs, unread=()):
    """Returns the second pass of each source over what it was chosen to teach, without the rows of `unread` on policy."""
    choices, _ = chooser.choose(*inputs)
    out = []
    for teacher, tokenizer in enumerate(made):
        tables = [signals_schema(WIDTH).empty_table()]
        for mode in ("training", "inference", "on_policy"):
            own = [c for c in choices if teacher in chooser.readers(c) and c.mode == mode]
            own = [c for c in own if mode != "on_policy" or str(c.row) not in unread]
            if own:
                read = [response(tokenizer, c.response, 1.5) for c in own]
                tables.append(signals_table([str(c.row) for c in own], mode, read, WIDTH))
        out.append(pa.concat_tables(tables))
    return out


def select(
    teachers=tuple(SOURCES),
    tokenizer=None,
    scores=((1.0, 0.5),) * 3,
    other=ANSWERS,
    target=None,
    unread=(),
    third=False,
    **settings,
):
    """Selects over the shard; the second source gives the answers `other`. The lossy source is always less surprised. With a source
    as the target, signals are lazy. A third source is as the second, but more surprised, and gives the first one's answers."""
    made, tables = tokenizers()
    names, each_nats, texts = [*SOURCES], [1.5, 2.5], [ANSWERS, other]
    if third:
        made, tables, teachers = [*made, made[1]], [*tables, tables[1]], (*teachers, "third")
        names, each_nats, texts = [*names, "third"], [*each_nats, 3.5], [*texts, ANSWERS]
        scores = tuple((*row, 0.0) for row in scores)
    each = zip(made, each_nats, texts, strict=True)
    collected = [collect_table(signals(*one), WIDTH, K) for one in each]
    rewards = [pa.table({"row_id": ["0", "1", "2"], "scores": [list(row) for row in scores]}, schema=REWARDS)]
    tokenizer = tokenizer or byte_level_tokenizer(480)
    encoder = Target(tokenizer, TokenBytes.from_tokenizer(tokenizer, WIDTH), OwnTemplate())
    projections = [VocabProjection.build(table, encoder.tokens) for table in tables]
    chooser = Chooser(names, teachers, tables, SelectConfig(**settings), [RewardScale(0.0, 1.0)], target=target)
    inputs = (corpus(*TEXTS), collected, rewards)
    lazy = None if target is None else lazy_signals(chooser, made, *inputs, unread=unread)
    return Selector(chooser, projections, encoder, K).select(*inputs, lazy)
