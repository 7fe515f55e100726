"""Draw what deeper backward passes bring and cost, from committed results: ``python docs/figures/sweep.py``.

One panel a network: how it learns, over the time of a step in steps of backpropagation. Each point is a depth p of the
backward pass, by cuts that alternate and by windows; p = 1 is the plain rule. Points without a result or a time are
left out.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from schemes import FOLDER, INK, LINES, save

ROOT = FOLDER.parents[1]
WAYS = {"alternate": ("cuts that alternate", "FDFA"), "window": ("windows", "DFA")}
"""For each way to a deeper pass its words, and the rule whose colour it has."""
DEPTHS = (1, 2, 3, 4)


@dataclass(frozen=True)
class Panel:
    """Where the values of a panel stand.

    Attributes:
        table: The name of the results.
        column: Their column.
        plain: The row of p = 1.
        net: The beginning of the network's name in the benchmark.
        subject: The plain rule's name there.
        axis: What is drawn.
    """

    table: str
    column: str
    plain: str
    net: str
    subject: str
    axis: str


PANELS = (
    Panel("fast-cifar10", "test accuracy", "LMS, every 4", "3 conv", "LMS, channels, every=4", "test accuracy, %"),
    Panel("fast-brown", "12 blocks, pre-norm", "FDFA", "12 blocks", "FDFA, every=16", "validation perplexity"),
)


def learned(panel: Panel) -> dict[str, float]:
    """Return the mean of every row that has been run."""
    table = json.loads((ROOT / "results" / f"{panel.table}.json").read_text())
    cells = [cell for cell in table["tables"]["full"] if cell["column"] == panel.column]
    return {cell["row"]: cell["mean"] for cell in cells if cell["mean"] is not None}


def times(panel: Panel) -> dict[str, float]:
    """Return the median time of every subject, in steps of backpropagation."""
    rows: list[dict[str, Any]] = json.loads((ROOT / "benchmarks" / "results" / "step.json").read_text())["rows"]
    return {row["subject"]: row["time"]["median"] for row in rows if row["net"].startswith(panel.net)}


def curve(panel: Panel, way: str) -> dict[int, tuple[float, float]]:
    """Return time and result by depth."""
    result, time = learned(panel), times(panel)
    words = {"alternate": "alternate {}", "window": "window of {}"}[way]
    names = {
        p: (panel.plain, panel.subject) if p == 1 else (words.format(p), f"{panel.subject}, {way}={p}") for p in DEPTHS
    }
    return {p: (time[subject], result[row]) for p, (row, subject) in names.items() if row in result and subject in time}


def figure(scheme: str) -> Figure:
    """Draw both panels."""
    drawn, both = plt.subplots(1, len(PANELS), figsize=(9.6, 3.8), layout="constrained")
    for axes, panel in zip(both, PANELS, strict=True):
        for way, (words, colour) in WAYS.items():
            points = curve(panel, way)
            drawn_at = [[point[axis] for point in points.values()] for axis in (0, 1)]  # two empty lists for no point
            axes.plot(*drawn_at, "o-", color=LINES[colour][scheme], linewidth=2, label=words)
            for p, point in points.items():
                axes.annotate(f"{p}", point, xytext=(0, 7), textcoords="offset points", ha="center", color=INK[scheme])
        if (reference := learned(panel).get("BP")) is not None:
            axes.plot(1, reference, "s", color=LINES["BP"][scheme], label="backpropagation")
        axes.set(title=panel.net, xlabel="time of a step, in steps of backpropagation", ylabel=panel.axis)
    both[0].legend(frameon=False, loc="lower right")
    return drawn


if __name__ == "__main__":
    save("sweep", figure)
