import itertools
import pickle

import numpy as np
import pytest

from profuser.alignment.matching import coverage
from profuser.alignment.token_bytes import TokenBytes
from profuser.alignment.transport import SourceSignals, transport, transport_rows
from profuser.alignment.vocab_projection import VocabProjection
from profuser.errors import AlignmentError
from profuser.signals.codec import TopK
from profuser.signals.ragged import Ragged
from profuser.signals.rules import AlignmentRules, Rule
from tests.alignment.test_spans import AWKWARD

NONE, PROJECT, CONDITION, CHAIN, END = (int(rule) for rule in Rule)
BYTE_LEVEL = [b"Now", b" get", b"ting", b" ", b"1", b"9", b"8", b"4", b"2", b" got", b"\n", None]
SENTENCEPIECE = [b" Now", b" getting", b" ", b"1984", b" get", b"1", b"2001", b" got", b"19", b"Now", b"\n", None]


def table(pieces: list[bytes | None]) -> TokenBytes:
    return TokenBytes.from_table(pieces, end_ids=[len(pieces) - 1])


def tokenize(pieces: list[bytes | None], text: str) -> list[int]:
    """Returns the ids of tokens given as `Now| getting`; `$` is the end of turn."""
    return [pieces.index(None if piece == "$" else piece.encode()) for piece in text.split("|")]


def distributions(pieces, *positions: dict[str, float]) -> TopK:
    """Returns one distribution per position, from a dict of token to probability, as wide as the widest."""
    width = max(len(position) for position in positions)
    ids = np.zeros((len(positions), width), dtype=np.int32)
    logprobs = np.full((len(positions), width), -np.inf)
    for row, position in enumerate(positions):
        ids[row, : len(position)] = [tokenize(pieces, name)[0] for name in position]
        logprobs[row, : len(position)] = np.log(list(position.values()))
    return TopK(ids=ids, logprobs=logprobs)


def carry(source, source_text, positions, target, target_text, response, rules=AlignmentRules(), logprobs=None):
    """Returns rules and, per target position, a dict of token to mass rounded to 6 digits."""
    source_ids, target_ids = (np.array(tokenize(*side)) for side in ((source, source_text), (target, target_text)))
    names = source_text.split("|")
    if logprobs is None:
        logprobs = [np.log(position.get(name, 1e-3)) for name, position in zip(names, positions, strict=True)]
    out = transport(
        source_ids,
        np.array(logprobs),
        distributions(source, *positions),
        target_ids,
        response,
        VocabProjection.build(table(source), table(target)),
        rules,
        top_k=6,
    )
    return out.rules.tolist(), [as_dict(target, out.topk, t) for t in range(len(target_ids))]


def as_dict(pieces, topk: TopK, position: int) -> dict[str, float]:
    pairs = zip(topk.ids[position].tolist(), np.exp(topk.logprobs[position]).tolist(), strict=True)
    return {"$" if pieces[index] is None else pieces[index].decode(): round(mass, 6) for index, mass in pairs if mass}


NOW = b"Now getting 1984"


def test_the_example_that_time_warping_gets_wrong_byte_level_target():
    rules, masses = carry(
        SENTENCEPIECE,
        " Now| getting| |1984|$",
        [
            {" Now": 0.9, " ": 0.05},
            {" getting": 0.6, " get": 0.2, " got": 0.1},
            {" ": 0.8, " got": 0.2},
            {"1984": 0.5, "2001": 0.3, "1": 0.1},
            {"$": 0.7, "1": 0.2},
        ],
        BYTE_LEVEL,
        "Now| get|ting| |1|9|8|4|$",
        NOW,
    )
    assert rules == [PROJECT, PROJECT, CONDITION, PROJECT, PROJECT, CONDITION, CONDITION, CONDITION, END]
    assert masses[0] == {"Now": 0.9}  # a lone space carries no information at the beginning: tail
    assert masses[1] == {" get": 0.8, " got": 0.1}  # two source tokens map to one target token
    assert masses[2] == {"ting": 0.75}  # of 0.6 + 0.2; ` get` itself is used up, its share goes to the tail
    assert masses[3] == {" ": 0.8, " got": 0.2}
    assert masses[4] == {"1": 0.6, "2": 0.3}
    assert masses[5] == {"9": 0.833333}
    assert masses[6] == {"8": 1.0}
    assert masses[7] == {"4": 1.0}
    assert masses[8] == {"$": 0.7, "1": 0.2}


