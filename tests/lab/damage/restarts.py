"""``python -m lab.damage.restarts``: a table with four workers, and a database that restarts in the middle of it."""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

from bpfree.lab.tables.command_options import TableOptions
from bpfree.lab.tables.table import table
from lab.damage.server import Server
from support import evidence

GOOD = ("a restart", "a run, once")

_RECIPE = """
title: Made up
base: {{function: lab.damage.restarts.slow, arguments: {{log: {log}}}}}
columns: {{number: {{metric: number}}}}
rows: {{{rows}}}
scales: {{full: {{seeds: {seeds}}}}}
"""


def slow(log: str, row: int, seed: int) -> dict[str, float]:
    """A run that says that it has been."""
    with Path(log).open("a") as file:
        file.write(f"{row} {seed}\n")
    time.sleep(random.uniform(0.1, 0.4))
    return {"number": float(100 * row + seed)}


def restarted(times: int, rows: int, seeds: int) -> Counter[str]:
    """Run a table while its database restarts so often; counts the restarts, and how often each run has run."""
    with tempfile.TemporaryDirectory() as folder, Server() as server:
        os.chdir(folder)
        log, stopped, count = Path(folder) / "log", threading.Event(), rows * seeds
        log.touch()
        named = ", ".join(f"{row}: {{arguments: {{row: {row}}}}}" for row in range(rows))
        Path("made-up.yaml").write_text(_RECIPE.format(log=log, rows=named, seeds=seeds))
        found = Counter[str]()

        def restart() -> None:
            for number in range(times):
                begun = (number + random.random()) * count / times
                while len(log.read_text().splitlines()) <= begun:
                    if stopped.wait(0.02):
                        return
                server.restart()
                found["a restart"] += 1

        restarting = threading.Thread(target=restart)
        restarting.start()
        options = TableOptions(name="made-up.yaml", ledger=server.url, workers=4, trust=True)
        try:
            document = table(options)
        finally:
            stopped.set()
            restarting.join()
        told = {entry["row"]: entry["mean"] for entry in document["tables"]["full"]}
        expected = {str(row): 100 * row + (seeds - 1) / 2 for row in range(rows)}
        ran = Counter(log.read_text().splitlines())
    found["a run, once"] = sum(ran[f"{row} {seed}"] == 1 for row in range(rows) for seed in range(seeds))
    found["a run, never or more than once"] = count - found["a run, once"]
    found["a row with another number"] = sum(told.get(row) != mean for row, mean in expected.items())
    return +found


def main() -> int:
    """Print what came of it; the exit status is 1 if a run has not run just once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=10)
    evidence.add_option(parser)
    asked = parser.parse_args()
    trial = partial(restarted, asked.times, asked.rows, asked.seeds)
    name = f"{asked.rows * asked.seeds} runs with 4 workers while PostgreSQL restarts"
    return evidence.make([(name, asked.times, trial)], asked.evidence, "python -m lab.damage.restarts", GOOD)


if __name__ == "__main__":
    raise SystemExit(main())
