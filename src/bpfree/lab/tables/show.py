"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from bpfree.lab.report.text import DASH, mean_std, number
from bpfree.lab.tables.recipe import Recipe, Scale

MARKS = {True: "yes", False: "no", None: DASH}


def table(recipe: Recipe, scale: Scale, entries: Sequence[Mapping[str, Any]]) -> Table:
    """One line a cell: the paper's number, the measured one, and whether the two agree."""
    notes = [f"Cut: {scale.cut}."] if scale.cut else []
    notes += [f"Deviation: {deviation}" for deviation in recipe.deviations]
    result = Table(title=recipe.title, caption="\n".join(notes), caption_justify="left")
    for heading in ("row", "column"):
        result.add_column(heading, no_wrap=True)
    for heading in ("paper", "measured", "seeds", "within tolerance", "scale"):
        result.add_column(heading, justify="right")
    for entry in entries:
        result.add_row(*_row(entry))
    return result


def _row(entry: Mapping[str, Any]) -> list[str]:
    measured = mean_std(entry["mean"], entry["std"], entry["digits"])
    return [
        entry["row"],
        entry["column"],
        mean_std(entry["paper"], entry["paper_std"], entry["digits"]),
        f"failed ({entry['seeds']} did not)" if entry["wrong"] else measured,
        str(entry["seeds"]),
        MARKS[entry["within"]]
        + (f" (± {number(entry['tolerance'], entry['digits'])})" if entry["within"] is not None else ""),
        entry["scale"],
    ]


def recipes(found: Sequence[Recipe]) -> Table:
    """The recipes that there are."""
    result = Table()
    for heading in ("name", "what", "cells", "scales"):
        result.add_column(heading, no_wrap=heading == "name", justify="right" if heading == "cells" else "left")
    for recipe in found:
        scales = "; ".join(f"{scale.name}: {scale.seeds} seeds" for scale in recipe.scales.values())
        result.add_row(recipe.name, recipe.title, str(len(recipe.rows) * len(recipe.columns)), scales)
    return result
