"""The report's words and terminal tables agree with the numbers."""

import io
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from rich.console import Console
from rich.table import Table

from profuser.evaluation.heldout import Score
from profuser.report.headline import headline
from profuser.report.plots.loss import moving_mean
from profuser.report.tables.selection import agreement_table, judges_table, selection_words, win_rates_table
from profuser.report.tables.table import render_scores, stage_table, who_wins_table
from tests.report import made_up


def facts_of(target: Score, fused: Score, **others: Score):
    return made_up.facts(scores={"all": {"target": target, **others, "fused": fused}})


def printed(table: Table, styled: bool = False) -> str:
    out = io.StringIO()
    Console(file=out, width=100, force_terminal=styled, color_system="standard" if styled else None).print(table)
    return out.getvalue()


@pytest.mark.parametrize(
    ("fused", "verdicts", "title"),
    [
        (Score(200, 0.4, 0.6), ["better", "better"], "The fused model is better than"),
        (Score(200, 0.6, 0.4), ["worse", "worse"], "The fused model is worse than"),
        (Score(200, 0.4, 0.4), ["better", "worse"], "better in bits per byte but worse in exact match"),
        (Score(200, 0.6, 0.6), ["worse", "better"], "better in exact match but worse in bits per byte"),
        (Score(200, 0.50001, 0.5), ["no change", "no change"], "no better and no worse"),
        (Score(200, 0.5, 0.4), ["no change", "worse"], "is worse in exact match than"),
        (Score(0, math.nan, math.nan), ["unknown", "unknown"], "has not been compared"),
    ],
)
def test_the_headline_agrees_with_the_numbers(fused, verdicts, title):
    found = headline(facts_of(Score(200, 0.5, 0.5), fused))
    assert [finding.verdict for finding in found.findings] == verdicts
    assert title in found.title
    assert "one seed" in found.notes[-1]
    assert "no interval" in found.notes[-1]


def test_the_headline_compares_with_the_best_source():
    found = headline(facts_of(Score(200, 0.5, 0.5), Score(200, 0.4, 0.6), mpt=Score(200, 0.3, 0.55)))
    assert "best single model before fusion is mpt (0.300); the fused model (0.400) is worse than it" in found.notes[0]
    assert "is mpt (55.0 %); the fused model (60.0 %) is better than it" in found.notes[1]


def test_every_score_fits_in_100_columns():
    facts = made_up.facts()
    text = printed(render_scores(facts))
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "300 rows" in text
    for skill in made_up.SKILLS:
        assert f"{facts.score('mpt', skill).bits_per_byte:.3f}" in text
    assert "40,321" in printed(stage_table(facts))
    assert "38.9 %" in printed(who_wins_table(facts))


def test_win_rates_and_judges_fit_in_100_columns():
    facts = made_up.facts()
    rates, judges = printed(win_rates_table(facts)), printed(judges_table(facts)) + printed(agreement_table(facts))
    assert max(len(line) for line in (rates + judges).splitlines()) <= 100
    assert "67.3 %" in rates
    assert "44.3 %" in rates
    assert "1,600 rows" in judges
    for number in ("77.0 %", "+0.54", "+0.66", "1.9 %"):
        assert number in judges


def test_the_words_state_how_often_the_modes_agree_and_the_target_wins():
    modes, target = selection_words(made_up.facts())
    assert "same teacher on 41.2 % of the 1,740 rows" in modes
    assert "kappa +0.12" in modes
    assert "38.9 % of the examples in training mode, 23.0 % of the examples in inference mode" in target
    assert selection_words(made_up.facts(selection=None, source_is_target=None)) == []
    more = {"preference_pairs": 61, "rows_without_pair": 15, "on_policy_examples": 40}
    assert selection_words(made_up.facts(selection=None, source_is_target=None, selection_counts=more)) == [
        "61 pairs of answers; of 15 rows with several answers no two make a pair.",
        "40 answers of the target have the distributions of the row's teacher.",
    ]


def test_the_better_of_target_and_fused_model_is_bold():
    text = printed(render_scores(facts_of(Score(200, 0.5, 0.5), Score(200, 0.6, 0.4))), styled=True)
    bold = "".join(re.findall("\x1b\\[1m([^\x1b]*)", text))
    assert "0.500" in bold
    assert "0.600" not in bold


def test_markup_in_a_category_is_text():
    facts = made_up.facts(scores=made_up.scores(skills=("[bold]x[/bold]", "[/red]")))
    assert "[bold]x[/bold]" in printed(render_scores(facts))
    assert "[/red]" in printed(render_scores(facts))


def test_a_moving_mean_looks_back_only_and_skips_unknown_values():
    found = moving_mean(np.array([1.0, 3.0, np.nan, 5.0, 7.0]), 2)
    np.testing.assert_allclose(found, [1.0, 2.0, np.nan, 5.0, 6.0])


def test_the_report_needs_neither_torch_nor_ray():
    code = "import sys, profuser.report.page, profuser.report.model_card; print([m for m in ('torch', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
