"""``python -m lab.damage.restarts``: a table with four workers, and a database that restarts in the middle of it."""

from __future__ import annotations

import argparse
import os
import random
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

from bpfree.lab.queue import processes, storage
from bpfree.lab.tables import workers
from bpfree.lab.tables.command_options import TableOptions
from bpfree.lab.tables.table import table
from lab.damage.server import Server

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


def restarted(times: int, rows: int, seeds: int, pause: float) -> Counter[str]:
    """Run a table while its database restarts so often; returns how often each run has run."""
    with tempfile.TemporaryDirectory() as folder, Server() as server:
        os.chdir(folder)
        log, stopped = Path(folder) / "log", threading.Event()
        log.touch()
        named = ", ".join(f"{row}: {{arguments: {{row: {row}}}}}" for row in range(rows))
        Path("made-up.yaml").write_text(_RECIPE.format(log=log, rows=named, seeds=seeds))

        def restart() -> None:
            for _ in range(times):
                if stopped.wait(random.uniform(0.5, 1.5) * pause):
                    break
                server.restart()

        restarting = threading.Thread(target=restart)
        restarting.start()
        options = TableOptions(name="made-up.yaml", ledger=server.url, workers=4, trust=True)
        try:
            document = table(options)
        finally:
            stopped.set()
            restarting.join()
        found = {entry["row"]: entry["mean"] for entry in document["tables"]["full"]}
        assert found == {str(row): 100 * row + (seeds - 1) / 2 for row in range(rows)}, found
        return Counter(log.read_text().splitlines())


def main() -> int:
    """Print how often runs have run; the exit status is 1 if one has not run just once."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=30)
    parser.add_argument("--rows", type=int, default=60)
    parser.add_argument("--seeds", type=int, default=10)
    asked = parser.parse_args()
    processes.METHOD, workers._POLL = "fork", 0.2
    storage._PAUSES = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    counts = restarted(asked.times, asked.rows, asked.seeds, pause=2.0)
    print(f"{len(counts)} of {asked.rows * asked.seeds} runs; so often: {Counter(counts.values())}")
    return 0 if set(counts.values()) == {1} and len(counts) == asked.rows * asked.seeds else 1


if __name__ == "__main__":
    raise SystemExit(main())
