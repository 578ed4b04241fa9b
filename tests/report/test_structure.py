"""Accessibility and layout of the page: screen readers, contrast, print and narrow windows."""

import html
import json
import re
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

import profuser.report
from profuser.report.facts import RunFacts
from profuser.report.page import render_page
from profuser.report.plots.style import DARK, LIGHT
from tests.browser import CHROMIUM
from tests.report import made_up

TEMPLATES = Path(profuser.report.__file__).parent / "templates"
CSS = (TEMPLATES / "style.css").read_text()
RUNS = {
    "whole": made_up.measured(),
    "without intervals": made_up.facts(),
    "empty": RunFacts(name="empty", recipe={}),
}
LONG = "x" * 90
CROWDED = made_up.measured(
    scores=made_up.scores(skills=(LONG, "a rather long category of questions")),
    samples=[made_up.sample(LONG, "word " * 400), made_up.sample("b", LONG * 9)],
    quarantined=[{"file": f"{LONG}.jsonl", "line": 3, "reason": LONG, "excerpt": LONG}],
    quarantine_reasons={LONG: 1},
    selection=made_up.selection((LONG, "mpt", "neox")),
)


class Outline(HTMLParser):
    """Collects the tags of a page, in order."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def named(self, *names: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag in names]


@pytest.fixture(params=RUNS.values(), ids=RUNS.keys())
def outline(request) -> Outline:
    return Outline(render_page(request.param, {}))


def test_headings_descend_by_one(outline):
    levels = [int(tag[1]) for tag, _ in outline.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_landmarks_links_and_labels_reach_every_part(outline):
    assert outline.named("html")[0]["lang"] == "en"
    for landmark in ("header", "nav", "main", "footer"):
        assert len(outline.named(landmark)) == 1
    links = [link["href"] for link in outline.named("a")]
    assert links[0] == f"#{outline.named('main')[0]['id']}"
    assert links[1:] == [f"#{section['id']}" for section in outline.named("section")]
    ids = [attributes["id"] for _, attributes in outline.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(group.get("aria-label") for _, group in outline.tags if group.get("role") == "group")


def test_every_table_has_a_caption_and_every_heading_cell_its_scope(outline):
    tags = [tag for tag, _ in outline.tags]
    after_tables = [tags[place + 1] for place, tag in enumerate(tags) if tag == "table"]
    assert after_tables == ["caption"] * len(after_tables)
    assert all(cell["scope"] in ("col", "row", "colgroup") for cell in outline.named("th"))


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 defines it."""
    digits = colour.lstrip("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[place : place + 2], 16) / 255 for place in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted(map(luminance, (first, second)))
    return (high + 0.05) / (low + 0.05)


def test_text_has_enough_contrast_on_light_dark_and_paper():
    assert contrast("#000", "#fff") == pytest.approx(21)
    palettes = [dict(re.findall(r"--([\w-]+): (#\w+)", block)) for block in re.findall(r":root \{([^}]*)\}", CSS)]
    assert len(palettes) == 3
    for palette in palettes:
        for text in ("text", "soft", "better", "worse", "mark"):
            for ground in ("page", "card"):
                assert contrast(palette[text], palette[ground]) >= 4.5, (text, ground, palette)
        for verdict in ("better", "worse"):
            assert contrast(palette[verdict], palette[f"{verdict}-bg"]) >= 4.5


@pytest.mark.parametrize("theme", [LIGHT, DARK])
def test_lines_and_dots_have_enough_contrast(theme):
    assert contrast(theme.text, theme.background) >= 4.5
    for colour in (*theme.modes.values(), *theme.models.values(), *theme.others):
        assert contrast(colour, theme.background) >= 3, colour


def test_print_is_never_dark():
    queries = re.findall('[^{}"]*dark[^{}"]*', CSS + (TEMPLATES / "macros.html.j2").read_text())
    conditions = [query for query in queries if "prefers-color-scheme" in query]
    assert len(conditions) == 2
    assert all("screen and" in condition for condition in conditions)


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_no_page_is_wider_than_its_window(tmp_path):
    page, widths = html.escape(render_page(CROWDED, {})), (320, 390, 1280)
    frames = [f'<iframe width="{width}" height="800" style="border: 0" srcdoc="{page}"></iframe>' for width in widths]
    measure = "f => [f.contentDocument.documentElement.scrollWidth, f.contentDocument.querySelectorAll('table').length]"
    script = f"document.title = JSON.stringify([...document.querySelectorAll('iframe')].map({measure}))"
    file = tmp_path / "frames.html"
    file.write_text(f"{''.join(frames)}<script>addEventListener('load', () => {{ {script} }})</script>", "utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    done = subprocess.run([*command, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=60)
    found = json.loads(re.findall(r"<title>(\[.*?)</title>", done.stdout)[0])
    for width, (scroll_width, num_tables) in zip(widths, found, strict=True):
        assert num_tables > 8
        assert scroll_width <= width