def test_the_example_that_time_warping_gets_wrong_sentencepiece_target():
    rules, masses = carry(
        BYTE_LEVEL,
        "Now| get|ting| |1|9|8|4|$",
        [
            {"Now": 0.9, "\n": 0.05},
            {" get": 0.6, " got": 0.2},
            {"ting": 0.5, " ": 0.4},
            {" ": 1.0},
            {"1": 0.7, "2": 0.2},
            {"9": 0.9},
            {"8": 0.8},
            {"4": 0.5},
            {"$": 0.6, "1": 0.1},
        ],
        SENTENCEPIECE,
        " Now| getting| |1984|$",
        NOW,
    )
    assert rules == [PROJECT, CHAIN, PROJECT, CHAIN, END]
    assert masses[0] == {" Now": 0.9, " ": 0.05}  # the newline also follows the target's own space
    assert masses[1] == {" getting": 0.3, " got": 0.2}  # 0.6 * 0.5; the other 0.3 goes to the tail
    assert masses[2] == {" ": 1.0}
    assert masses[3] == {"1984": 0.252}  # 0.7 * 0.9 * 0.8 * 0.5; no target token begins with "2" alone
    assert masses[4] == {"$": 0.6, "1": 0.1}


def test_a_distribution_is_about_its_own_position_not_the_next():
    """Position t must carry the source's prediction before token t was known: the certain token here is token t itself."""
    source_text, target_text = " Now| getting| |1984|$", "Now| get|ting| |1|9|8|4|$"
    positions = [{name: 1.0} for name in source_text.split("|")]
    _, masses = carry(SENTENCEPIECE, source_text, positions, BYTE_LEVEL, target_text, NOW)
    assert masses == [{name: 1.0} for name in target_text.split("|")]
    backward = [{name: 1.0} for name in target_text.split("|")]
    _, masses = carry(BYTE_LEVEL, target_text, backward, SENTENCEPIECE, source_text, NOW)
    assert masses == [{name: 1.0} for name in source_text.split("|")]


def test_a_position_without_fitting_candidates_has_no_distribution_rather_than_a_one_hot():
    """The source was cut before the end of turn, and gives the realised token zero probability."""
    rules, masses = carry(
        SENTENCEPIECE, " getting", [{" got": 0.9}], BYTE_LEVEL, " get|ting|$", b" getting", logprobs=[-np.inf]
    )
    assert rules == [PROJECT, NONE, NONE]
    assert masses[1:] == [{}, {}]


def test_a_realised_token_outside_the_top_k_still_conditions_and_chains():
    positions = [{" got": 0.9}, {"$": 1.0}]
    rules, masses = carry(
        SENTENCEPIECE, " getting|$", positions, BYTE_LEVEL, " get|ting|$", b" getting", logprobs=[np.log(0.05), 0.0]
    )
    assert rules == [PROJECT, CONDITION, END]
    assert masses[0] == {" got": 0.9}
    assert masses[1] == {"ting": 1.0}
    positions = [{" got": 0.9}, {"ting": 0.5}]
    _, masses = carry(
        BYTE_LEVEL, " get|ting", positions, SENTENCEPIECE, " getting", b" getting", logprobs=[np.log(0.05), np.log(0.5)]
    )
    assert masses[0] == {" got": 0.9, " getting": 0.025}


