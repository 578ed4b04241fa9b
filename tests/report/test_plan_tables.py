"""A plan and its errors, in words and tables."""

import io
import re

import pytest
from rich.console import Console

from profuser.planning.estimates import Extrapolation
from profuser.planning.plan_file import PlanError, ProbedPlan, StagePlan
from profuser.report.page import render_page
from profuser.report.tables.plan import amount, plan_error_lines, plan_error_table, plan_table, plan_words
from tests.report import made_up

ERRORS = (
    PlanError("collect/llama", "training_tokens", Extrapolation(52_000.0, 4_000.0), 50_000.0),
    PlanError("collect/llama", "seconds", Extrapolation(9_000.0, 900.0), 7_200.0),
    PlanError("collect/<b>mpt</b>", "disk_bytes", Extrapolation(3.0e9, None), 2.5e9),
    PlanError("collect/llama", "device_hours", Extrapolation(11.0, 1.5), 10.0),
    PlanError("collect/llama", "money", Extrapolation(27.5, 3.75), 25.0),
)


def made_plan(margin=0.1, **changes):
    quantities = {
        "prompt_tokens": 1.2e6,
        "training_tokens": 5.2e6,
        "inference_tokens": 8.0e6,
        "device_hours": 12.5,
        "disk_bytes": 3.1e9,
        "money": 31.25,
    }
    total = {
        name: Extrapolation(value, margin * value if margin is not None else None) for name, value in quantities.items()
    }
    stages = tuple(
        StagePlan(f"collect/{name}", "f00d", total | {"seconds": Extrapolation(5400.0, 0.0)})
        for name in ("llama", "mpt")
    )
    disk = {"eager": Extrapolation(3.1e9, 3.1e8), "lazy": Extrapolation(1.2e9, 2.4e8)}
    whole = {"num_probed": 64, "num_rows": 50_000, "seed": 7, "currency": "EUR", "stages": stages, "total": total}
    return ProbedPlan(**(whole | {"disk_bytes": disk} | changes))


def printed(table):
    out = io.StringIO()
    Console(file=out, width=100).print(table)
    return out.getvalue()


@pytest.mark.parametrize(
    ("quantity", "value", "expected"),
    [
        ("training_tokens", 1234567.4, "1,234,567"),
        ("seconds", 59.4, "59.4 s"),
        ("seconds", 5400, "90 min"),
        ("seconds", 36_000, "10 h"),
        ("disk_bytes", 999, "999 B"),
        ("disk_bytes", 3.14159e9, "3.14 GB"),
        ("money", 1234.5, "1,234.50"),
        ("device_hours", 0.00123, "0.0012"),
    ],
)
def test_amounts_are_shown_in_suitable_units(quantity, value, expected):
    assert amount(quantity, value) == expected


def test_a_plan_fits_in_100_columns():
    text = printed(plan_table(made_plan()))
    assert max(len(line) for line in text.splitlines()) <= 100
    for part in ("64 of 50,000 rows", "seed 7", "EUR", "5,200,000", "+-10 %", "12.50", "3.1 GB", "90 min", "exact"):
        assert part in text
    words = " ".join(plan_words(made_plan(notes=("few rows",))))
    assert "3.1 GB (+-10 %) with eager signals, 1.2 GB (+-20 %) with lazy signals" in words
    assert "do not cover the speed of a full queue" in words
    assert words.endswith("Few rows.")
    assert "+- ?" in printed(plan_table(made_plan(margin=None)))


def test_the_terminal_shows_the_errors_of_a_plan():
    text = printed(plan_error_table(made_up.facts(plan_errors=ERRORS)))
    assert max(len(line) for line in text.splitlines()) <= 100
    for part in ("52,000", "48,000 to 56,000", "50,000", "+4.0 %", "yes", "2.5 h", "2 h", "+25.0 %", "no", "2.5 GB"):
        assert part in text
    assert "9.50 to 12.50" in text
    assert "23.75 to 31.25" in text
    priced = made_up.facts(plan_errors=ERRORS, recipe=made_up.recipe() | {"plan": {"currency": "EUR"}})
    lines = plan_error_lines(priced)
    assert [line.inside for line in lines] == ["yes", "no", "-", "yes", "yes"]
    assert [line.quantity for line in lines][3:] == ["device hours", "EUR"]


def test_the_page_shows_the_errors_of_a_plan_if_there_is_one():
    page = render_page(made_up.facts(plan_errors=ERRORS), {})
    section = page[page.index('<section id="plan">') :].split("</section>")[0]
    rows = [re.sub(r"<[^>]+>|\s+", " ", row).split() for row in section.split("<tr>")[2:]]
    assert len(rows) == len(ERRORS)
    assert rows[0][-3:] == ["+4.0", "%", "yes"]
    assert "&lt;b&gt;mpt" in section
    assert 'href="#plan"' in page
    assert "Plan and run" not in render_page(made_up.facts(), {})
    assert 'href="#plan"' not in render_page(made_up.facts(), {})
