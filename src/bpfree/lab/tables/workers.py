"""The workers that make the missing runs: this process, or several that share the ledger, on one or many machines."""

from __future__ import annotations

import multiprocessing
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from bpfree.errors import BpfreeError
from bpfree.lab.display.terminal import Display
from bpfree.lab.errors import RunError
from bpfree.lab.process import environment
from bpfree.lab.queue.ledger import Claim, Ledger
from bpfree.lab.queue.processes import Team
from bpfree.lab.queue.work_protocol import Work
from bpfree.lab.recipe.reading import read
from bpfree.lab.running.loggers import USUAL
from bpfree.lab.tables.cells import plan, works
from bpfree.lab.tables.provenance import code, source

_POLL = 1.0  # seconds between two looks at the ledger


@dataclass(frozen=True)
class Order:
    """The order for a worker, in this process or in another.

    Attributes:
        recipe: The recipe's file.
        scale: The scale's name.
        seeds: The number of seeds per cell, or None for the scale's.
        cells: The chosen cells; empty for all.
        ledger: The ledger's database.
        data_dir: The folder of the data.
        scratch: The folder of logs and checkpoints of unfinished runs.
        again: True if only records of this state of the code count.
        trust: True if the recipe may name code, whatever its folder.
        source: The state of the code of the command that starts workers; None if it starts none.
        keys: The keys of the runs that it waits for.
        logger: The logger that also gets the numbers of every epoch.
    """

    recipe: Path
    scale: str
    seeds: int | None
    cells: tuple[str, ...]
    ledger: str
    data_dir: str | None
    scratch: Path
    again: bool = False
    trust: bool = False
    source: str | None = None
    keys: tuple[str, ...] = ()
    logger: str = USUAL

    def works(self) -> list[Work]:
        """Return all runs of the chosen cells."""
        recipe = read(self.recipe, trust=self.trust)
        return works(plan(recipe, recipe.scale(self.scale), self.seeds, self.cells, self.data_dir))

    def folder(self) -> Path:
        """Return the folder for runs of the present code: a run is only continued by the code that began it."""
        return self.scratch / source()

    def open(self) -> Ledger:
        """Open the recipe's ledger."""
        return Ledger(self.ledger, self.recipe.stem, source=source() if self.again else None)


def run_all(order: Order, found: Sequence[Work], ledger: Ledger, workers: int, console: Console | None) -> None:
    """Run what the ledger lacks; return when that is nothing, be it that others ran it.

    Args:
        order: The table, its ledger and its data, as workers need them.
        found: The runs.
        ledger: The order's ledger.
        workers: The number of processes that run them.
        console: Where progress is shown; None shows nothing.

    Raises:
        RunError: All workers ended before the work did.
        LedgerError: The ledger's database does not answer.
    """
    ledger.ask(found, again=True)
    missing = ledger.state(found).unfinished
    if not missing:
        return
    if workers > 1:
        _watch(order, found, ledger, min(workers, len(missing)), console)
        return
    with Display(console, runs=len(missing)) as display:
        work_on(order, found, ledger, display)


def _watch(order: Order, found: Sequence[Work], ledger: Ledger, workers: int, console: Console | None) -> None:
    """Let several processes work, and say what they have finished, and which of them have died."""
    order = replace(order, source=source(), keys=tuple(work.key for work in found))
    with Team(partial(_worker, order), workers, partial(_say, console)) as team:
        told = set(ledger.state(found).records)
        while True:
            alive = team.alive()
            state = ledger.state(found)
            for work in found:
                if work.key in state.records and work.key not in told:
                    told.add(work.key)
                    _say(console, f"[{len(told)}/{len(found)}] {_line(work, state.records[work.key])}")
            if not state.unfinished:
                return
            if not alive:
                raise RunError(
                    f"all workers have ended, and {len(state.unfinished)} runs are missing{team.obituary()}. Repeat "
                    "the command."
                )
            time.sleep(_POLL)


def _worker(order: Order) -> None:
    """Run one worker process."""
    parent = multiprocessing.parent_process()
    # Ctrl-C reaches all processes at once. The command alone heeds it, and tells its workers to end; as an exception,
    # so that they give their runs back.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        found = _same(order)
        with Display(None) as display:
            work_on(order, found, order.open(), display, lambda: parent is None or parent.is_alive())
    except BpfreeError as error:  # such as a database that is away: what went wrong in a run stands in the ledger
        raise SystemExit(f"bpfree table, worker: {error}") from error


def _same(order: Order) -> list[Work]:
    """Return the runs of an order as the command that gave it sees them.

    Raises:
        RunError: Files have changed since: what is run would be recorded as of other code, or be waited for by nobody.
    """
    found = order.works()
    if source() != order.source:
        raise RunError("bpfree's code has changed since the command began. Repeat the command.")
    if tuple(work.key for work in found) != order.keys:
        raise RunError("the recipe, its data or its own code has changed since the command began. Repeat the command.")
    return found


def work_on(
    order: Order, found: Sequence[Work], ledger: Ledger, display: Display, wanted: Callable[[], bool] = lambda: True
) -> None:
    """Take one run after the other, until none is left that waits or may be given back, or none is wanted."""
    source()  # of the code that was imported; files may change while a table runs for days
    while wanted():
        claim = ledger.claim(found)
        if claim is not None:
            with claim:
                _perform(claim, order, display)
        elif ledger.state(found).unfinished:
            time.sleep(_POLL * (0.5 + random.random()))
        else:
            return


def _perform(claim: Claim, order: Order, display: Display) -> None:
    began = time.perf_counter()
    try:
        record = claim.work.perform(order.folder(), order.data_dir, display, order.logger)
    except Exception as error:  # whatever goes wrong in one cell, the others of a night's table are still wanted
        claim.fail(f"{type(error).__name__}: {error}")
        return
    metric = claim.work.metric
    claim.finish(
        {
            **record,
            "key": claim.work.key,
            "value": None if metric is None else record[metric],
            "code": code(),
            "environment": record.get("environment") or environment.describe(),
            # What a run took in all says itself: other processes may have begun it, or finished all but the record.
            "duration": record.get("duration", time.perf_counter() - began),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )


def _line(work: Work, record: dict[str, Any]) -> str:
    """Return the line on a finished run."""
    value = "not finite" if record["value"] is None else f"{record['value']:.2f}"
    result = "" if work.metric is None else f": {work.metric} {value}"
    return f"{work.label}, seed {work.seed}{result} ({record['duration']:.0f} s)"


def _say(console: Console | None, line: str) -> None:
    if console is not None:
        console.print(line)