def test_tokens_that_straddle_each_other():
    source, target = [b"ab", b"cd", b"ce", b"c", b"ax", None], [b"a", b"bc", b"d", b"b", b"x", None]
    rules, masses = carry(
        source,
        "ab|cd|$",
        [{"ab": 0.6, "ax": 0.2}, {"cd": 0.5, "ce": 0.3, "c": 0.1}, {"$": 1.0}],
        target,
        "a|bc|d|$",
        b"abcd",
    )
    assert rules == [PROJECT, CHAIN, CONDITION, END]
    assert masses[0] == {"a": 0.8}
    assert masses[1] == {"bc": pytest.approx(0.75 * 0.9), "x": 0.25}  # all candidates that begin with "c" count
    assert masses[2] == {"d": pytest.approx(0.5 / 0.9, abs=1e-6)}


@pytest.mark.parametrize(
    ("off", "wanted"),
    [
        ("project", [NONE, CHAIN, CONDITION, NONE, END]),
        ("condition", [PROJECT, NONE, NONE, PROJECT, END]),
        ("chain", [PROJECT, NONE, CONDITION, PROJECT, END]),
        ("end", [PROJECT, CHAIN, CONDITION, PROJECT, NONE]),
    ],
)
def test_each_rule_can_be_switched_off(off, wanted):
    source, target = [b"ab", b"cd", b"e", None], [b"a", b"bc", b"d", b"e", None]
    positions = [{"ab": 0.5}, {"cd": 0.5}, {"e": 0.5}, {"$": 0.5}]
    rules, masses = carry(source, "ab|cd|e|$", positions, target, "a|bc|d|e|$", b"abcde", AlignmentRules().without(off))
    assert rules == wanted
    assert [not mass for mass in masses] == [rule == NONE for rule in rules]
    allowed = {"project", "condition", "chain", "end"} - {off}
    assert AlignmentRules.only(allowed) == AlignmentRules().without(off)


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="warp"):
        AlignmentRules.only(["warp"])


def test_an_answer_cut_inside_a_character_is_transported():
    pieces = [*(bytes([byte]) for byte in "\u4f60".encode()), "\u4f60".encode(), b"a", None]
    target = [b"a", "\u4f60".encode()[:2], b"\xe4", b"\xbd", None]
    out = transport(
        np.array([4, 0, 1]),
        np.log([0.5, 0.5, 0.5]),
        TopK(np.array([[4], [0], [1]]), np.log([[0.5], [0.5], [0.5]])),
        np.array([0, 1]),
        b"a\xe4\xbd",
        VocabProjection.build(table(pieces), table(target)),
    )
    assert out.rules.tolist() == [PROJECT, CHAIN]
    np.testing.assert_allclose(np.exp(out.topk.logprobs[1]), [0.25])


def test_a_leading_space_on_one_side_only_is_adjusted():
    pieces = [b" Now", b"Now", b" ", b"N", b"ow", None]
    for source, target in (("Now", " Now"), (" Now", "Now"), (" |Now", "Now"), ("Now", " Now"), (" Now", " Now")):
        positions = [{name: 0.8} for name in source.split("|")]
        rules, masses = carry(pieces, source, positions, pieces, target, b"Now")
        assert (rules, masses) == ([PROJECT], [{target: 0.8}])
    rules, masses = carry(pieces, " Now", [{" Now": 0.8, "Now": 0.1}], pieces, "N|ow", b"Now")
    assert (rules, masses) == ([PROJECT, CONDITION], [{"Now": 0.9}, {"ow": 1.0}])


def random_signals(vocab_size, ids, seed, dtype="float16", top_k=10) -> tuple[np.ndarray, TopK]:
    """Returns distributions whose most probable token is usually the realised one."""
    generator = np.random.default_rng(seed)
    full = generator.dirichlet(np.full(vocab_size, 0.02), len(ids))
    full[np.arange(len(ids)), ids] += generator.random(len(ids)) * 2
    full /= full.sum(axis=1, keepdims=True)
    best = np.argsort(-full, axis=1, kind="stable")[:, :top_k]
    topk = TopK(best.astype(np.int32), np.log(np.take_along_axis(full, best, axis=1) + 1e-12).astype(dtype))
    return np.log(full[np.arange(len(ids)), ids]).astype(dtype), topk


