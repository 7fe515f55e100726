"""``bpfree report``: the HTML page of a recipe, and the curves of its runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console

import bpfree.lab.report
from bpfree.lab.disk.files import write_text
from bpfree.lab.queue.snapshot import State
from bpfree.lab.recipe.schema import Recipe, Scale
from bpfree.lab.report import recipe_charts, text
from bpfree.lab.report.page import bundle, embedded, figures, specifications
from bpfree.lab.report.template import HERE, rendered
from bpfree.lab.summary import FORMAT, summarize
from bpfree.lab.tables import result
from bpfree.lab.tables.cells import Cell
from bpfree.lab.tables.command_options import ReportOptions
from bpfree.lab.tables.comparison_page import SUFFIX, comparison_page
from bpfree.lab.tables.table_runs import TableRuns
from bpfree.lab.tables.work import Training
from bpfree.lab.tasks import TASKS


def report(options: ReportOptions, console: Console | None = None) -> Path:
    """Write the page of a recipe: its table, and beside it one page of curves for all rows that can be compared.

    A name that ends in ``.json`` is a comparison's, see :func:`~bpfree.lab.tables.comparison_page.comparison_page`.

    Args:
        options: The recipe, and its scales.
        console: Where the page's path is shown; None shows nothing.

    Returns:
        The page's path.

    Raises:
        SettingsError: There is no such recipe.
    """
    if (options.name or "").endswith(SUFFIX):
        return comparison_page(options, console)
    recipe, folder, chosen = options.recipe(), Path(options.out), options.cell or ()
    runs = TableRuns(recipe, options)
    cells, scale = runs.shown(), runs.scale
    state = runs.state(cells)
    entries = result.entries(cells, state, scale)
    command = recipe.repeated(scale, _repeated_seeds(options, scale, entries), chosen)
    curves, files = [], _file_names(recipe)
    for name, found in groups(recipe, cells).items():
        comparison = compared(recipe, scale, found, state, command)
        if comparison is not None:
            curves.append((name, bpfree.lab.report.write(comparison, folder / files[name]).name))
    said = runs.cautions(cells, state)
    shown = html(recipe, scale.cut, entries, curves, said, pictures(cells, state), command)
    path = write_text(folder / f"{recipe.name}.html", shown)
    if console is not None:
        if not state.records:
            console.print(_nothing_to_show(runs), soft_wrap=True)
        console.print(f"page: {path}", soft_wrap=True)
    return path


def _nothing_to_show(runs: TableRuns) -> str:
    """Return the message for an empty page: this scale has no finished run; name the scales that have one."""
    said = f"The page is empty: no run of it has finished at scale {runs.scale.name}."
    for scale in runs.recipe.scales.values():
        if count := len(runs.state(runs.shown(scale)).records):
            said += f" {count} {'has' if count == 1 else 'have'} at --scale {scale.name}."
    return said


def html(
    recipe: Recipe,
    cut: str,
    entries: Sequence[Mapping[str, Any]],
    curves: Sequence[tuple[str, str]],
    said: Sequence[str],
    pictures: Sequence[Mapping[str, Any]] = (),
    command: str | None = None,
) -> str:
    """Return the page as text; ``command`` makes the table again, by default all of it."""
    drawn = recipe_charts.charts(recipe, entries)
    return rendered(
        HERE / "recipe.html",
        recipe_charts.MARKS,
        recipe=recipe,
        cut=cut,
        cells={(entry["row"], entry["column"]): entry for entry in entries},
        seeds=result.seeds_of_rows(entries),
        command=command or recipe.command,
        rows=list(dict.fromkeys(entry["row"] for entry in entries)),
        columns=list(dict.fromkeys(entry["column"] for entry in entries)),
        curves=curves,
        cautions=said,
        figures=figures("chart", drawn),
        with_paper=any(entry["paper"] is not None for entry in entries),
        pictures=pictures,
        specs=embedded(specifications({"chart": drawn}, recipe_charts.STYLE)),
        bundle=bundle() if drawn else Markup(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def pictures(cells: Iterable[Cell], state: State) -> list[dict[str, Any]]:
    """Return the images that excite the filters of trained networks most, for the first seed of every row with them."""
    found: dict[str, dict[str, Any]] = {}
    for work in sorted((work for cell in cells for work in cell.works), key=lambda work: work.seed):
        shown = state.records.get(work.key, {}).get("visualized")
        if shown:
            # A record may be another table's, whose row has another name.
            found.setdefault(work.label, {**shown, "label": work.label})
    return list(found.values())


def groups(recipe: Recipe, cells: Iterable[Cell]) -> dict[str, dict[str, Cell]]:
    """Return the cells whose runs are drawn together, by label.

    All rows, if columns do not differ in what is run. Otherwise those of a column where rows are rules, which are what
    is compared, and those of a row where columns are. Columns that show several numbers of the same runs are one.
    """
    rules = any("rule" in settings for settings in recipe.rows.values())
    found: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        row, column = cell.row, cell.column.name
        group, label = ("curves", row) if not recipe.by_cell else (column, row) if rules else (row, column)
        found.setdefault(group, {}).setdefault(label, cell)
    runs = {group: [[work.key for work in cell.works] for cell in cells.values()] for group, cells in found.items()}
    groups = list(found)
    return {name: found[name] for place, name in enumerate(groups) if runs[name] not in map(runs.get, groups[:place])}


def compared(
    recipe: Recipe, scale: Scale, cells: Mapping[str, Cell], state: State, command: str
) -> dict[str, Any] | None:
    """Return the finished runs of some cells as a comparison; None if there are none, or nothing was trained.

    Args:
        recipe: The table.
        scale: The scale that was run.
        cells: The cells by label: the rows of one column, or the columns of one row.
        state: The finished runs.
        command: The command that makes the table again.
    """
    runs: list[dict[str, Any]] = []
    first: Training | None = None
    for label, cell in cells.items():
        for work in cell.works:
            if isinstance(work, Training) and work.key in state.records:
                runs.append(state.records[work.key] | {"label": label})
                first = first or work
    if first is None:
        return None
    runs = _with_taps_of_one_name(runs)
    rows, task = all(label == cell.row for label, cell in cells.items()), TASKS[first.settings.task]
    return {
        "format": FORMAT,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "task": task.name,
        "compared": "row" if rows else "column",
        "settings": {
            "recipe": recipe.title,
            **({"scale": scale.name, "cut": scale.cut} if scale.cut else {}),
            **first.settings.length.describe(),
            "seeds": sorted({run["seed"] for run in runs}),
            "measured_on": runs[0]["data"]["measured_on"],
            "rules": {run["label"]: run["settings"] for run in runs},
        },
        "environment": runs[0]["environment"],
        "data": _shared([run["data"] for run in runs]),
        "runs": runs,
        "summary": summarize(runs, list(cells), task.metric, task.beside),
    }


def _shared(data: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the facts that the data of all runs share: rows and seeds may have splits of their own."""
    found = {key: value for key, value in data[0].items() if all(other.get(key) == value for other in data)}
    found["name"] = text.listing(list(dict.fromkeys(str(other["name"]) for other in data)))
    return {key: value for key, value in found.items() if key not in ("measured_on", "normalization")}


