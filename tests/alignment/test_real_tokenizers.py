"""Tests bytes, spans and transport on tokenizers of released models, and on variants that write spaces as each family does."""

import itertools
import json
from functools import cache

import numpy as np
import pytest
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from profuser.alignment.matching import match
from profuser.alignment.spans import byte_spans
from profuser.alignment.token_bytes import Role, TokenBytes
from profuser.alignment.transport import SourceSignals, transport_rows
from profuser.alignment.vocab_projection import ProjectionRule, VocabProjection
from profuser.errors import AlignmentError
from profuser.signals.codec import TopK
from profuser.signals.ragged import Ragged
from profuser.signals.rules import Rule
from tests.alignment.test_spans import AWKWARD
from tests.real_tokenizers import SENTENCEPIECE_CONTROL, sentencepiece, tekken

NAMES = ["llama2", "llama2 legacy", "mistral v3", "gemma", "tekken", "qwen"]


def rebuilt(tokenizer, **parts):
    """Returns the same vocabulary and merges with another normalizer and pre-tokenizer."""
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    backend = Tokenizer.from_str(json.dumps(spec | {"normalizer": None, "pre_tokenizer": None, "post_processor": None}))
    for name, part in parts.items():
        setattr(backend, name, part)
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", bos_token="<s>", unk_token="<unk>")


