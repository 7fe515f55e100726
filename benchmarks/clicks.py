"""What a log of clicks takes beside training: caching, reading and memory, on a log that is made up and removed again.

python benchmarks/clicks.py [--rows 20000000] [--beside 200000] [--kills 20] [--quick] [--only "pass*"]
"""

from __future__ import annotations

import itertools
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from bpfree.lab.data.batches import batches
from bpfree.lab.data.clicks import Clicks, ShuffledBlocks, load_clicks
from bpfree.lab.time_and_memory import paired_ratio
from common import results, script
from common.click_log import write_log
from common.click_steps import SMALL, SMALL_BATCH, SMALL_DECAY, alike, endless, stepping
from common.watching import watched

BATCHES = (512, 2048)  # those of the published runs
QUICK = 20_000


def caching(folder: Path, log: str) -> tuple[Clicks, results.Row]:
    """Cache the log as the lab does, checksums included."""
    row: results.Row = {"net": log, "subject": "caching", "reference": ""}
    with watched(row):
        found = load_clicks(folder, name="criteo")
    return found, row | rates(sum(found.cache.counts.values()), row)


def caching_again(folder: Path, log: str) -> results.Row:
    """Find the cache that is there."""
    row: results.Row = {"net": log, "subject": "caching, found again", "reference": ""}
    with watched(row):
        found = load_clicks(folder, name="criteo")
    return row | rates(sum(found.cache.counts.values()), row)


def caching_by_torchfm(folder: Path, rows: int) -> results.Row | None:
    """Cache a smaller log as torchfm 0.7.0 does; None where it or lmdb is not installed."""
    try:
        from torchfm.dataset.criteo import CriteoDataset
    except ModuleNotFoundError as error:
        print(f"{error}: torchfm's own caching is left out", file=sys.stderr)
        return None
    write_log(folder / "small.txt", rows)
    row: results.Row = {"net": log_name(rows), "subject": "caching, torchfm", "reference": ""}
    with watched(row):
        CriteoDataset(str(folder / "small.txt"), str(folder / "lmdb"))
    shutil.rmtree(folder / "lmdb")
    return row | rates(rows, row)


def rates(rows: int, row: results.Row) -> results.Row:
    """Rows a second by the clock, and a second of a processor."""
    return {"rows_per_second": rows / row["seconds"], "rows_per_cpu_second": rows / row["cpu_seconds"]}


def reading(clicks: Clicks, log: str, only: list[str] | None) -> Iterator[results.Row]:
    """Read a whole pass in shuffled blocks."""
    for size in BATCHES:
        name = f"pass, batches of {size}"
        if script.chosen(name, only):
            row: results.Row = {"net": log, "subject": name, "reference": ""}
            with watched(row):
                rows = sum(len(y) for _, y in batches(clicks.train, ShuffledBlocks(len(clicks.train), size, seed=0)))
            yield row | rates(rows, row)


def training(clicks: Clicks, log: str, threads: int, pairs: int) -> Iterator[results.Row]:
    """A pass of a small net, the fastest that a reader has to feed: its step beside one from memory, and memory."""
    asked = alike("DeepFM", SMALL["DeepFM"], "BP", threads, SMALL_BATCH, SMALL_DECAY)
    _, step = stepping(clicks, asked)
    read = endless(clicks, asked.batch_size)
    kept = itertools.cycle(list(itertools.islice(read, 8)))
    ratio = paired_ratio(lambda: step(next(read)), lambda: step(next(kept)), repeats=pairs)
    yield {"net": log, "subject": "training from the cache", "reference": "from memory", "time": asdict(ratio)}
    row: results.Row = {"net": log, "subject": "training, a pass", "reference": ""}
    with watched(row):
        for batch in batches(clicks.train, ShuffledBlocks(len(clicks.train), asked.batch_size, seed=0)):
            step(batch)
    yield row | rates(len(clicks.train), row)


