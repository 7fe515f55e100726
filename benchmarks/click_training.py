"""Training on a made-up log of clicks: beside training from memory, beside torchfm's loop, DFA beside BP.

python benchmarks/click_training.py [--rows 2000000] [--pairs 30] [--kills N] [--quick] [--only "DFA*"]
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import torch

from bpfree.lab.data.batches import batches
from bpfree.lab.data.clicks import Clicks, ClickSettings, ShuffledBlocks, load_clicks, read_schema
from bpfree.lab.data.clicks.schema import AS_WRITTEN
from bpfree.lab.running.runs import run
from bpfree.lab.settings.model import ModelSettings
from bpfree.lab.tasks.clicks import scores
from bpfree.lab.time_and_memory import paired_ratio
from common import results, script, third_order_log, torchfm_loop
from common.click_log import SECOND, THIRD, frames, planted, write_log
from common.click_steps import BATCH, NETS, SMALL, SMALL_BATCH, SMALL_DECAY, alike, endless, settings, stepping
from common.watching import watched

THIRD_NETS: dict[str, dict[str, Any]] = {
    "FM": {},
    "DeepFM": {"hidden": [128, 128]},
    "DeepCross": {"layers": 3, "hidden": [128, 128]},
}
"""Those that learn an interaction of three fields, in so many passes."""
PASSES = 5
WORKERS = 8  # of torchfm's example script
QUICK = 20_000


def from_memory(clicks: Clicks, net: str, threads: int, pairs: int) -> results.Row:
    """A step that reads its batch from the cache, beside one whose batches are in memory."""
    asked = settings(net, "BP", threads)
    _, step = stepping(clicks, asked)
    read = endless(clicks, asked.batch_size)
    kept = itertools.cycle(list(itertools.islice(read, 8)))
    ratio = paired_ratio(lambda: step(next(read)), lambda: step(next(kept)), repeats=pairs)
    return _row(net, "from the cache", "from memory", ratio, asked.batch_size)


def direct(clicks: Clicks, net: str, threads: int, pairs: int) -> results.Row:
    """DFA's step beside backpropagation's, on batches in memory."""
    steps = {}
    for rule in ("DFA", "BP"):
        asked = settings(net, rule, threads)
        steps[rule] = stepping(clicks, asked)[1]
    kept = itertools.cycle(list(itertools.islice(endless(clicks, asked.batch_size), 8)))
    ratio = paired_ratio(lambda: steps["DFA"](next(kept)), lambda: steps["BP"](next(kept)), repeats=pairs)
    return _row(net, "DFA", "BP", ratio, asked.batch_size)


def beside_torchfm(place: Path, rows: int, pairs: int, threads: int, nets: dict[str, Any]) -> Iterator[results.Row]:
    """Training steps, reading included, beside those of torchfm's loop on the same rows; nothing without torchfm."""
    folder = place / "beside"
    folder.mkdir()
    write_log(folder / "train.txt", rows)
    try:
        data = torchfm_loop.data_set(folder / "train.txt", place / "lmdb")
    except ModuleNotFoundError as error:
        print(f"{error}: torchfm's loop is left out", file=sys.stderr)
        return
    clicks = load_clicks(folder, name="criteo")  # the same rows, as the lab reads them: tables of about the same size
    for name, (net, arguments, size, decay) in nets.items():
        torch.manual_seed(0)
        theirs = torchfm_loop.stepping(torchfm_loop.model(net, data.field_dims, arguments), decay)
        read = torchfm_loop.endless(torchfm_loop.batches(data, size, workers=0))
        for rule in ("BP", "DFA"):
            step = stepping(clicks, alike(net, arguments, rule, threads, size, decay))[1]
            own = endless(clicks, size)
            ratio = paired_ratio(lambda: theirs(next(read)), lambda: step(next(own)), repeats=pairs, warmup=2)  # noqa: B023
            yield _row(name, "torchfm's loop", f"{rule}, from the cache", ratio, size)
        if decay:  # a whole pass: its workers start anew in each
            step = stepping(clicks, alike(net, arguments, "BP", threads, size, decay))[1]
            loader = torchfm_loop.batches(data, size, WORKERS)
            order = ShuffledBlocks(len(clicks.train), size, seed=0)
            ratio = paired_ratio(
                lambda: [theirs(batch) for batch in loader],  # noqa: B023
                lambda: [step(batch) for batch in batches(clicks.train, order)],  # noqa: B023
                repeats=3, warmup=1,
            )  # fmt: skip
            yield _row(name, f"torchfm's loop, a pass, {WORKERS} workers", "BP, a pass", ratio, size)