@pytest.fixture(scope="module")
def tokenizers():
    space = [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    plain = tekken(50_000)
    return {
        "llama2": sentencepiece(),
        "llama2 legacy": rebuilt(sentencepiece(), normalizer=normalizers.Sequence(space)),
        "mistral v3": sentencepiece(SENTENCEPIECE_CONTROL),
        # Like Gemma: a normalizer writes spaces, nothing is prepended to the text.
        "gemma": rebuilt(
            sentencepiece(),
            normalizer=normalizers.Replace(" ", "\u2581"),
            pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous"),
        ),
        "tekken": plain,
        # Like Qwen: composes characters first.
        "qwen": rebuilt(plain, normalizer=normalizers.NFC(), pre_tokenizer=plain.backend_tokenizer.pre_tokenizer),
    }


@pytest.fixture(scope="module")
def tables(tokenizers):
    return {name: TokenBytes.from_tokenizer(tokenizer, 51_200) for name, tokenizer in tokenizers.items()}


@pytest.fixture(scope="module")
def projection(tables):
    """Projects from one tokenizer to another, by their names; each pair is built once."""
    return cache(lambda source, target: VocabProjection.build(tables[source], tables[target]))


def encode(tokenizer, text):
    return [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]


@pytest.mark.parametrize("name", NAMES)
def test_a_table_covers_every_byte_the_specials_and_the_unused_ids(tokenizers, tables, name):
    tokens, tokenizer = tables[name], tokenizers[name]
    assert set(tokens.id_of) >= {bytes([byte]) for byte in range(256)}
    assert tokens.end_ids == (tokenizer.eos_token_id,)
    assert (tokens.roles[len(tokenizer) :] == Role.UNUSED).all()
    specials = [index for index, token in tokenizer.added_tokens_decoder.items() if token.special]
    assert not tokens.lengths[specials].any()


@pytest.mark.parametrize("name", NAMES)
def test_tokens_spell_any_text(tokenizers, tables, name):
    composed = [text for text in AWKWARD if name != "qwen" or normalizers.NFC().normalize_str(text) == text]
    ids = Ragged.from_rows([encode(tokenizers[name], text) for text in composed], dtype=np.int64)
    assert byte_spans(tables[name], ids, [text.encode() for text in composed]).refused == {}


def test_only_rows_that_a_normaliser_changes_are_refused(tokenizers, tables):
    texts = ["caf\u00e9", "cafe\u0301", "plain"]
    ids = Ragged.from_rows([encode(tokenizers["qwen"], text) for text in texts], dtype=np.int64)
    refused = byte_spans(tables["qwen"], ids, [text.encode() for text in texts]).refused
    assert list(refused) == [1]
    assert "differ at byte 3" in refused[1]


@pytest.mark.parametrize("change", [normalizers.NFKC(), normalizers.Lowercase(), normalizers.StripAccents()])
def test_a_tokenizer_that_loses_text_is_refused_when_the_pair_is_prepared(tokenizers, change):
    with pytest.raises(AlignmentError, match=type(change).__name__):
        TokenBytes.from_tokenizer(rebuilt(tokenizers["llama2"], normalizer=change), 51_200)


@pytest.mark.parametrize("top_k", [1, 10, 64])
@pytest.mark.parametrize("pair", list(itertools.permutations(["llama2", "mistral v3", "gemma", "tekken"], 2)))
def test_mass_is_conserved_between_real_tokenizers(tokenizers, tables, projection, pair, top_k):
    source, target = pair
    projected = projection(source, target)
    texts = [text for text in AWKWARD if len(text) < 1000]
    source_ids, target_ids = (
        Ragged.from_rows([encode(tokenizers[name], text) for text in texts], dtype=np.int64) for name in pair
    )
    signals = random_signals(source_ids, len(tokenizers[source]), top_k)
    responses = [text.encode() for text in texts]
    out = transport_rows(signals, target_ids, responses, projected)
    assert not out.refused
    mass = np.exp(out.topk.topk.logprobs.astype(np.float64)).sum(axis=1)
    # float16 log-probabilities have a relative error of at most 2**-11.
    assert mass.max() <= 1 + 2e-3
    np.testing.assert_allclose(mass + out.topk.topk.tail_mass(), 1.0, atol=2e-3)
    assert ((mass > 0) == (out.rules.values != Rule.NONE)).all()
    # Where a source token is projected unchanged, all mass arrives except that without a counterpart (control tokens).
    matches = match(
        tables[source],
        source_ids,
        byte_spans(tables[source], source_ids, responses),
        tables[target],
        target_ids,
        byte_spans(tables[target], target_ids, responses),
    )
    plain = np.flatnonzero((out.rules.values == Rule.PROJECT) & (matches.space == 0))
    assert len(plain) > 0.3 * len(mass)
    position = matches.source[plain]
    arriving = np.exp(signals.topk.logprobs[position].astype(np.float64)) * (
        projected.whole[signals.topk.ids[position]] >= 0
    )
    np.testing.assert_allclose(mass[plain], arriving.sum(axis=1), atol=2e-3)


def random_signals(ids, vocab_size, top_k):
    """Returns distributions over ids from the whole vocabulary, with the token itself at any rank or absent."""
    rng = np.random.default_rng(top_k)
    num = len(ids.values)
    steps = rng.integers(1, vocab_size // top_k, num)
    candidates = (rng.integers(0, vocab_size, num)[:, None] + steps[:, None] * np.arange(top_k)) % vocab_size
    mass = -np.sort(-rng.dirichlet(np.full(top_k + 2, 0.5), num)[:, :top_k], axis=1) + 1e-6
    place = rng.integers(0, top_k + 3, num)
    listed = place < top_k
    candidates[listed, place[listed]] = ids.values[listed]
    own = np.where(listed, mass[np.arange(num), np.minimum(place, top_k - 1)], 1e-6)
    return SourceSignals(ids, np.log(own).astype(np.float16), TopK(candidates, np.log(mass).astype(np.float16)))


@pytest.mark.parametrize("name", NAMES)
def test_identity_on_the_same_tokenizer(tokenizers, tables, name):
    text = "Now getting 1984 books, \u4f60\u597d \U0001f469\u200d\U0001f467"
    ids = np.array(encode(tokenizers[name], text))
    one = Ragged.from_rows([ids])
    signals = random_signals(one, len(tokenizers[name]), top_k=64)
    topk = signals.topk
    projection = VocabProjection.build(tables[name], tables[name])
    out = transport_rows(signals, one, [text.encode()], projection)
    assert (out.rules.values != Rule.NONE).all()
    np.testing.assert_array_equal(out.topk.topk.logprobs, topk.logprobs)
    np.testing.assert_array_equal(out.topk.topk.ids, np.where(np.isneginf(topk.logprobs), 0, topk.ids))


def test_an_answer_cut_inside_a_character_is_transported(tokenizers, tables, projection):
    """The last character of the answer is cut after its second byte: neither side has a token for all of it."""
    text, cut = "ok \U0001f98a", len(b"ok ") + 2
    source_ids = next_tokens(tokenizers["llama2"], tables["llama2"], text, cut)
    response = text.encode()[:cut]
    target_ids = [tables["tekken"].id_of[bytes([byte])] for byte in response]
    logprobs = np.log(np.full(len(source_ids), 0.5))
    topk = TopK(np.array(source_ids)[:, None], logprobs[:, None])
    signals = SourceSignals(Ragged.from_rows([source_ids]), logprobs, topk)
    out = transport_rows(signals, Ragged.from_rows([target_ids]), [response], projection("llama2", "tekken"))
    assert not out.refused
    assert (out.rules.values != Rule.NONE).all()
    assert out.topk.topk.ids[-2:, 0].tolist() == target_ids[-2:]


def next_tokens(tokenizer, tokens, text, num_bytes):
    """Returns the tokens of a text up to a number of its bytes."""
    ids, length = [], -1  # SentencePiece adds a leading space
    for index in tokenizer.encode(text, add_special_tokens=False):
        if length >= num_bytes:
            break
        ids.append(index)
        length += int(tokens.lengths[index])
    assert length == num_bytes
    return ids


def test_most_tokens_of_a_real_vocabulary_have_the_same_bytes_in_another(tables, projection):
    counts = projection("tekken", "llama2").counts()
    assert counts["exact"] > 20_000
    assert counts["tail"] == 999  # control tokens
    nearest = VocabProjection.build(tables["llama2"], tables["gemma"], fallback="min_edit")
    assert set(np.unique(nearest.rules)) <= {ProjectionRule.EXACT, ProjectionRule.ROLE, ProjectionRule.TAIL}