def killed(folder: Path, place: Path, kills: int, log: str, seconds: float) -> results.Row:
    """Kill caching so many times by SIGKILL, each time within ``seconds``, and compare with an undisturbed cache."""
    sys.path.insert(0, str(script.ROOT.parent / "tests"))
    from support import killed_caching

    draw, number, whole = random.Random(0), 0, place / "whole"
    piece = max(2**16, (folder / "train.txt").stat().st_size // 40)
    killed_caching.run(folder, "criteo", whole, None, piece=piece)
    equal, expected = True, killed_caching.files(whole)
    while number < kills:
        # Where nothing is left to be done, the next one begins anew.
        if killed_caching.run(folder, "criteo", place / "killed", seconds * draw.random(), piece=piece):
            equal = equal and killed_caching.files(place / "killed") == expected
            shutil.rmtree(place / "killed")
        else:
            number += 1
    killed_caching.run(folder, "criteo", place / "killed", None, piece=piece)
    equal = equal and killed_caching.files(place / "killed") == expected
    return {"net": log, "subject": "kills", "reference": "", "kills": number, "equal": equal}


def log_name(rows: int) -> str:
    """What a log of so many rows is called."""
    return f"{rows:,} made-up rows"


HEADER = """\
| log | subject | rows a second | rows a second of CPU | process grows by, MiB |
| --- | --- | --- | --- | --- |"""


def line(row: results.Row) -> str:
    """One row of the printed table."""
    if row["subject"] == "kills":
        return f"| {row['net']} | killed {row['kills']} times: {'equal' if row['equal'] else 'NOT EQUAL'} | | | |"
    if ratio := row.get("time"):
        shown = f"time {ratio['median']:.3f} [{ratio['lower']:.3f}, {ratio['upper']:.3f}]"
        return f"| {row['net']} | {row['subject']} beside that {row['reference']}: {shown} | | | |"
    rates_ = f"{row['rows_per_second']:,.0f} | {row['rows_per_cpu_second']:,.0f}"
    return f"| {row['net']} | {row['subject']} | {rates_} | {row['resident_growth'] / 2**20:,.0f} |"


def measured(folder: Path, place: Path, rows: int, beside: int, options: Any) -> Iterator[results.Row]:
    """Yield what was measured."""
    kills, only = options.kills, options.only
    log = log_name(rows)
    write_log(folder / "train.txt", rows)
    clicks, row = caching(folder, log)
    if script.chosen("caching", only):
        yield row
        yield caching_again(folder, log)
    yield from reading(clicks, log, only)
    if script.chosen("training", only):
        yield from training(clicks, log, options.threads, 3 if options.quick else 30)
    if script.chosen("caching, torchfm", only) and (row_ := caching_by_torchfm(place, beside)):
        yield row_
    if kills:
        yield killed(folder, place, kills, log, row["seconds"] / 3)


def main() -> None:
    """Measure, print the table, put the rows into the file; whatever else was written is removed."""
    script.keep_memory()
    parser = script.parser(__doc__, "clicks.json")
    parser.add_argument("--rows", type=int, default=20_000_000, help="of the log (default: 20,000,000)")
    parser.add_argument("--beside", type=int, default=200_000, help="of the log for torchfm (default: 200,000)")
    parser.add_argument("--kills", type=int, default=0, help="how often caching is killed (default: 0)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK:,} rows in place of them all")
    options = parser.parse_args()
    rows, beside = (QUICK, QUICK // 10) if options.quick else (options.rows, options.beside)
    torch.set_num_threads(options.threads)
    run = script.run()
    print(HEADER)
    with tempfile.TemporaryDirectory() as place_:
        place = Path(place_)
        os.environ["XDG_CACHE_HOME"] = str(place)
        folder = place / "log"
        folder.mkdir()
        for row in measured(folder, place, rows, beside, options):
            print(line(row), flush=True)
            results.write(options.out, run, [row])


if __name__ == "__main__":
    main()
