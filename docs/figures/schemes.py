"""The look of every chart, once for light pages and once for dark ones. Text stays text in the SVG: small files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

FOLDER = Path(__file__).parent
INK = {"light": "#1f2328", "dark": "#e6edf3"}
GRID = {"light": "#d1d9e0", "dark": "#3d444d"}
LINES = {
    "BP": {"light": "#59636e", "dark": "#9198a1"},
    "Shallow": {"light": "#a40e26", "dark": "#ff8182"},
    "DFA": {"light": "#b04500", "dark": "#f0903e"},
    "GrAPE": {"light": "#8250df", "dark": "#b98cff"},
    "FDFA": {"light": "#0969da", "dark": "#58a6ff"},
}
NAMES = {"Shallow": "frozen control"}


def save(name: str, draw: Callable[[str], Figure]) -> None:
    """Write ``NAME-light.svg`` and ``NAME-dark.svg`` beside this file; ``draw`` gets the scheme's name."""
    for scheme in INK:
        look = {
            "svg.fonttype": "none",
            "svg.hashsalt": name,
            "font.family": "sans-serif",
            "font.size": 13,
            "text.color": INK[scheme],
            "axes.labelcolor": INK[scheme],
            "axes.edgecolor": GRID[scheme],
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.color": GRID[scheme],
            "grid.linewidth": 0.6,
            "xtick.color": INK[scheme],
            "ytick.color": INK[scheme],
        }
        with plt.rc_context(look):
            figure = draw(scheme)
            figure.savefig(FOLDER / f"{name}-{scheme}.svg", transparent=True, metadata={"Date": None})
            plt.close(figure)


def label_ends(axes: plt.Axes, ends: dict[str, float], x: float, apart: float, scheme: str) -> None:
    """Write every line's name at its right end; names keep the distance ``apart``."""
    height = float("-inf")
    for rule, y in sorted(ends.items(), key=lambda end: end[1]):
        height = max(y, height + apart)
        axes.annotate(
            NAMES.get(rule, rule),
            (x, height),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=LINES[rule][scheme],
            annotation_clip=False,
        )
