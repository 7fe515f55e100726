"""What stands on the page: sections of charts, each with a title that says what was found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from bpfree.lab.report.style import Style
from common.results import Row
from plots import charts
from plots.charts import TIME_RATIO
from plots.measured import THROUGHPUT_RATIO, Measured
from plots.targets import IN_BACKWARD, MEMORY_TIME_LIMITS, PIPELINE_LIMITS, STEP_LIMITS, STREAMING


@dataclass(frozen=True)
class Figure:
    """One chart under its title."""

    title: str
    chart: Any


@dataclass(frozen=True)
class Section:
    """Figures that belong together.

    Attributes:
        title: What was found.
        note: How to read the figures.
        figures: The charts.
        lines: The labels that a legend explains.
    """

    title: str
    note: str
    figures: Sequence[Figure]
    lines: Sequence[str] = ()


def sections(measured: Measured, style: Style) -> list[Section]:
    """Those of which something was measured."""
    made = [steps(measured), memory(measured, style), scaling(measured, style), pipelines(measured)]
    return [section for section in made if section.figures]


# -- steps -------------------------------------------------------------------------------------------------------------


STEP_NOTE = (
    "Time of forward, loss and backward relative to the reference: BP in float32 where nothing else is said. Dots and "
    "numbers are medians over pairs, bars reach from quartile to quartile, red strokes are limits."
)


def steps(measured: Measured) -> Section:
    """A chart for each network, its rows from the fastest to the slowest."""
    # Those that something was promised of come first.
    nets = dict.fromkeys([*(net for net, _ in STEP_LIMITS), *(row["net"] for row in measured.rows["step"])])
    figures = [_step(net, rows) for net in nets if (rows := measured.find("step", net=net))]
    dfa = [row["time"]["median"] for row in measured.find("step", subject="DFA")]
    title = f"A DFA step takes {min(dfa):.2f} to {max(dfa):.2f} of a BP step's time" if dfa else "One training step"
    return Section(title, STEP_NOTE + _bf16(measured), figures)


def _bf16(measured: Measured) -> str:
    runs = [measured.runs["step"][row["run"]] for row in measured.rows["step"] if row["subject"].startswith("bf16")]
    if runs and runs[-1]["environment"].get("bf16_instructions") is False:
        return " The bf16 rows come from a processor without bfloat16 instructions, which has to emulate them."
    return ""


def _step(net: str, rows: Sequence[Row]) -> Figure:
    labelled = [row | {"label": _beside(row, "BP")} for row in sorted(rows, key=lambda row: row["time"]["median"])]
    limits = {row["label"]: limit for row in labelled if (limit := STEP_LIMITS.get((net, row["subject"])))}
    domain = charts.bounds(labelled, TIME_RATIO, limits.values())
    dfa = next((row["time"]["median"] for row in rows if row["subject"] == "DFA"), None)
    said = "" if dfa is None else f": DFA takes {dfa:.2f} of BP's time"
    return Figure(f"{net}{said}", charts.ratios(labelled, limits, TIME_RATIO, domain, "time ÷ BP"))


def _beside(row: Row, usual: str) -> str:
    """What a row compares; the usual reference goes without saying, one of the same way to train is told briefly."""
    subject, reference = row["subject"], row["reference"]
    if reference == usual:
        return subject
    alike = reference.startswith("BP, ") and subject.endswith(reference.removeprefix("BP"))
    return f"{subject} ÷ {'BP likewise' if alike else reference}"


# -- memory ------------------------------------------------------------------------------------------------------------


MEMORY_NOTE = (
    "Activations are all that a step takes beside weights, batch and the gradients that it leaves; gradients are the "
    "most that exist at one time. Both are counted by torch's allocator. Checkpointed: checkpoint_sequential at the "
    "number of segments that takes the least memory. Of lines that coincide the last is seen: DFA lies on BP, "
    "streaming DRTP on streaming DFA. Red strokes are limits of times."
)


def memory(measured: Measured, style: Style) -> Section:
    """Activations and gradients over the depth, and time at one depth."""
    rows = measured.depths()
    parts = {"activation_bytes": "streaming DFA", "gradient_bytes": f"streaming DFA, {IN_BACKWARD}"}
    domain = charts.memory_bounds(rows, list(parts)) if rows else []
    figures = [
        Figure(_grown(measured, part, subject), charts.memory(rows, part, domain, style))
        for part, subject in parts.items()
        if rows
    ]
    lines = sorted({row["subject"] for row in rows}, key=_place)
    return Section(_memory_title(measured), MEMORY_NOTE, [*figures, *_memory_times(measured)], lines)


def _memory_title(measured: Measured) -> str:
    ours, theirs = (measured.growth(subject, "activation_bytes") for subject in ("streaming DFA", "BP"))
    if ours is None or theirs is None or ours[:2] != theirs[:2]:
        return "Memory of a training step as networks get deeper"
    first, last, growth = ours
    return f"Depth {first} to {last}: activations of streaming DFA grow {growth:.2f} times, those of BP {theirs[2]:.1f}"


def _place(label: str) -> int:
    return [mark.label for mark in charts.MARKS].index(label)


def _grown(measured: Measured, part: str, subject: str) -> str:
    name = part.removesuffix("_bytes").capitalize() + "s"
    found = measured.growth(subject, part)
    return f"{name}: {subject} grows {found[2]:.2f} times from depth {found[0]} to {found[1]}" if found else name


def _memory_times(measured: Measured) -> Iterator[Figure]:
    rows = measured.find("memory", time=bool)
    if not rows:
        return
    labelled = [row | {"label": _beside(row, "")} for row in sorted(rows, key=lambda row: row["time"]["median"])]
    limits = {
        row["label"]: MEMORY_TIME_LIMITS[row["reference"]]
        for row in labelled
        if row["subject"] in STREAMING and row["reference"] in MEMORY_TIME_LIMITS
    }
    domain = charts.bounds(labelled, TIME_RATIO, limits.values())
    time = measured.ratio("memory", subject="streaming DFA", reference="BP")
    said = f": streaming DFA takes {time['median']:.2f} of BP's" if time else ""
    title = f"Time of a step, {rows[0]['net']}{said}"
    yield Figure(title, charts.ratios(labelled, limits, TIME_RATIO, domain, "time ÷ reference"))


# -- scaling -----------------------------------------------------------------------------------------------------------


SCALING_NOTE = (
    "One quantity grows, the others stay as in the base network{base}. Lines are medians over pairs of steps, bands "
    "reach from quartile to quartile. Peak memory includes gradients."
)


def scaling(measured: Measured, style: Style) -> Section:
    """Time and memory relative to backpropagation, a chart for each axis."""
    rows = measured.rows["scaling"]
    if not rows:
        return Section("", "", [])
    axes = {axis: measured.find("scaling", axis=axis) for axis in dict.fromkeys(row["axis"] for row in rows)}
    times, peaks = charts.bounds(rows, TIME_RATIO), charts.peak_bounds(rows)
    figures = [
        Figure(_gains(axis, found), charts.scaling(found, axis, TIME_RATIO, times, style, "time ÷ BP"))
        for axis, found in axes.items()
    ]
    figures += [
        Figure(f"Peak memory over {axis}", charts.scaling(found, axis, "peak", peaks, style, "peak memory ÷ BP"))
        for axis, found in axes.items()
    ]
    lines = sorted({row["subject"] for row in rows}, key=_place)
    return Section(_scaling_title(rows), SCALING_NOTE.format(base=_base(rows)), figures, lines)


def _scaling_title(rows: Sequence[Row]) -> str:
    """Where DFA gains the most and the least."""
    dfa = sorted((row for row in rows if row["subject"] == "DFA"), key=lambda row: row["time"]["median"])
    if not dfa:
        return "Cost as networks grow"
    best, worst = dfa[0], dfa[-1]
    return (
        f"DFA's share of BP's time lies between {best['time']['median']:.2f} ({best['net']}) and "
        f"{worst['time']['median']:.2f} ({worst['net']})"
    )


def _base(rows: Sequence[Row]) -> str:
    nets = [row["net"] for row in rows]
    base = max(set(nets), key=nets.count, default="")
    return f" ({base})" if base else ""


def _gains(axis: str, rows: Sequence[Row]) -> str:
    of = sorted((row for row in rows if row["subject"] == "DFA"), key=lambda row: row[axis])
    if len(of) < 2:
        return f"Time over {axis}"
    first, last = of[0], of[-1]
    return (
        f"{axis.capitalize()} {first[axis]:,} to {last[axis]:,}: "
        f"DFA {first['time']['median']:.2f} to {last['time']['median']:.2f}"
    )


# -- pipelines ---------------------------------------------------------------------------------------------------------


PIPELINE_NOTE = (
    "Throughput relative to the reference: more is better. Diamonds are what the simulator says of the same stages "
    "from their measured times; red strokes are limits."
)


def pipelines(measured: Measured) -> Section:
    """A chart for each network and kind of measurement."""
    rows = measured.find("pipeline", throughput=bool)
    kinds = dict.fromkeys((row["axis"], row["net"]) for row in rows)
    figures = [
        _pipeline(axis, net, measured.find("pipeline", axis=axis, net=net, throughput=bool)) for axis, net in kinds
    ]
    wanted = {"axis": "2 processes", "subject": "synchronous DFA", "reference": "GPipe-BP"}
    gains = [row[THROUGHPUT_RATIO]["median"] for row in measured.find("pipeline", **wanted)]
    title = "Pipelines"
    if gains:
        spread = " to ".join(f"{gain:.2f}" for gain in sorted({min(gains), max(gains)}))
        title = f"On two processes synchronous DFA has {spread} times the throughput of GPipe with BP"
    return Section(title, PIPELINE_NOTE, figures)


def _pipeline(axis: str, net: str, rows: Sequence[Row]) -> Figure:
    labelled = [row | {"label": f"{row['subject']} ÷ {row['reference']}"} for row in rows]
    limits = {
        row["label"]: limit
        for row in labelled
        if (limit := PIPELINE_LIMITS.get((axis, row["subject"], row["reference"])))
    }
    domain = charts.bounds(labelled, THROUGHPUT_RATIO, limits.values())
    chart = charts.ratios(labelled, limits, THROUGHPUT_RATIO, domain, "throughput ÷ reference")
    return Figure(f"{net}, {axis}", chart)
