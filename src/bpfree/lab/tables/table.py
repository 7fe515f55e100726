"""``bpfree table``: run what is missing, and show the table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from bpfree.lab.errors import RunError, SettingsError
from bpfree.lab.queue.ledger import Ledger, State
from bpfree.lab.queue.work_protocol import Work
from bpfree.lab.recipe.locate import find, names
from bpfree.lab.recipe.reading import read
from bpfree.lab.recipe.schema import Recipe, Scale
from bpfree.lab.tables import markdown, result, run_data, terminal_view
from bpfree.lab.tables.cells import Cell, plan, works
from bpfree.lab.tables.command_options import RecipeOptions, TableOptions
from bpfree.lab.tables.provenance import source
from bpfree.lab.tables.work import Training
from bpfree.lab.tables.workers import Order, run_all


def table(options: TableOptions, console: Console | None = None) -> dict[str, Any]:
    """Run what is missing of a recipe, write ``NAME.json`` and ``RESULTS.md``, and show the table.

    Args:
        options: Which recipe, and how much of it.
        console: Where progress and the table are shown; None shows nothing.

    Returns:
        What is in ``NAME.json``; for ``--cost``, what the scale, or this part of it, takes; for ``--list``, nothing.

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
    recipe, order = options.recipe(), options.order(again=options.again)
    scale = recipe.scale(options.scale)
    cells = plan(recipe, scale, options.seeds, order.cells, options.data_dir)
    if options.cost:
        return _cost(recipe, scale, works(cells), options, console)
    ledger = known(options, again=options.again)
    stopped = _run(order, ledger, options.workers, console)
    # Of any code: rows that were not asked for again keep what they have.
    written = document(recipe, options.order().open(), options.data_dir)
    paths = [result.write(written, Path(options.out)), markdown.write(Path(options.out))]
    if console is not None:
        _show(console, recipe, scale, options, ledger)
        for path in paths:
            console.print(f"{path.name}: {path}", soft_wrap=True)
    if stopped is not None:
        raise stopped
    _check(recipe, scale, cells, ledger.state(works(cells)))
    return written


def _run(order: Order, ledger: Ledger, workers: int, console: Console | None) -> RunError | None:
    """Run what is missing; if that cannot go on, return why: what has been found until then is still written."""
    try:
        run_all(order, ledger, workers, console)
    except RunError as error:
        return error
    return None


def _check(recipe: Recipe, scale: Scale, cells: Sequence[Cell], state: State) -> None:
    """Raise what must be mended before the table is whole."""
    if state.wrong:
        raise RunError(f"{len(state.wrong)} runs failed; the table says which and why. The same command tries again.")
    entries = result.entries(cells, state, scale)
    mistakes = [entry["wrong"] for entry in entries if entry["wrong"] and not entry["failed"]]
    if mistakes:
        raise SettingsError(f"{recipe.name}: {mistakes[0]} The runs are finished; mend the recipe alone.")


def _cost(
    recipe: Recipe, scale: Scale, found: list[Work], options: TableOptions, console: Console | None
) -> dict[str, Any]:
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


def document(recipe: Recipe, ledger: Ledger, data_dir: str | None) -> dict[str, Any]:
    """All that the ledger has of a recipe, at every scale and with every seed."""
    tables, records = {}, {}
    for scale in recipe.scales.values():
        cells = plan(recipe, scale, max(scale.seeds, ledger.seeds()), data_dir=data_dir)
        state = ledger.state(works(cells))
        tables[scale.name] = result.entries(cells, state, scale)
        records |= state.records
    return result.document(recipe, tables, records)


def known(options: RecipeOptions, *, again: bool = False) -> Ledger:
    """The ledger of a recipe, with the records that lie in the folder of results, be it in other tables' files.

    Raises:
        WriteError: The recipe's own file there is damaged, or another's.
    """
    recipe, folder = options.recipe(), Path(options.out)
    own = result.own_records(recipe, folder)
    ledger = options.order(again=again).open()
    plans = [
        plan(recipe, scale, max(scale.seeds, options.seeds or 0), data_dir=options.data_dir)
        for scale in recipe.scales.values()
    ]
    wanted = {work.key for cells in plans for work in works(cells)}
    for path in sorted(set(folder.glob("*.json")) - {result.place(recipe, folder)}):
        ledger.adopt({key: record for key, record in result.records(path).items() if key in wanted})
    ledger.adopt(own)
    return ledger


def _show(console: Console, recipe: Recipe, scale: Scale, options: TableOptions, ledger: Ledger) -> None:
    """The table, and below it what a reader must know, and what went wrong."""
    cells = plan(recipe, scale, seeds(options, scale, ledger), options.cell or (), options.data_dir)
    state = ledger.state(works(cells))
    entries = result.entries(cells, state, scale)
    console.print(terminal_view.table(recipe, scale, entries))
    wrong = [*state.wrong.values(), *(entry["wrong"] for entry in entries if entry["wrong"])]
    for line in [*cautions(cells, state, options.data_dir), *dict.fromkeys(wrong)]:
        console.print(line, soft_wrap=True)


def seeds(options: RecipeOptions, scale: Scale, ledger: Ledger) -> int:
    """The seeds a cell that are shown: those that are asked for, else all that there are."""
    return max(scale.seeds, ledger.seeds()) if options.seeds is None else options.seeds


def cautions(cells: Sequence[Cell], state: State, data_dir: str | None) -> list[str]:
    """What a reader must know about how the records came about, beside the present code and data."""
    data = [(work.options.data, work.options.reading) for work in works(cells) if isinstance(work, Training)]
    return result.cautions(state.records.values(), source(), files=run_data.at_hand(data, data_dir))
