"""Style of the plots: two themes and Matplotlib's settings.

Colours are Okabe and Ito's or close to them, so that colour-blind readers can distinguish them. Shape or position repeats the
information.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font

from profuser.run.stages import FUSED, TARGET
from profuser.signals.rules import RULES

WIDTH_INCHES = 4.8
"""Width of a figure: 10-point text stays legible when scaled to a phone."""


@dataclass(frozen=True)
class Theme:
    """Colours of text, lines and data, on a light or a dark page."""

    text: str
    grid: str
    background: str
    modes: Mapping[str, str]
    models: Mapping[str, str]
    others: Sequence[str]
    """Colours of the sources, in order."""


MODE_LINES: Mapping[str, Any] = {
    "training": "-",
    "inference": (0, (5, 1.2)),
    "preference": (0, (1, 1)),
    "on_policy": (0, (5, 1, 1, 1)),
}
MODE_MARKERS = {"training": "s", "inference": "o"}
MODE_HATCHES = {"training": "", "inference": "////"}
"""Hatches that distinguish the modes without colour."""

LIGHT = Theme(
    text="#1f2328",
    grid="#d8dee4",
    background="#ffffff",
    modes={"training": "#0072b2", "inference": "#d55e00", "preference": "#009e73", "on_policy": "#a05195"},
    models={TARGET: "#1f2328", FUSED: "#d55e00"},
    others=("#0072b2", "#009e73", "#b06090", "#997700", "#3f8fbc"),
)
DARK = Theme(
    text="#e6edf3",
    grid="#3a414a",
    background="#161b22",
    modes={"training": "#56b4e9", "inference": "#e69f00", "preference": "#2fc79c", "on_policy": "#cc79a7"},
    models={TARGET: "#e6edf3", FUSED: "#ff8c42"},
    others=("#56b4e9", "#2fc79a", "#e59ac8", "#f0e442", "#9ecbff"),
)


def new_figure(height_inches: float) -> Figure:
    """Returns an empty figure that is not registered with pyplot."""
    return Figure(figsize=(WIDTH_INCHES, height_inches), layout="constrained")


@contextmanager
def styled(theme: Theme) -> Iterator[None]:
    """Applies Matplotlib's settings for a theme."""
    settings: dict[Any, Any] = {
        "text.parse_math": False,  # a dollar sign in a category is literal
        "font.size": 10,
        "axes.labelsize": 9.5,
        "figure.titlesize": 11.5,
        "figure.titleweight": "bold",
        "legend.frameon": False,
        "legend.fontsize": 9,
        "axes.axisbelow": True,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "figure.facecolor": theme.background,
        "axes.facecolor": theme.background,
        "grid.color": theme.grid,
        "axes.edgecolor": theme.grid,
        **dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color"), theme.text),
    }
    with mpl.rc_context(settings):
        yield


def drawable(text: str) -> str:
    """Replaces characters that matplotlib's own font lacks by their code points."""
    font = get_font(findfont(FontProperties()))
    return "".join(c if font.get_char_index(ord(c)) else f"U+{ord(c):04X}" for c in text)


def rule_look(theme: Theme, rule: str) -> dict[str, Any]:
    """Returns Matplotlib's fill, edge and hatch for tokens that an alignment rule covers."""
    colours = dict(zip(RULES, (*theme.others[1:2], theme.modes["inference"], theme.modes["training"]), strict=False))
    edge = colours.get(rule, theme.text)
    return {"facecolor": f"{edge}33", "edgecolor": edge, "hatch": RULES[rule].hatch}


def label_background(theme: Theme, look: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the background that keeps a label readable on a hatch."""
    if not look.get("hatch"):
        return None
    return {"facecolor": theme.background, "edgecolor": "none", "pad": 0.6, "alpha": 0.85}