def _repeated_seeds(options: ReportOptions, scale: Scale, entries: Sequence[Mapping[str, Any]]) -> int:
    """Return the number of seeds for the command that makes the page again.

    It is the number that was asked for; else the largest that a row has, if all rows have equally many or the cells
    were chosen. Otherwise it is the scale's number: the command would run the largest number in every row.
    """
    if options.seeds is not None:
        return options.seeds
    shown = set(result.seeds_of_rows(entries).values())
    return max(scale.seeds, *shown) if options.cell or len(shown) == 1 else scale.seeds


def _with_taps_of_one_name(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return records in which the same tap has the same name: 1, 2, ... where their modules' names differ.

    One row's model may have dropout and another's none: the same layer then has another name.
    """
    names = {tuple([tap["name"] for tap in epoch["alignment"]]) for run in runs for epoch in run["epochs"]}
    if len(names - {()}) < 2:
        return list(runs)
    return [
        {**run, "epochs": [epoch | {"alignment": _numbered(epoch["alignment"])} for epoch in run["epochs"]]}
        for run in runs
    ]


def _numbered(taps: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**tap, "name": str(place)} for place, tap in enumerate(taps, start=1)]


def _file_names(recipe: Recipe) -> dict[str, str]:
    """Return the file names of possible groups; names that agree in letters and digits are numbered."""
    found: dict[str, str] = {}
    for group in ("curves", *recipe.columns, *recipe.rows):
        plain = "".join(letter if letter.isalnum() else "-" for letter in group)
        numbers = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
        names = (f"{recipe.name}-{plain}{number}.html" for number in numbers)
        taken = {name.casefold() for other, name in found.items() if other != group}
        found[group] = next(name for name in names if name.casefold() not in taken)
    return found
