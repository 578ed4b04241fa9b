"""The page is complete, safe and self-contained."""

import csv
import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from profuser.evaluation.heldout import Score
from profuser.report.facts import RunFacts, StageFact
from profuser.report.page import render_page, write_report
from profuser.report.pictures import pictures
from profuser.report.plots.loss import loss_plot
from profuser.report.plots.plot import coverage_plot, scores_plot, who_wins_plot
from profuser.report.plots.results import gaps_plot
from profuser.report.plots.selection import agreement_plot, length_plot, win_rates_plot
from profuser.report.tables.table import ScoreRow, score_table
from profuser.rewards.agreement import Agreement
from profuser.selection.summary import RewardFacts, SourceComparison, WinRate
from tests.report import made_up

PLOTS = {
    "differences": gaps_plot,
    "scores": scores_plot,
    "who_wins": who_wins_plot,
    "win_rates": win_rates_plot,
    "agreement": agreement_plot,
    "length": length_plot,
    "coverage": coverage_plot,
    "losses": loss_plot,
}


class Tags(HTMLParser):
    """Collects tags with their attributes, and the text between them; void tags are not closed."""

    def __init__(self, html: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.open = "", []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "source"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def read(html: str) -> Tags:
    """Parses a page and checks that it is well-formed."""
    page = Tags(html)
    assert not page.open
    return page


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A complete report, written once because drawing takes seconds."""
    path = tmp_path_factory.mktemp("report")
    assert write_report(made_up.measured(), path) == path / "index.html"
    return path


def test_a_page_is_self_contained(folder):
    html = (folder / "index.html").read_text()
    page = read(html)
    names = ("src", "srcset", "href", "action", "data", "poster")
    addresses = [value or "" for _, attributes in page.tags for name, value in attributes.items() if name in names]
    assert sum(address.startswith("data:image/") for address in addresses) == 2 * len(PLOTS)
    assert all(address.startswith(("data:image/", "#")) for address in addresses)
    assert "script" not in [tag for tag, _ in page.tags]
    assert "url(" not in html
    for alt in (attributes.get("alt") or "" for tag, attributes in page.tags if tag == "img"):
        assert len(re.findall(r"\d+\.\d+", alt)) >= 3
        assert "nan" not in alt
    targets = {attributes.get("id") for _, attributes in page.tags}
    assert {address[1:] for address in addresses if address.startswith("#")} <= targets


def test_hostile_text_is_escaped(tmp_path):
    hostile = made_up.HOSTILE
    facts = made_up.facts(
        samples=[made_up.sample(hostile, hostile) | {"prompt": hostile}],
        quarantined=[{"file": hostile, "line": 1, "reason": hostile, "excerpt": hostile}],
        scores=made_up.scores(skills=(hostile,)),
        recipe=made_up.recipe() | {"template": hostile},
    )
    page = read(render_page(facts, {}))
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert page.text.count(hostile) >= 8


def test_an_answer_with_a_lone_surrogate_does_not_fail_the_report(tmp_path):
    facts = RunFacts(name="x", recipe={}, samples=[made_up.sample(answer="lone \ud800 surrogate")])
    assert "lone ? surrogate" in write_report(facts, tmp_path).read_text()


def test_every_score_is_on_the_page(folder):
    page = read((folder / "index.html").read_text())
    for row in score_table(made_up.facts()):
        assert row.category in page.text
        assert f"{row.bits_per_byte:.3f}" in page.text
        assert f"{100 * row.exact_match:.1f}" in page.text


def test_the_csv_equals_the_table(folder):
    facts = made_up.facts()
    with (folder / "scores.csv").open() as file:
        found = [
            ScoreRow(r["model"], r["category"], int(r["num_rows"]), float(r["bits_per_byte"]), float(r["exact_match"]))
            for r in csv.DictReader(file)
        ]
    assert found == score_table(facts)
    with (folder / "plots" / "losses.csv").open() as file:
        updates = list(csv.DictReader(file))
    assert len(updates) == len(facts.history)
    assert updates[0]["ce_training_nats"] == ""
    assert float(updates[-1]["ce_training_nats"]) == facts.history[-1]["ce_training_nats"]


def test_every_comparison_is_in_its_csv(folder):
    facts = made_up.measured()
    with (folder / "comparisons.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(facts.comparisons)
    for row, comparison in zip(rows, facts.comparisons, strict=True):
        assert float(row["low"]) == comparison.difference.low
        assert (row["against"], row["verdict"]) == (comparison.model, comparison.verdict)


def overall(file):
    """Returns the rows over all categories."""
    return [row for row in csv.DictReader(file) if row["category"] == "all"]


def test_win_rates_and_agreement_are_on_the_page_and_in_their_csv(folder):
    page, selection = read((folder / "index.html").read_text()), made_up.selection()
    with (folder / "plots" / "win_rates.csv").open() as file:
        rates = {(r["first"], r["second"], r["mode"]): float(r["win_rate"]) for r in overall(file)}
    for duel in selection.duels:
        for mode, rate in (("training", duel.training), ("inference", duel.inference)):
            assert f"{100 * rate.share:.1f} %" in page.text
            assert rates[duel.first, duel.second, mode] == rate.share
    with (folder / "plots" / "agreement.csv").open() as file:
        kappas = {(r["first"], r["second"]): float(r["kappa"]) for r in overall(file)}
    assert kappas.pop(("training", "inference")) == selection.modes.kappa
    assert kappas == {(pair.first, pair.second): pair.kappa for pair in selection.agreements}
    assert all(f"{kappa:+.2f}" in page.text for kappa in kappas.values())
    with (folder / "plots" / "length.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(selection.lengths) * len(selection.judges)


def test_each_plot_has_its_numbers_beside_it(folder):
    names = {path.name for path in (folder / "plots").iterdir()}
    assert names == {f"{plot}.{suffix}" for plot in PLOTS for suffix in ("png", "csv")}


def test_the_same_run_gives_the_same_picture():
    few = made_up.facts(history=[], scores={}, selection=None)
    first, second = (pictures(few)["who_wins"].data_uri("dark") for _ in range(2))
    assert first == second


AFFECTED = {
    "selection": {"win_rates", "agreement", "length"},
    "scores": {"scores"},
    "recipe": {"who_wins"},
    "history": {"losses"},
}
"""Plots that depend on a field of the facts."""
NOTHING_CHOSEN = made_up.selection(
    modes=Agreement("training", "inference", 0, math.nan, math.nan),
    duels=(SourceComparison("llama", "mpt", WinRate(0, 0, 0), WinRate(0, 0, 0)),),
    judges=(
        RewardFacts("brisk", 0.5, 0, 0, math.nan, math.nan, 0, 0, None),
        RewardFacts("candid", 1, 0, 0, math.nan, math.nan, 0, 0, None),
    ),
    agreements=(Agreement("brisk", "candid", 0, math.nan, math.nan),),
    lengths=(),
)
UNKNOWN = {"all": dict.fromkeys(made_up.MODELS, Score(0, math.nan, math.nan))}


@pytest.mark.parametrize(
    ("changes", "without"),
    [
        ({"scores": made_up.scores(skills=())}, set()),
        ({"scores": {}}, {"scores"}),
        ({"scores": UNKNOWN}, {"scores"}),
        ({"scores": made_up.scores(skills=(r"$\frac$ [b]", "x" * 80, "two\nlines"))}, set()),
        ({"scores": made_up.scores() | {"empty": UNKNOWN["all"]}}, set()),
        ({"scores": {"all": {"target": Score(9, 0.5, 0.5)}}}, set()),
        ({"scores": made_up.scores(skills=tuple(f"subject {i}" for i in range(60)))}, set()),
        (
            {"recipe": made_up.recipe(("llama",)), "selection_counts": {"rows": 2, "wins/training/llama": 2}},
            {"coverage"},
        ),
        ({"selection": None}, {"win_rates", "agreement", "length"}),
        ({"selection": made_up.selection(duels=(), agreements=(), lengths=())}, {"win_rates", "agreement", "length"}),
        ({"selection": NOTHING_CHOSEN}, {"win_rates", "agreement", "length"}),
        ({"selection": made_up.selection(tuple(f"source-{i}" for i in range(9)))}, set()),
        ({"history": []}, {"losses"}),
        ({"history": [{"step": 0, "num_steps": 1, "ce_training_nats": math.nan}]}, set()),
        ({"quarantined": [], "samples": [], "stages": (), "vote_agreement": None, "source_is_target": None}, set()),
        ({"selection_counts": {}, "commit": None, "versions": {}}, {"who_wins", "coverage"}),
        ({"selection_counts": {"wins/training/llama": 0, "wins/inference/llama": 0}}, {"who_wins", "coverage"}),
    ],
)
def test_missing_facts_leave_out_their_plots_only(changes, without):
    facts = made_up.facts(**changes)
    page = read(render_page(facts, {}))
    assert not re.search(r"\bnan\b|\bNone\b", page.text)
    for name in without | AFFECTED.get(next(iter(changes)), set()):
        figure = PLOTS[name](facts)
        assert (figure is None) == (name in without)
        if figure:
            figure.draw_without_rendering()


def test_unlisted_quarantined_rows_are_counted():
    stages = (StageFact("prepare/train", "finished", 1.0, {"rows": 9, "quarantined": 1234}),)
    page = read(render_page(made_up.facts(stages=stages), {}))
    assert "Corpus rows refused: 1,234;" in page.text
    assert "the first 1 are shown" in page.text


def test_an_empty_run_has_a_page(tmp_path):
    page = read(write_report(RunFacts(name="empty", recipe={}), tmp_path).read_text())
    assert "has not been compared with the target yet" in page.text


def test_the_page_states_where_the_mass_of_consumed_candidates_goes():
    for condition, words in (("tail", "goes to the tail"), ("exact", "follows the source's own next token")):
        page = render_page(made_up.facts(recipe={**made_up.recipe(), "select": {"condition": condition}}), {})
        assert words in " ".join(page.split())


def test_coverage_is_shown_per_source(folder):
    page = (folder / "index.html").read_text()
    section = page[page.index("From each source to the target") :].split("</table>")[0]
    rows = [re.sub(r"<[^>]+>|\s+", " ", row).split() for row in section.split("<tr>")[1:5]]
    assert [row[0] for row in rows[1:]] == ["llama", "mpt", "neox"]
    assert rows[3][-1] == "7"
    assert "61.7" in rows[1]
    with (folder / "plots" / "coverage.csv").open() as stream:
        for line in csv.DictReader(stream):
            assert abs(sum(int(line[name]) for name in ("llama", "mpt", "neox")) - int(line["tokens"])) <= 1