def between(source, target) -> VocabProjection:
    return VocabProjection.build(TokenBytes.from_tokenizer(source, 512), TokenBytes.from_tokenizer(target, 512))


def encode(tokenizer, text: str) -> np.ndarray:
    return np.array([*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id])


def test_identity_on_the_same_tokenizer(families):
    for name, tokenizer in families.items():
        tokens = TokenBytes.from_tokenizer(tokenizer, 512)
        text = "Now getting 1984 books, \u4f60\u597d"
        ids = encode(tokenizer, text)
        logprobs, topk = random_signals(len(tokenizer), ids, seed=3)
        projection = VocabProjection.build(tokens, TokenBytes.from_tokenizer(tokenizer, 640))
        out = transport(ids, logprobs, topk, ids, text.encode(), projection)
        assert out.rules.tolist() == [PROJECT] * (len(ids) - 1) + [END], name
        np.testing.assert_array_equal(out.topk.logprobs, topk.logprobs)
        np.testing.assert_array_equal(out.topk.ids, np.where(np.isneginf(topk.logprobs), 0, topk.ids))


@pytest.mark.parametrize("pair", list(itertools.permutations(["byte_level", "llama_like", "metaspace", "unigram"], 2)))
def test_any_text_is_transported_between_any_two_families(families, pair):
    source, target = (families[name] for name in pair)
    projection = between(source, target)
    texts = [*AWKWARD, "getting 1984 books for the library", "na\u00efve caf\u00e9\n\treturn"]
    rows = [(encode(source, text), encode(target, text), text.encode()) for text in texts]
    signals = [random_signals(len(source), ids, seed, "float32") for seed, (ids, _, _) in enumerate(rows)]
    batch = transport_rows(
        SourceSignals(
            Ragged.from_rows([row[0] for row in rows]),
            np.concatenate([logprobs for logprobs, _ in signals]),
            TopK(*(np.concatenate([getattr(topk, name) for _, topk in signals]) for name in ("ids", "logprobs"))),
        ),
        Ragged.from_rows([row[1] for row in rows]),
        [row[2] for row in rows],
        projection,
    )
    assert not batch.refused
    assert coverage(batch.rules.values)["end"] == len(rows)
    assert coverage(batch.rules.values)["none"] <= 2  # the space of an otherwise empty text has no counterpart
    mass = np.exp(batch.topk.topk.logprobs).sum(axis=1)
    assert (mass <= 1 + 1e-5).all()
    assert ((mass > 0) == (batch.rules.values != NONE)).all()
    for index, ((source_ids, target_ids, response), (logprobs, topk)) in enumerate(zip(rows, signals, strict=True)):
        alone = transport(source_ids, logprobs, topk, target_ids, response, projection)
        np.testing.assert_array_equal(alone.rules, batch.row(index).rules)
        np.testing.assert_array_equal(alone.topk.ids, batch.row(index).topk.ids)
        np.testing.assert_array_equal(alone.topk.logprobs, batch.row(index).topk.logprobs)


def test_a_certain_source_teaches_the_targets_own_tokens(families):
    """If the source gives the realised tokens all mass, the positions favour the tokens that the target uses."""
    text = "Now getting 1984 books from the library, getting ready"
    for pair in itertools.permutations(families, 2):
        source, target = (families[name] for name in pair)
        source_ids, target_ids = encode(source, text), encode(target, text)
        projection = between(source, target)
        topk = TopK(source_ids[:, None], np.zeros((len(source_ids), 1)))
        out = transport(source_ids, np.zeros(len(source_ids)), topk, target_ids, text.encode(), projection)
        agreeing = (out.topk.ids[:, 0] == target_ids) & (out.topk.logprobs[:, 0] > -1e-6)
        assert agreeing.mean() > 0.8, pair
        assert (out.rules != NONE).all()


