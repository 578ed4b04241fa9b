"""Records a cluster's nodes during a run, as a table, a plot and a bill."""

import json
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from profuser.report.plots.style import LIGHT, Theme, new_figure, styled

SAMPLE_SECONDS = 0.5


@dataclass(frozen=True)
class Sample:
    """State of the cluster at one moment."""

    seconds: float
    """Seconds since the run began."""
    nodes: Mapping[str, int]
    """Number of nodes by group, without the head."""
    stages: tuple[str, ...]
    """Parts of the pipeline that were running."""


class NodeWatch:
    """Samples a cluster's nodes and a run's stages in a thread, from construction until `end`.

    Args:
        address: address of the cluster.
        groups: names of its node groups.
        summary: the run's `summary.json`, which may not exist yet.
    """

    def __init__(self, address: str, groups: Sequence[str], summary: Path):
        self.address, self.groups, self.summary = address, groups, summary
        self.samples: list[Sample] = []
        self._began, self._ended = time.monotonic(), threading.Event()
        self._sample()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def seconds(self) -> float:
        """Returns the seconds since construction."""
        return time.monotonic() - self._began

    def end(self) -> list[Sample]:
        """Stops sampling and returns all samples."""
        self._ended.set()
        self._thread.join()
        return self.samples

    def _watch(self) -> None:
        from ray.exceptions import RpcError

        while not self._ended.wait(SAMPLE_SECONDS):
            with suppress(RpcError):  # a head that is too busy to answer is asked again
                self._sample()

    def _sample(self) -> None:
        from ray.autoscaler.v2.sdk import get_cluster_status

        status = get_cluster_status(self.address)
        found = Counter(node.ray_node_type_name for node in (*status.active_nodes, *status.idle_nodes))
        nodes = {group: found[group] for group in self.groups}
        self.samples.append(Sample(self.seconds(), nodes, self._stages()))

    def _stages(self) -> tuple[str, ...]:
        with suppress(FileNotFoundError, json.JSONDecodeError):
            stages = json.loads(self.summary.read_text())["stages"]
            return tuple(name for name, entry in stages.items() if entry["state"] == "running")
        return ()


def rows(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Returns the samples as rows of a table."""
    return [{"seconds": round(each.seconds, 1), **each.nodes, "stages": " ".join(each.stages)} for each in samples]


def stage_times(samples: Sequence[Sample]) -> dict[str, tuple[float, float]]:
    """Returns when each stage began and ended, in seconds, over all its parts."""
    out: dict[str, tuple[float, float]] = {}
    for sample, following in pairwise(samples):
        for stage in {part.split("/")[0] for part in sample.stages}:
            out[stage] = (out.get(stage, (sample.seconds,))[0], following.seconds)
    return out


@dataclass(frozen=True)
class GroupBill:
    """Cost of a group of nodes in a run, with and without autoscaling."""

    group: str
    most_nodes: int
    """Peak number of concurrent nodes: the size of a fixed cluster."""
    price_per_node_hour: float
    node_seconds: float
    """Actual node-seconds until the last node was removed, including idle time."""
    fixed_node_seconds: float
    """Node-seconds of the peak number of nodes, from the run's first second to its last."""

    @property
    def cost(self) -> float:
        """Cost with autoscaling."""
        return self.node_seconds / 3600 * self.price_per_node_hour

    @property
    def fixed_cost(self) -> float:
        """Cost at a fixed size."""
        return self.fixed_node_seconds / 3600 * self.price_per_node_hour


def bill(samples: Sequence[Sample], run_seconds: float, prices: Mapping[str, float]) -> list[GroupBill]:
    """Returns the bill of every priced group; a group missing from the samples is the head, which exists for the whole run."""
    out = []
    for group, price in prices.items():
        counts = [sample.nodes.get(group, 0) for sample in samples]
        most = max(counts)
        spent = sum(
            count * (after.seconds - before.seconds)
            for count, (before, after) in zip(counts, pairwise(samples), strict=False)
        )
        if group not in samples[0].nodes:
            most, spent = 1, run_seconds
        out.append(GroupBill(group, most, price, spent, most * run_seconds))
    return out


def node_plot(samples: Sequence[Sample], idle_seconds: float, theme: Theme = LIGHT) -> Figure:
    """Plots each group's nodes over time in a panel, with the stages as bands behind."""
    groups = list(samples[0].nodes)
    with styled(theme):
        figure = new_figure(1.0 + 0.72 * len(groups))
        panels: Any = figure.subplots(len(groups), 1, sharex=True)
        for axes, group, colour in zip(panels, groups, theme.others, strict=False):
            _panel(axes, samples, group, colour)
            _bands(axes, stage_times(samples), theme)
        _name_bands(panels[0], stage_times(samples))
        panels[-1].set_xlabel(f"seconds since the run began; idle nodes are removed after {idle_seconds:g} s")
        figure.suptitle("Nodes by group, without the head", fontsize=10)
    return figure


def _panel(axes: Axes, samples: Sequence[Sample], group: str, colour: str) -> None:
    seconds = [sample.seconds for sample in samples]
    counts = [sample.nodes[group] for sample in samples]
    axes.fill_between(seconds, counts, step="post", color=colour, alpha=0.35, linewidth=0)
    axes.step(seconds, counts, where="post", color=colour, linewidth=1.4)
    axes.set_ylim(0, max(1, *counts) + 0.25)
    axes.set_xlim(0, seconds[-1])
    axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=3))
    axes.set_ylabel(group, rotation=0, ha="right", va="center")


def _bands(axes: Axes, times: Mapping[str, tuple[float, float]], theme: Theme) -> None:
    for number, (begin, end) in enumerate(times.values()):
        if number % 2 == 0:
            axes.axvspan(begin, end, color=theme.grid, alpha=0.45, linewidth=0, zorder=0)


def _name_bands(axes: Axes, times: Mapping[str, tuple[float, float]]) -> None:
    for stage, (begin, end) in times.items():
        middle = (begin + end) / 2
        axes.annotate(
            stage, (middle, 1), (0, 3), xycoords=("data", "axes fraction"), textcoords="offset points",
            rotation=55, ha="left", va="bottom", fontsize=8.5,
        )  # fmt: skip
