"""How the models write, in the page, the CSV and the terminal."""

import csv

from profuser.evaluation.writing import Writing
from profuser.report.page import render_page, write_report
from profuser.report.tables.writing import writing_lines, writing_table
from tests.report import made_up


def test_every_model_has_its_line_and_what_cannot_be_measured_a_dash(tmp_path):
    nan = float("nan")
    writing = {"target": Writing(60, 0, 14.25, 0.125, 0.5), "fused": Writing(60, 60, 0.0, nan, nan)}
    facts = made_up.measured(writing=writing)
    target, fused = writing_lines(facts)
    assert (target.words, target.repeated, target.distinct) == ("14.2", "12.5 %", "50.0 %")
    assert (fused.blank, fused.repeated, fused.distinct) == ("60", "-", "-")
    assert writing_table(facts).row_count == 2
    page = render_page(facts, {})
    section = page.split('id="writing"')[1].split("</section>")[0]
    assert all(text in section for text in ("14.2", "12.5 %", "50.0 %"))
    write_report(facts, tmp_path)
    with (tmp_path / "writing.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["model"] for row in rows] == ["target", "fused"]
    assert (rows[0]["repeated"], rows[1]["repeated"]) == ("0.125", "")
    assert "No model has been evaluated" in render_page(made_up.measured(writing={}), {})