def beside() -> dict[str, Any]:
    """The nets that both train: name, arguments, batch, weight decay."""
    found = {net: (net, arguments, BATCH[net], 0.0) for net, arguments in NETS.items()}
    small = {f"{net} of torchfm's example": (net, SMALL[net], SMALL_BATCH, SMALL_DECAY) for net in SMALL}
    return found | small


def _row(net: str, subject: str, reference: str, ratio: Any, size: int) -> results.Row:
    return {"net": net, "subject": subject, "reference": reference, "time": asdict(ratio), "batch": size}


def epoch(clicks: Clicks, net: str, rule: str, threads: int, log: str) -> results.Row:
    """One pass: rows a second, how far the process grows, and what is learned of the planted interactions."""
    row: results.Row = {"net": net, "subject": f"a pass by {rule}", "reference": log}
    with tempfile.TemporaryDirectory() as place, watched(row), contextlib.redirect_stdout(None):
        record = run(settings(net, rule, threads, batch_size=2048), clicks, Path(place))
    rate = len(clicks.train) / record["epochs"][0]["seconds"]
    return row | {"rows_per_second": rate, "auc": record["auc"], "log_loss": record["log_loss"]}


def third_order(place: Path, rows: int, threads: int) -> Iterator[results.Row]:
    """What is learned of a product of three fields, of which two say nothing."""
    folder, log = place / "third", f"{rows:,} rows, {PASSES} passes"
    folder.mkdir()
    third_order_log.write_log(folder / "log.csv", rows)
    schema = place / "third.yaml"
    schema.write_text(json.dumps(asdict(third_order_log.SCHEMA)))
    clicks = load_clicks(folder, ClickSettings(schema=str(schema), measured_on="test"))
    yield {"net": "the planted product", "subject": "third order", "reference": log, "auc": third_order_log.best_auc()}
    for net, arguments in THIRD_NETS.items():
        for rule in ("BP",) if net == "FM" else ("BP", "DFA"):
            row: results.Row = {"net": net, "subject": f"third order by {rule}", "reference": log}
            changes = {"model": ModelSettings(net, arguments), "batch_size": 256, "epochs": PASSES}
            with tempfile.TemporaryDirectory() as runs, watched(row), contextlib.redirect_stdout(None):
                record = run(settings(net, rule, threads, **changes), clicks, Path(runs))
            yield row | {"auc": record["auc"], "log_loss": record["log_loss"]}


def killed(place: Path, schema: Path, kills: int, log: str) -> results.Row:
    """Kill a run so many times by SIGKILL, at any moment, and compare its end with that of an undisturbed one."""
    words = ["train", "--data", "clicks", "--schema", str(schema), "--data-dir", str(schema.parent / "log")]
    words += ["--model", "DeepFM", "--model.dropout", "0.5", "--epochs", "12", "--patience", "11", "--threads", "1"]
    command = [sys.executable, "-m", "bpfree.lab.cli", *words]
    start = time.perf_counter()
    subprocess.run([*command, "--out", str(place / "whole")], check=True, stdout=subprocess.DEVNULL)
    seconds, draw, done = time.perf_counter() - start, random.Random(0), 0
    out = ["--out", str(place / "killed")]
    while done < kills:
        resume = ["--resume"] if list((place / "killed").glob("*/last*.ckpt")) else []
        process = subprocess.Popen([*command, *out, *resume], stdout=subprocess.DEVNULL)
        try:
            process.wait(seconds * draw.random())
        except subprocess.TimeoutExpired:
            process.kill()
            done += 1
        process.wait()
        if list((place / "killed").glob("*.json")):  # it came to its end; begin anew
            shutil.rmtree(place / "killed")
    resume = ["--resume"] if list((place / "killed").glob("*/last*.ckpt")) else []
    subprocess.run([*command, *out, *resume], check=True, stdout=subprocess.DEVNULL)
    ends = [torch.load(next((place / name).glob("*/last.ckpt")), weights_only=True) for name in ("whole", "killed")]
    first, second = (end["state_dict"] for end in ends)
    equal = first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)
    return {"net": "DeepFM", "subject": "kills", "reference": log, "kills": kills, "equal": equal}


