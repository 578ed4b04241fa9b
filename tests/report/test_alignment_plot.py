"""Tables and plots of alignment agree with the alignment itself."""

import warnings
from functools import cache

import numpy as np
import pytest
from transformers import AutoTokenizer

from profuser.alignment.transport import ALL_RULES, SourceSignals, transport
from profuser.alignment.vocab_projection import VocabProjection
from profuser.models.lab_paths import assets_path
from profuser.report.plots.alignment import mass_plot, pair_coverage_plot
from profuser.report.plots.ruler import LETTERS, ruler_plot
from profuser.report.tables.alignment import (
    Aligned,
    Masses,
    NamedTokenizer,
    coverage_rows,
    hex_bytes,
    mass_shares,
    text_coverage,
    token_label,
)
from profuser.signals.codec import TopK
from profuser.signals.ragged import Ragged
from profuser.signals.rules import Rule

TEXTS = ("The capital city of Tromia is Tenholm.", "A fox \U0001f98a says \u4f60\u597d!", "3 + 4 = 7\n")
PAIRS = (("mpt", "llama"), ("neox", "llama"), ("llama", "mpt"))


@cache
def lab(name):
    return NamedTokenizer.of(name, AutoTokenizer.from_pretrained(assets_path() / "sources" / name))


def aligned(pair, text, rules=ALL_RULES):
    source, target = map(lab, pair)
    return Aligned.of(source.cut(text), target.cut(text), rules)


def some_signals(found, top_k=8, seed=0):
    """Returns distributions over a few tokens, including the realised one and some with the same first byte."""
    draw = np.random.default_rng(seed)
    tokens = found.source.tokens
    rows = []
    for index in found.source.ids.tolist():
        data = tokens[index] or b""
        alike = [i for i in range(tokens.vocab_size) if i != index and data[:1] and (tokens[i] or b"")[:1] == data[:1]]
        others = np.setdiff1d(np.arange(3, tokens.vocab_size), [index, *alike])
        rows.append([index, *alike[:3], *draw.choice(others, top_k)][:top_k])
    mass = -np.sort(-draw.dirichlet(np.ones(top_k + 1), len(rows))[:, :top_k], axis=1)
    topk = TopK(np.array(rows), np.log(mass))
    return SourceSignals(Ragged.from_rows([found.source.ids]), np.log(mass[:, 0]), topk)


def carried_over(pair, text, top_k=64):
    found = aligned(pair, text)
    signals = some_signals(found)
    projection = VocabProjection.build(found.source.tokens, found.target.tokens)
    ids, topk = signals.ids.values, signals.topk
    carried = transport(ids, signals.logprobs, topk, found.target.ids, text.encode(), projection, top_k=top_k)
    return found, signals, projection, carried


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("text", TEXTS)
def test_candidates_are_shown_to_go_where_their_mass_arrives(pair, text):
    found, signals, projection, carried = carried_over(pair, text)
    np.testing.assert_array_equal(found.rules, carried.rules)
    for position in range(len(found.target.ids)):
        shares = mass_shares(found, signals, projection, position)
        targets = {share.target for share in shares if share.fits and share.target >= 0}
        arrived = carried.topk.ids[position][np.isfinite(carried.topk.logprobs[position])]
        assert targets == set(arrived.tolist())


@pytest.mark.parametrize("pair", PAIRS)
def test_masses_and_tail_sum_to_one(pair):
    found, _, _, carried = carried_over(pair, TEXTS[0])
    masses = Masses.of(carried, found.target.ids)
    np.testing.assert_allclose(masses.realised + masses.others + masses.tail, 1, atol=1e-6)
    assert [row["sum"] for row in masses.rows(found.target)] == pytest.approx([1] * len(found.target.ids), abs=1e-6)


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("text", TEXTS)
def test_a_target_token_lies_inside_its_source_tokens(pair, text):
    found = aligned(pair, text)
    assert {Rule.PROJECT, Rule.END} <= {found.rule(position) for position in range(len(found.rules))}
    for position in range(len(found.rules)):
        spoken = found.source_tokens_of(position)
        assert found.source.bounds[spoken.start] <= max(found.target.bounds[position], found.source.bounds[0])
        assert found.source.bounds[spoken.stop] >= found.target.bounds[position + 1]


def test_a_disabled_rule_is_shown_as_none():
    on, off = (aligned(PAIRS[0], TEXTS[0], rules) for rules in (ALL_RULES, ALL_RULES.without("condition")))
    places = [place for place, row in enumerate(on.rows()) if row["rule"] == "condition"]
    assert places
    assert [off.rows()[place] | {"target token": ""} for place in places] == [
        {"target token": "", "rule": "none", "source tokens": "", "consumed": ""} for _ in places
    ]


def test_labels_show_spaces_lone_bytes_and_ends():
    tokens = lab("llama").tokens
    assert token_label(tokens, tokens.id_of[b" is"]) == "\u2423is"
    assert token_label(tokens, tokens.id_of[b"\xf0"]) == "F0"
    assert token_label(tokens, tokens.id_of[b"\n"]) == "\\n"
    assert token_label(tokens, tokens.end_ids[0]) == "end"
    assert hex_bytes(b"\x00\xff") == "00 FF"


@pytest.mark.parametrize("text", [*TEXTS, 4 * TEXTS[0]])
def test_the_ruler_labels_every_rule_and_needs_no_other_font(text):
    found, _, _, carried = carried_over(PAIRS[0], text)
    figure = ruler_plot(found, carried)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # on a missing glyph
        figure.canvas.draw()
    shown = [text.get_text() for axes in figure.axes for text in axes.texts]
    marks = [text.get_text() for axes in figure.axes for text in axes.texts if text.get_position()[1] == LETTERS]
    assert marks == [Rule(rule).name.lower()[:2] for rule in found.rules]
    assert {f"{byte:02X}" for byte in text.encode()} <= set(shown)
    assert ("U+1F98A" in shown) == ("\U0001f98a" in text)


@pytest.mark.parametrize("pair", PAIRS)
def test_a_position_is_drawn_with_every_candidate_and_every_target_token(pair):
    found, signals, projection, carried = carried_over(pair, TEXTS[0])
    for position in range(len(found.target.ids)):
        figure = mass_plot(found, carried, mass_shares(found, signals, projection, position), position)
        left, _, right = figure.axes
        assert len(left.patches) == signals.topk.top_k + 1
        assert len(right.patches) == np.isfinite(carried.topk.logprobs[position]).sum() + 1
        assert sum(bar.get_width() for bar in right.patches) == pytest.approx(1, abs=1e-6)


def test_coverage_counts_every_token_once():
    found = {" to ".join(pair): text_coverage(lab(pair[0]), lab(pair[1]), TEXTS) for pair in PAIRS}
    for pair, rules in zip(PAIRS, found.values(), strict=True):
        assert sum(rules.values()) == sum(len(lab(pair[1]).encode(text)) for text in TEXTS)
        assert rules["end"] == len(TEXTS)
    for row in coverage_rows(found):
        assert sum(value for name, value in row.items() if name.endswith("%")) == pytest.approx(100)
    (axes,) = pair_coverage_plot(found).axes
    ends = {bar.get_y(): bar.get_x() + bar.get_width() for bar in axes.patches}
    assert list(ends.values()) == pytest.approx([100] * len(PAIRS))
