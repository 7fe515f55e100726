"""Tables on the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from bpfree.lab.recipe.schema import Recipe, Scale
from bpfree.lab.report.text import DASH, count, failures, mean_std, number, tolerances

MARKS = {True: "yes", False: "no", None: DASH}


def table(recipe: Recipe, scale: Scale, entries: Sequence[Mapping[str, Any]]) -> Table:
    """Return a table with one line per cell: the paper's number, the measured one, and whether the two agree."""
    notes = [f"Scale: {scale.name}{f' ({scale.cut})' if scale.cut else ''}"]
    notes += [f"Deviation: {deviation}" for deviation in recipe.deviations]
    result = Table(title=recipe.title, caption="\n".join(notes), caption_justify="left")
    _columns(result, ("row", "column"), ("paper", "measured", "seeds", "within\ntolerance"))
    allowed = tolerances(entries)
    for entry in entries:
        tolerance = allowed.get(entry["column"])
        result.add_row(*_row(entry, f" ({tolerance})" if tolerance else ""))
    return result


def _columns(result: Table, names: Sequence[str], numbers: Sequence[str]) -> None:
    """Add columns; on a narrow terminal the names fold and the numbers stay."""
    for heading in names:
        result.add_column(heading, overflow="fold")
    for heading in numbers:
        result.add_column(heading, justify="right", no_wrap=True)


def _row(entry: Mapping[str, Any], tolerance: str) -> list[str]:
    return [
        entry["row"],
        entry["column"] + tolerance,
        mean_std(entry["paper"], entry["paper_std"], entry["digits"]),
        f"{mean_std(entry['mean'], entry['std'], entry['digits'])}\n{failures(entry).strip()}".rstrip(),
        str(entry["seeds"]),
        MARKS[entry["within"]],
    ]


def cost(recipe: Recipe, taken: Mapping[str, Any]) -> Table:
    """Return the cost of a table: one line per row, and the sum."""
    result = Table(title=f"{recipe.title}: what it takes", caption=assumption(taken), caption_justify="left")
    of_a_step = ("steps\na run", "GFLOP\na step", "operations\na step")
    _columns(result, ("row",), ("runs", *of_a_step, "GiB", "hours\nhere", "hours\non a GPU"))
    for row in taken["rows"]:
        amount = [number(row["step_flops"] / 1e9, 1), number(row["step_operations"], 0)]
        result.add_row(row["label"], f"{row['runs']:,}", f"{row['steps']:,}", *amount, *hours(row))
    result.add_section()
    result.add_row("all", f"{taken['runs']:,}", "", "", "", *hours(taken))
    return result


def hours(taken: Mapping[str, Any]) -> list[str]:
    """Return memory, hours on the machine that measured, and hours on a GPU."""
    return [number(taken["bytes"] / 2**30, 2), number(taken["hours"], 2), number(taken["gpu_hours"], 2)]


def assumption(taken: Mapping[str, Any]) -> str:
    """Return a sentence on the assumption behind the hours on a GPU."""
    threads = count(taken["environment"]["threads"], "thread")
    here = f"Here: {taken['environment']['processor'] or DASH}, {threads}."
    if taken["assumed"] is None:
        return f"{here} GPU: {taken['environment']['gpu']}, measured."
    flops, launch = taken["assumed"]["flops"], taken["assumed"]["launch"] * 1e6
    by_precision = flops if isinstance(flops, Mapping) else {"float32": flops}
    speeds = " and ".join(
        f"{speed / 1e12:g} TFLOP/s" + (f" in {name}" if name != "float32" else "")
        for name, speed in by_precision.items()
    )
    return (
        f"{here} GPU: not measured. Assumed are {speeds} in the matrix products counted in a step, or "
        f"{launch:g} µs for each of its operations where that is more."
    )


def recipes(found: Sequence[Recipe]) -> Table:
    """Return the recipes that there are."""
    result = Table()
    for heading in ("name", "what", "cells", "scales"):
        result.add_column(heading, no_wrap=heading == "name", justify="right" if heading == "cells" else "left")
    for recipe in found:
        scales = "; ".join(f"{scale.name}: {count(scale.seeds, 'seed')}" for scale in recipe.scales.values())
        result.add_row(recipe.name, recipe.title, str(len(recipe.rows) * len(recipe.columns)), scales)
    return result
