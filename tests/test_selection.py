"""The choice of teachers over a shard: whose tokens do not spell a response does not teach it, and all is counted."""

import numpy as np
import pyarrow as pa
import pytest
from tokenizers import normalizers

from profuser.alignment.token_bytes import TokenBytes
from profuser.alignment.vocab_projection import VocabProjection
from profuser.choosing import Chooser
from profuser.corpus import Message, encode_example
from profuser.engines.base import Response
from profuser.engines.collecting import RowSignals
from profuser.engines.signal_tables import collect_table
from profuser.recipe.models import OwnTemplate, SelectConfig
from profuser.rewards.voting import RewardScale
from profuser.schemas import REWARDS
from profuser.selection import Selector, Target
from profuser.signals.codec import TopK, from_columns
from tests.engines.test_collecting import corpus
from tests.tiny import byte_level_tokenizer, sentencepiece_tokenizer

K, WIDTH = 4, 512
TEXTS = ("Sort the letters a b.", "cafe\u0301 au lait", "The answer is 7.")
ANSWERS = ("It is 7.", "It is 8.", "caf\u00e9")


def composing():
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    return tokenizer


SOURCES = {"lossy": composing, "plain": sentencepiece_tokenizer}


def signals(tokenizer, nats):
    """What a source would say that is equally surprised by every token, and gives the three answers."""

    def response(text, number, reason):
        turn = encode_example(tokenizer, [Message("user", "Say it.")], text, OwnTemplate())
        ids = np.array(turn.response_ids)
        others = (ids[:, None] + np.arange(K)) % len(tokenizer)
        return Response(ids, np.full(len(ids), -number), TopK(others, np.full((len(ids), K), -number)), reason)

    out = []
    for number, (text, answer) in enumerate(zip(TEXTS, ANSWERS, strict=True)):
        given, own = response(text, nats, "given"), response(answer, nats, "stop")
        out.append(RowSignals(str(number), len(text.encode()), None, given, [own], [answer]))
    return out


@pytest.fixture(scope="module")
def selected():
    tokenizers = {name: make() for name, make in SOURCES.items()}
    tables = [TokenBytes.from_tokenizer(tokenizer, WIDTH) for tokenizer in tokenizers.values()]
    # The lossy source is always less surprised.
    collected = [
        collect_table(signals(tokenizer, nats), WIDTH, K)
        for tokenizer, nats in zip(tokenizers.values(), (1.5, 2.5), strict=True)
    ]
    rewards = [pa.table({"row_id": ["0", "1", "2"], "scores": [[1.0, 0.5]] * 3}, schema=REWARDS)]
    target = Target(
        byte_level_tokenizer(480), TokenBytes.from_tokenizer(byte_level_tokenizer(480), WIDTH), OwnTemplate()
    )
    projections = [VocabProjection.build(table, target.tokens) for table in tables]
    names = list(SOURCES)
    chooser = Chooser(names, names, tables, SelectConfig(), [RewardScale(0.0, 1.0)])
    return Selector(chooser, projections, target, K).select(corpus(*TEXTS), collected, rewards)


def test_a_source_does_not_teach_a_ground_truth_that_its_tokens_do_not_spell(selected):
    table, counts = selected
    teachers = {row["row_id"]: row["teacher"] for row in table.to_pylist() if row["mode"] == "training"}
    assert teachers == {"0": "lossy", "1": "plain", "2": "lossy"}
    advantages = {row["row_id"]: row["advantages"] for row in table.to_pylist() if row["mode"] == "training"}
    assert np.isnan(advantages["1"]).tolist() == [True, False]
    assert (counts["misspelt/lossy"], counts["misspelt/plain"]) == (1, 0)


def test_every_position_is_counted_once_per_pair_and_rule(selected):
    table, counts = selected
    tokens = sum(len(row["response_ids"]) for row in table.to_pylist())
    assert counts["tokens"] == tokens == sum(value for name, value in counts.items() if name.startswith("rule/"))
    assert tokens == sum(value for name, value in counts.items() if name.startswith("alignment/"))
    assert counts["not_aligned"] == 0
    topk = from_columns(table, "topk", K, WIDTH)
    taught = np.isfinite(topk.topk.logprobs[:, 0].astype(np.float32))
    assert taught.sum() == tokens - counts["rule/none"]