def test_refused_rows_are_reported_and_do_not_affect_the_others():
    tokens = table([b"a", b"b", None])
    signals = SourceSignals(
        Ragged.from_rows([[0, 2], [1, 2], [0, 2]]),
        np.zeros(6),
        TopK(np.array([[0], [2], [1], [2], [0], [2]]), np.zeros((6, 1))),
    )
    targets = Ragged.from_rows([[0, 2], [1, 2], [1, 2]])
    out = transport_rows(signals, targets, [b"a", b"a", b"a"], VocabProjection.build(tokens, tokens))
    assert sorted(out.refused) == [1, 2]
    assert out.rules.values.tolist() == [PROJECT, END, NONE, NONE, NONE, NONE]
    with pytest.raises(AlignmentError, match="differ at byte 0"):
        transport(
            np.array([1, 2]),
            np.zeros(2),
            signals.topk[2:4],
            np.array([1, 2]),
            b"a",
            VocabProjection.build(tokens, tokens),
        )


def test_inconsistent_signals_are_refused():
    tokens = table([b"a", None])
    projection = VocabProjection.build(tokens, tokens)
    with pytest.raises(AlignmentError, match="must agree"):
        transport(
            np.array([0]), np.zeros(1), TopK(np.array([[0], [0]]), np.zeros((2, 1))), np.array([0]), b"a", projection
        )
    for index in (9, -1):
        outside = TopK(np.array([[index]]), np.zeros((1, 1)))
        with pytest.raises(AlignmentError, match="outside the source's vocabulary"):
            transport(np.array([0]), np.zeros(1), outside, np.array([0]), b"a", projection)


def test_rows_without_tokens_have_no_positions():
    tokens = table([b"a", None])
    projection = VocabProjection.build(tokens, tokens)
    nothing = TopK(np.zeros((0, 2), dtype=np.int32), np.zeros((0, 2)))
    empty = Ragged.from_rows([[], []], dtype=np.int64)
    out = transport_rows(SourceSignals(empty, np.zeros(0), nothing), empty, [b"", b""], projection)
    assert [out.row(index).topk.num_positions for index in range(2)] == [0, 0]
    out = transport_rows(
        SourceSignals(empty, np.zeros(0), nothing), Ragged.from_rows([[0], [1]]), [b"a", b""], projection
    )
    assert list(out.refused) == [0]
    assert out.rules.values.tolist() == [NONE, NONE]
    no_rows = Ragged.from_rows([], dtype=np.int64)
    assert len(transport_rows(SourceSignals(no_rows, np.zeros(0), nothing), no_rows, [], projection).topk) == 0


def test_a_projection_can_be_sent_to_another_process(families):
    projection = between(families["byte_level"], families["llama_like"])
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(projection, protocol=5, buffer_callback=buffers.append)
    copy = pickle.loads(
        data, buffers=[memoryview(bytes(buffer)) for buffer in buffers]
    )  # read-only, as shared memory is
    ids = np.flatnonzero(projection.source.lengths > 1)
    np.testing.assert_array_equal(copy.rest(ids, np.ones_like(ids)), projection.rest(ids, np.ones_like(ids)))


def test_a_wider_result_is_padded_with_empty_slots():
    tokens = table([b"a", None])
    topk = TopK(np.array([[0]], dtype=np.uint16), np.zeros((1, 1), dtype=np.float16))
    projection = VocabProjection.build(tokens, tokens)
    out = transport(np.array([0]), np.zeros(1), topk, np.array([0]), b"a", projection, top_k=3)
    assert out.topk.ids.tolist() == [[0, 0, 0]]
    assert out.topk.logprobs.tolist() == [[0.0, -np.inf, -np.inf]]
    assert out.topk.logprobs.dtype == np.float16


def test_coverage_counts_positions_per_rule():
    assert coverage(np.array([0, 1, 1, 3, 4], dtype=np.uint8)) == {
        "none": 1,
        "project": 2,
        "condition": 0,
        "chain": 1,
        "end": 1,
    }
