"""``bpfree table``: run what is missing, and show the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from bpfree.lab.errors import RunError, SettingsError
from bpfree.lab.recipe.locate import find, names
from bpfree.lab.recipe.reading import read
from bpfree.lab.recipe.schema import Recipe
from bpfree.lab.running.loggers import check_logger
from bpfree.lab.tables import markdown, result, terminal_view
from bpfree.lab.tables.cells import plan, works
from bpfree.lab.tables.command_options import TableOptions
from bpfree.lab.tables.table_runs import TableRuns


def table(options: TableOptions, console: Console | None = None) -> dict[str, Any]:
    """Run what is missing of a recipe, write ``NAME.json`` and ``RESULTS.md``, and show the table.

    Args:
        options: The recipe, and the part of it.
        console: Where progress and the table are shown; None shows nothing.

    Returns:
        The content of ``NAME.json``; for ``--cost``, the cost of the scale or of the chosen part; for ``--list``,
        nothing.

    Raises:
        SettingsError: A name or a value in the recipe or the options means nothing.
        RunError: Some runs failed, or all workers died; what the others found is written and shown.
        WriteError: The file of this name in the folder of results is damaged, or another recipe's.
        LedgerError: The ledger's database does not answer.
    """
    if options.list:
        if console is not None:
            console.print(terminal_view.recipes([read(find(name)) for name in names()]))
        return {}
    if options.workers < 1:
        raise SettingsError(f"--workers {options.workers} must be at least 1.")
    recipe = options.recipe()
    if options.cost:
        return _cost(recipe, options, console)
    check_logger(options.logger)
    runs = TableRuns(recipe, options, again=options.again)
    stopped = runs.run_missing(options.workers, console)
    # Of any code: rows that were not asked for again keep what they have.
    written = runs.document()
    paths = [result.write(written, Path(options.out)), markdown.write(Path(options.out))]
    if console is not None:
        _show(console, runs)
        for path in paths:
            console.print(f"{path.name}: {path}", soft_wrap=True)
    if stopped is not None:
        raise stopped
    _check(runs)
    return written


def _check(runs: TableRuns) -> None:
    """Raise what must be mended before the table is whole."""
    cells = runs.asked()
    state = runs.state(cells)
    if state.wrong:
        first = next(iter(state.wrong.values()))
        raise RunError(
            f"{len(state.wrong)} runs failed; the table says which and why, the first for this reason: {first} "
            "The same command tries again."
        )
    entries = result.entries(cells, state, runs.scale)
    mistakes = [entry["wrong"] for entry in entries if entry["wrong"] and not entry["failed"]]
    if mistakes:
        raise SettingsError(f"{runs.recipe.name}: {mistakes[0]} The runs are finished; mend the recipe alone.")


def _cost(recipe: Recipe, options: TableOptions, console: Console | None) -> dict[str, Any]:
    scale = recipe.scale(options.scale)
    found = works(plan(recipe, scale, options.seeds, options.cell or (), options.data_dir))
    # What it measures with takes seconds to import.
    from bpfree.lab.tables.cost import cost, known, write

    folder = Path(options.out)
    # What a part of the table takes is shown alone: the file has whole tables.
    whole = not options.cell and options.seeds in (None, scale.seeds)
    if whole:
        known(recipe, folder)  # what cannot be written to is told before it is measured for minutes
    taken = cost(recipe, scale, found, options.data_dir)
    paths = [write(recipe, taken, folder), markdown.write(folder)] if whole else []
    if console is not None:
        console.print(terminal_view.cost(recipe, taken))
        for path in paths:
            console.print(f"{path.name}: {path}", soft_wrap=True)
    return taken


def _show(console: Console, runs: TableRuns) -> None:
    """Show the table, and below it the cautions and the failures."""
    cells = runs.shown()
    state = runs.state(cells)
    entries = result.entries(cells, state, runs.scale)
    console.print(terminal_view.table(runs.recipe, runs.scale, entries))
    wrong = [*state.wrong.values(), *(entry["wrong"] for entry in entries if entry["wrong"])]
    for line in [*runs.cautions(cells, state), *dict.fromkeys(wrong)]:
        console.print(line, soft_wrap=True)
