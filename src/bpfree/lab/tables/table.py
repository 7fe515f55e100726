"""``bpfree table``: run what is missing, and show the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from bpfree.lab.errors import RunError, SettingsError
from bpfree.lab.tables import markdown, result, show
from bpfree.lab.tables.ledger import Ledger, State
from bpfree.lab.tables.options import RecipeOptions, TableOptions
from bpfree.lab.tables.plan import Cell, plan, works
from bpfree.lab.tables.provenance import source
from bpfree.lab.tables.reading import read
from bpfree.lab.tables.recipe import Recipe, Scale, find, names
from bpfree.lab.tables.work import Work
from bpfree.lab.tables.workers import run_all


def table(options: TableOptions, console: Console | None = None) -> dict[str, Any]:
    """Run what is missing of a recipe, write ``NAME.json`` and ``RESULTS.md``, and show the table.

    Args:
        options: Which recipe, and how much of it.
        console: Where progress and the table are shown; None shows nothing.

    Returns:
        What is in ``NAME.json``; for ``--cost``, the scale's entry in ``NAME-cost.json``; for ``--list``, nothing.

    Raises:
        SettingsError: A name or a value in the recipe or the options means nothing.
        RunError: Some runs failed; what the others found is written and shown.
    """
    if options.list:
        if console is not None:
            console.print(show.recipes([read(find(name)) for name in names()]))
        return {}
    if options.workers < 1:
        raise SettingsError(f"--workers {options.workers} must be at least 1.")
    recipe, order = options.recipe(), options.order(again=options.again)
    scale = recipe.scale(options.scale)
    cells = plan(recipe, scale, options.seeds, order.cells)
    if options.cost:
        return _cost(recipe, scale, works(cells), options, console)
    ledger = known(options, again=options.again)
    run_all(order, ledger, options.workers, console)
    # Of any code: rows that were not asked for again keep what they have.
    written = document(recipe, options.order().open())
    paths = [result.write(written, Path(options.out)), markdown.write(Path(options.out))]
    state = ledger.state(works(cells))
    if console is not None:
        _show(console, recipe, options, cells, state)
        for path in paths:
            console.print(f"{path.name}: {path}", soft_wrap=True)
    if state.wrong:
        raise RunError(f"{len(state.wrong)} runs failed; the table says which and why. The same command tries again.")
    return written


def _cost(
    recipe: Recipe, scale: Scale, found: list[Work], options: TableOptions, console: Console | None
) -> dict[str, Any]:
    # What it measures with takes seconds to import.
    from bpfree.lab.tables.cost import cost, write

    taken = cost(recipe, scale, found, options.data_dir)
    paths = [write(recipe, taken, Path(options.out)), markdown.write(Path(options.out))]
    if console is not None:
        console.print(show.cost(recipe, taken))
        for path in paths:
            console.print(f"{path.name}: {path}", soft_wrap=True)
    return taken


def document(recipe: Recipe, ledger: Ledger) -> dict[str, Any]:
    """All that the ledger has of a recipe, at every scale and with every seed."""
    tables, records = {}, {}
    for scale in recipe.scales.values():
        cells = plan(recipe, scale, max(scale.seeds, ledger.seeds()))
        state = ledger.state(works(cells))
        tables[scale.name] = result.entries(cells, state, scale)
        records |= state.records
    return result.document(recipe, tables, records)


def known(options: RecipeOptions, *, again: bool = False) -> Ledger:
    """The ledger of a recipe, with the records that lie in the folder of results, be it in other tables' files."""
    ledger, recipe = options.order(again=again).open(), options.recipe()
    seeds = [max(scale.seeds, options.seeds or 0) for scale in recipe.scales.values()]
    plans = (plan(recipe, scale, count) for scale, count in zip(recipe.scales.values(), seeds, strict=True))
    wanted = {work.key for cells in plans for work in works(cells)}
    for path in sorted(Path(options.out).glob("*.json")):
        found, own = result.records(path), path.stem == recipe.name
        ledger.adopt({key: record for key, record in found.items() if own or key in wanted})
    return ledger


def _show(console: Console, recipe: Recipe, options: TableOptions, cells: list[Cell], state: State) -> None:
    scale = recipe.scale(options.scale)
    console.print(show.table(recipe, scale, result.entries(cells, state, scale)))
    for line in [*result.cautions(state.records.values(), source()), *dict.fromkeys(state.wrong.values())]:
        console.print(line, soft_wrap=True)