def limits(rows: int, log: str) -> Iterator[results.Row]:
    """AUC of the planted logit, and of its second-order part alone, on the log's last tenth."""
    frame = pl.concat(list(frames(rows, 0))).tail(rows // 10)
    clicked = torch.from_numpy(frame["label"].to_numpy().copy()).float()
    for subject, orders in (("the planted logit", (SECOND, THIRD)), ("its second order", (SECOND,))):
        auc = scores(torch.from_numpy(planted(frame, *orders)), clicked)["auc"]
        yield {"net": subject, "subject": "what can be known", "reference": log, "auc": auc}


HEADER = """\
| net | subject | beside | time | rows a second | AUC | process grows by, MiB |
| --- | --- | --- | --- | --- | --- | --- |"""


def line(row: results.Row) -> str:
    """One row of the printed table."""
    if row["subject"] == "kills":
        return f"| {row['net']} | killed {row['kills']} times: {'equal' if row['equal'] else 'NOT EQUAL'} | | | | | |"
    ratio = row.get("time")
    shown = f"{ratio['median']:.3f} [{ratio['lower']:.3f}, {ratio['upper']:.3f}]" if ratio else ""
    rate = f"{row['rows_per_second']:,.0f}" if "rows_per_second" in row else ""
    auc = f"{row['auc']:.4f}" if "auc" in row else ""
    grown = f"{row['resident_growth'] / 2**20:,.0f}" if "resident_growth" in row else ""
    return f"| {row['net']} | {row['subject']} | {row['reference']} | {shown} | {rate} | {auc} | {grown} |"


def measured(place: Path, options: Any, rows: int) -> Iterator[results.Row]:
    """Yield what was measured."""
    folder, log = place / "log", f"{rows:,} made-up rows"
    folder.mkdir()
    write_log(folder / "train.txt", rows)
    schema = place / "schema.yaml"
    schema.write_text(json.dumps(asdict(read_schema("criteo")) | {"split": {"order": AS_WRITTEN}}))
    clicks = load_clicks(folder, ClickSettings(schema=str(schema), measured_on="test"))
    for net in NETS:
        if script.chosen("from the cache", options.only):
            yield from_memory(clicks, net, options.threads, options.pairs)
        if script.chosen("DFA", options.only):
            yield direct(clicks, net, options.threads, options.pairs)
    if script.chosen("torchfm's loop", options.only):
        yield from beside_torchfm(place, options.beside, min(options.pairs, 10), options.threads, beside())
    if script.chosen("third order", options.only):
        yield from third_order(place, options.third, options.threads)
    passes = [("FM", "BP"), *((net, rule) for net in NETS for rule in ("BP", "DFA"))]
    for net, rule in passes:
        if script.chosen(f"a pass by {rule}", options.only):
            yield epoch(clicks, net, rule, options.threads, log)
    if script.chosen("what can be known", options.only):
        yield from limits(rows, log)
    if options.kills:
        yield killed(place, schema, options.kills, log)


def main() -> None:
    """Measure, print the table, put the rows into the file; whatever else was written is removed."""
    script.keep_memory()
    parser = script.parser(__doc__, "click_training.json")
    parser.add_argument("--rows", type=int, default=2_000_000, help="of the log (default: 2,000,000)")
    parser.add_argument("--beside", type=int, default=100_000, help="of the log for torchfm (default: 100,000)")
    parser.add_argument("--third", type=int, default=250_000, help="of the log of third order (default: 250,000)")
    parser.add_argument("--pairs", type=int, default=30, help="pairs of steps (default: 30)")
    parser.add_argument("--kills", type=int, default=0, help="how often a run is killed (default: 0)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK:,} rows in place of them all, and 3 pairs")
    options = parser.parse_args()
    rows = QUICK if options.quick else options.rows
    options.beside, options.third = (QUICK // 10, QUICK // 10) if options.quick else (options.beside, options.third)
    options.pairs = 3 if options.quick else options.pairs
    torch.set_num_threads(options.threads)
    started = script.run()
    print(HEADER)
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = place
        for row in measured(Path(place), options, rows):
            print(line(row), flush=True)
            results.write(options.out, started, [row])


if __name__ == "__main__":
    main()
