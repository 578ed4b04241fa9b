"""Prints the tables of `notebooks/README.md` from the benchmark's files: `python -m tests.benchmarks.peers.report FILE ...`."""

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

from tests.benchmarks.peers.exactness import RULES
from tests.benchmarks.peers.models import MANY, NAMES
from tests.benchmarks.peers.pairs import K
from tests.benchmarks.peers.stages import WIDTHS

PAIRS = tuple(f"{source} -> {target}" for source, target in permutations(NAMES, 2))
CARRYING = ("ours", "min_edit", "FuseLLM")


class Figures:
    """Figures of all files, by stage and name."""

    def __init__(self, reports: Sequence[dict[str, Any]]):
        self.by_name = {
            (stage, figure["name"]): figure
            for report in reports
            for stage, figures in report["figures"].items()
            for figure in figures
        }

    def get(self, stage: str, name: str) -> dict[str, Any] | None:
        return self.by_name.get((stage, name))

    def cell(self, stage: str, name: str, digits: int = 3, spread: bool = True) -> str:
        """Returns the value and its 95 % interval; a dash if it was not measured."""
        figure = self.get(stage, name)
        if figure is None:
            return "-"
        value = f"{figure['value']:,.{digits}f}"
        if not spread or figure["low"] is None:
            return value
        return f"{value} ({figure['low']:,.{digits}f} to {figure['high']:,.{digits}f})"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(found: Figures) -> Iterator[str]:
    """Yields the Markdown tables that have figures."""
    makers = {"bits": (bits, widths, exactly), "gradients": (gradients,), "exactness": (exactness,), "speed": (speed,)}
    makers |= {"ends": (ends,), "ends, short answers": (ends,)}
    for stage, each in makers.items():
        if any(name == stage for name, _ in found.by_name):
            for maker in each:
                yield f"{stage}: {maker.__doc__}\n\n{maker(found, stage)}"


def bits(found: Figures, stage: str) -> str:
    """bits per byte of the ground truth, K = 10, tail as `student`"""
    head = [
        "pair",
        "source itself",
        "target itself",
        *CARRYING,
        "positions taught, %: ours",
        "FuseLLM",
        "in the tail, %: ours",
    ]
    rows = [
        [
            pair,
            *(found.cell(stage, f"{pair}, the {side} itself", spread=False) for side in ("source", "target")),
            *(found.cell(stage, f"{pair}, {method}, tail as student") for method in CARRYING),
            *(found.cell(stage, f"{pair}, {method}, positions taught", 1, False) for method in ("ours", "FuseLLM")),
            found.cell(stage, f"{pair}, ours, positions in tail", 1, False),
        ]
        for pair in PAIRS
    ]
    return table(head, rows)


def widths(found: Figures, stage: str) -> str:
    """bits per byte by K: carried / the source's own top-K, tail as `uniform`; carried, tail as `student`; codec, bytes/token"""
    rows = []
    for pair in PAIRS:
        for k in WIDTHS:
            title = f"{pair}, carried top-{k} against the source's own, tail as uniform"
            figure = found.get(stage, title)
            own = "-" if figure is None else f"{figure['baseline']:.3f}"
            cells = [found.cell(stage, title, spread=False), own]
            cells.append(found.cell(stage, f"{pair}, carried top-{k}, tail as student", spread=False))
            rows.append([pair, str(k), *cells, found.cell(stage, f"{pair}, codec at K = {k}", 0, False)])
    return table(["pair", "K", "carried, uniform", "own, uniform", "carried, student", "codec"], rows)


def exactly(found: Figures, stage: str) -> str:
    """bits per byte under the carried top-10, tail as `uniform`, by `select.condition`"""
    rows = []
    for pair in PAIRS:
        names = (
            f"{pair}, carried top-{K}{how} against the source's own, tail as uniform"
            for how in ("", " under condition: exact")
        )
        tail, exact = (found.get(stage, name) for name in names)
        if tail and exact:
            rows.append([pair, *(f"{value:.4f}" for value in (tail["value"], exact["value"], tail["baseline"]))])
    return table(["pair", "`condition: tail`", "`condition: exact`", "own"], rows)


def gradients(found: Figures, stage: str) -> str:
    """agreement with the byte-level teacher, % of groups: not one to one; weighted by what there is to move; elsewhere"""
    titles = ("agreement where tokens do not match one to one",)
    titles += ("agreement where tokens do not match, weighted by what there is to move", "agreement elsewhere")
    rows = []
    for pair in PAIRS:
        names = [name for s, name in found.by_name if s == stage and name.startswith(pair) and name.endswith(titles[0])]
        for name in names:
            method = name.removeprefix(f"{pair}, ").removesuffix(f", {titles[0]}")
            count = str(found.by_name[stage, name]["num"])
            rows.append(
                [pair, method, *(found.cell(stage, f"{pair}, {method}, {title}", 0) for title in titles), count]
            )
    return table(["pair", "method", "not one to one", "the same, weighted", "elsewhere", "groups not one to one"], rows)


def exactness(found: Figures, stage: str) -> str:
    """total variation from the brute force, by rule"""
    rows = []
    for pair in (*PAIRS, "all pairs"):
        for rule in RULES:
            title = f"{pair}, {rule.name.lower()}"
            first = found.get(stage, f"{title}, total variation, K = {MANY:,}")
            if first is not None:
                few = "total variation of the loss's categories, K = 10"
                exact = "total variation under condition: exact"
                names = ("total variation, K = 1,024", f"{exact}, K = 1,024", few)
                names += (f"{exact}, of the loss's categories, K = 10", "realised token's mass, off by")
                cells = [found.cell(stage, f"{title}, {name}") for name in names]
                residual = found.cell(stage, f"{title}, residual of the brute force", spread=False)
                rows.append([pair, rule.name.lower(), str(first["num"]), *cells, residual])
    head = ["pair", "rule", "positions", "K = 1,024", "under `condition: exact`"]
    head += ["K = 10 and the tail", "under `condition: exact`", "realised token off by", "residual"]
    return table(head, rows)


def ends(found: Figures, stage: str) -> str:
    """the end of turn: mean masses, carried / the target's own; bits per answer of "the turn ends here" """
    places = ("at ends", "where the target goes on", "elsewhere")
    forecasts = ("as carried", "gained by a shift", "gained by a scale", "target")
    rows = []
    for pair in PAIRS:
        title = f"{pair}, end of turn"
        sides = [
            [found.cell(stage, f"{title}, {side} {place}", 4 if place == places[-1] else 2) for place in places]
            for side in ("carried", "target")
        ]
        both = [" / ".join(cells) for cells in zip(*sides, strict=True)]
        count = [found.cell(stage, f"{title}, {name}", 0) for name in ("ends", "ends where the target goes on")]
        rows.append([pair, *count, *both, *(found.cell(stage, f"{title}, {name}", 2) for name in forecasts)])
    head = ["pair", "ends", "of these the target continues at", *places, *forecasts]
    return table(head, rows)


def speed(found: Figures, stage: str) -> str:
    """tokens/s of transport at K = 10 on one core"""
    rows = []
    for pair in PAIRS:
        figure = found.get(stage, f"{pair}, transport at K = {K}, against FuseLLM's method in plain Python")
        if figure is not None:
            rows.append([pair, f"{figure['value']:,.0f}", f"{figure['baseline']:,.0f}"])
    return table(["pair", "ours", "FuseLLM's method in plain Python"], rows)


if __name__ == "__main__":
    print("\n\n".join(tables(Figures([json.loads(Path(name).read_text()) for name in sys.argv[1:]]))))
