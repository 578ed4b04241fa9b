"""Plot of two tokenizations on one byte ruler, with the rule that aligns each target token."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from profuser.alignment.transport import Transported
from profuser.report.plots.style import LIGHT, Theme, drawable, label_background, rule_look, styled
from profuser.report.tables.alignment import END_WORD, SPACE_SIGN, Aligned, Cut, Masses
from profuser.signals.rules import RULES, Rule

MOST_BYTES = 34
"""Maximum per line of the ruler; a longer text is wrapped."""
BYTE_INCHES, MARGIN_INCHES = 0.27, 1.1
CHARACTERS, BYTES, SOURCE, TARGET, LETTERS = 4.3, 3.5, 2.4, 0.9, 0.32
"""Vertical centre of each row of the picture."""
BOX = 0.62
LETTER_WIDTH = 0.062
"""Inches per letter of a token."""


def ruler_plot(aligned: Aligned, carried: Transported | None = None, theme: Theme = LIGHT) -> Figure:
    """Plots a text's characters and bytes, the tokens of both tokenizers below them, and the rule of each target token.

    A solid arrow leads from the source token whose distribution is used to the target position; under CHAIN, dashed arrows lead
    from the tokens whose probabilities are multiplied to it. Characters that the font lacks are shown as code points, so that
    matplotlib's own font is enough.

    Args:
        aligned: both tokenizations.
        carried: transported distributions; if given, bars under the target tokens show their mass.
        theme: colours.
    """
    lines = list(_lines(aligned))
    longest = max(end - start for start, end in lines)
    heights = [3.0, 1.0] if carried else [3.0]
    masses = Masses.of(carried, aligned.target.ids) if carried else None
    with styled(theme):
        size = (MARGIN_INCHES + BYTE_INCHES * longest, 0.9 + len(lines) * 0.68 * sum(heights))
        figure = Figure(figsize=size, layout="constrained")
        grid = {"height_ratios": heights * len(lines)}
        panels: Any = figure.subplots(len(lines) * len(heights), 1, squeeze=False, gridspec_kw=grid)[:, 0]
        for place, (start, end) in enumerate(lines):
            axes = panels[place * len(heights)]
            axes.set_xlim(start, start + longest)
            _ruler(axes, aligned, start, end, theme)
            if masses:
                below = panels[place * len(heights) + 1]
                below.set_xlim(start, start + longest)
                _bars(below, aligned.target, masses, start, end, theme)
        figure.suptitle(f"{aligned.source.name} to {aligned.target.name}: {len(aligned.target.ids)} target tokens")
        used = [rule.name.lower() for rule in Rule if rule in aligned.rules]
        legend = [_swatch(theme, rule, f"{rule[:2]}  {rule}: {RULES[rule].meaning}") for rule in RULES if rule in used]
        if masses:
            looks = zip(("mass on the token itself", "on other tokens", "tail"), _mass_looks(theme), strict=True)
            legend += [Rectangle((0, 0), 1, 1, label=name, **look) for name, look in looks]
        figure.legend(handles=legend, loc="outside lower center", ncols=min(2, max(1, int(size[0] // 2.9))))
    return figure


def _lines(aligned: Aligned) -> Iterator[tuple[int, int]]:
    """Yields the lines of the ruler, `[start, end)`. It starts one position before the first byte if a token spells a space there,
    and ends one position after the last byte, for the end of the turn.
    """
    first, end = min(int(aligned.source.bounds[0]), int(aligned.target.bounds[0]), 0), len(aligned.target.text) + 1
    number = -(-(end - first) // MOST_BYTES)
    width = -(-(end - first) // number)
    for start in range(first, end, width):
        yield start, min(start + width, end)


def _ruler(axes: Axes, aligned: Aligned, start: int, end: int, theme: Theme) -> None:
    """Draws one line of the ruler: the text, its bytes, and the tokens of both tokenizers."""
    axes.set_ylim(0, CHARACTERS + 0.4)
    axes.set_xticks([])
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    names = ("text", "bytes", aligned.source.name, aligned.target.name)
    axes.set_yticks((CHARACTERS, BYTES, SOURCE, TARGET), names, fontsize=8.5)
    axes.tick_params(length=0)
    _characters(axes, aligned.target.text, start, end, theme)
    look = {"facecolor": theme.background, "edgecolor": theme.text}
    for span, label in zip(_spans(aligned.source), aligned.source.labels, strict=True):
        _box(axes, span, SOURCE, label, (start, end), look, theme)
    for position, (span, label) in enumerate(zip(_spans(aligned.target), aligned.target.labels, strict=True)):
        rule = aligned.rule(position).name.lower()
        _box(axes, span, TARGET, label, (start, end), rule_look(theme, rule), theme)
        if start <= span[0] < end:
            middle = (span[0] + min(span[1], end)) / 2
            axes.text(middle, LETTERS, rule[:2], ha="center", va="center", fontsize=7.5)
            _arrows(axes, aligned, position, span, theme)


def _spans(cut: Cut) -> list[tuple[int, int]]:
    """Returns the positions of the token boxes; an end of turn gets one position."""
    pairs = zip(cut.bounds[:-1].tolist(), cut.bounds[1:].tolist(), strict=True)
    return [(start, end if end > start else start + 1) for start, end in pairs]


def _characters(axes: Axes, text: bytes, start: int, end: int, theme: Theme) -> None:
    """Draws the text with its bytes below, and a line where a character begins."""
    place = 0
    for character in text.decode(errors="replace"):
        width = len(character.encode())
        if place < end and place + width > start:
            middle = (max(place, start) + min(place + width, end)) / 2
            shown = SPACE_SIGN if character == " " else drawable(character)
            axes.text(middle, CHARACTERS, shown, ha="center", va="center", fontsize=10 if len(shown) == 1 else 7)
        if start <= place < end:
            axes.plot([place, place], [BYTES - 0.35, CHARACTERS + 0.35], color=theme.grid, linewidth=0.8, zorder=0)
        place += width
    for byte in range(max(start, 0), min(end, len(text))):
        axes.text(byte + 0.5, BYTES, f"{text[byte]:02X}", ha="center", va="center", fontsize=6.5, family="monospace")
    if start <= len(text) < end:
        axes.text(len(text) + 0.5, CHARACTERS, END_WORD, ha="center", va="center", fontsize=7)


def _box(
    axes: Axes,
    span: tuple[int, int],
    height: float,
    label: str,
    line: tuple[int, int],
    look: Mapping[str, Any],
    theme: Theme,
) -> None:
    """Draws the part of a token that is on this line."""
    left, right = max(span[0], line[0]), min(span[1], line[1])
    if left >= right:
        return
    gap = 0.06
    corner = (left + gap, height - BOX / 2)
    axes.add_patch(Rectangle(corner, right - left - 2 * gap, BOX, linewidth=0.9, zorder=2, **look))
    shown = drawable(label)
    room = max(1, int((right - left) * BYTE_INCHES / LETTER_WIDTH))
    size = 7.0 if len(shown) <= room else max(4.5, 7.0 * room / len(shown))
    axes.text(
        (left + right) / 2,
        height,
        shown,
        ha="center",
        va="center",
        fontsize=size,
        zorder=3,
        bbox=label_background(theme, look),
    )


def _arrows(axes: Axes, aligned: Aligned, position: int, span: tuple[int, int], theme: Theme) -> None:
    """Draws an arrow to a target token from each source token whose probability it uses."""
    for number, source in enumerate(aligned.source_tokens_of(position)):
        start, _ = _spans(aligned.source)[source]
        x = max(span[0], start) + 0.5
        style = {"arrowstyle": "-|>", "linestyle": "--" if number else "-", "linewidth": 0.8, "mutation_scale": 7}
        ends: dict[str, Any] = {"xy": (x, TARGET + BOX / 2), "xytext": (x, SOURCE - BOX / 2)}
        axes.annotate("", **ends, arrowprops={**style, "color": theme.text, "shrinkA": 0, "shrinkB": 0}, zorder=1)


def _swatch(theme: Theme, rule: str, label: str) -> Rectangle:
    return Rectangle((0, 0), 1, 1, label=label, **rule_look(theme, rule))


def _mass_looks(theme: Theme) -> list[dict[str, Any]]:
    """Returns the styles of mass on the token itself, on other tokens, and in the tail."""
    return [
        {"facecolor": theme.modes["training"], "edgecolor": theme.background, "linewidth": 0},
        {
            "facecolor": f"{theme.modes['training']}66",
            "edgecolor": theme.modes["training"],
            "hatch": "////",
            "linewidth": 0,
        },
        {"facecolor": theme.grid, "edgecolor": theme.background, "linewidth": 0},
    ]


def _bars(axes: Axes, target: Cut, masses: Masses, start: int, end: int, theme: Theme) -> None:
    """Draws the mass of each target token below it, as wide as the token."""
    parts = np.stack([masses.realised, masses.others, masses.tail], axis=1)
    for (left, right), shares in zip(_spans(target), parts, strict=True):
        left, right = max(left, start), min(right, end)
        bottom = 0.0
        for share, look in zip(shares, _mass_looks(theme), strict=True):
            if left < right:
                axes.add_patch(Rectangle((left + 0.06, bottom), right - left - 0.12, share, **look))
            bottom += share
    axes.set_ylim(0, 1.02)
    axes.set_xticks([])
    axes.set_yticks([0, 1])
    axes.tick_params(labelsize=7.5)
    axes.set_ylabel("mass", fontsize=8.5)
