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
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch import Tensor

from bpfree.lab.data.batches import batches
from bpfree.lab.data.clicks import Clicks, ClickSettings, ShuffledBlocks, load_clicks, read_schema
from bpfree.lab.data.clicks.schema import AS_WRITTEN
from bpfree.lab.model_settings import ModelSettings
from bpfree.lab.options import TrainOptions
from bpfree.lab.runs import learner, run
from bpfree.lab.settings import RunSettings
from bpfree.lab.tasks.clicks import ClickPrediction, scores
from bpfree.lab.time_and_memory import paired_ratio
from common import results, script
from common.click_log import SECOND, THIRD, frames, planted, write_log
from common.watching import watched

NETS: dict[str, dict[str, Any]] = {
    "DeepFM": {"dropout": 0.5},
    "DeepCross": {},
}
"""The nets of the published runs."""
BATCH = {"DeepFM": 2048, "DeepCross": 512}
QUICK = 20_000


def settings(net: str, rule: str, threads: int, **changes: Any) -> RunSettings:
    """A run of one of the nets, one pass."""
    model = ModelSettings(net, NETS.get(net, {}))
    options = {"data": "criteo", "rule": rule, "model": model, "epochs": 1, "lr": 1e-3, "alignment": "never"}
    options |= {"batch_size": BATCH.get(net, 2048), "threads": threads, "clicks": ClickSettings(measured_on="test")}
    return TrainOptions(**(options | changes)).run(rule, 0, details=False)


def stepping(clicks: Clicks, run_settings: RunSettings) -> tuple[ClickPrediction, Callable[[Any], None]]:
    """The lab's learner, and its training step on a batch."""
    task: Any = learner(run_settings, clicks)
    optimizer = task.optimizer()

    def step(batch: Any) -> None:
        optimizer.zero_grad()
        task.gradients(batch)
        optimizer.step()

    return task, step


def endless(clicks: Clicks, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Read batch after batch from the cache."""
    loader = batches(clicks.train, ShuffledBlocks(len(clicks.train), size, seed=0))
    return itertools.chain.from_iterable(itertools.repeat(loader))


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


def beside_torchfm(place: Path, net: str, rows: int, pairs: int, threads: int) -> results.Row | None:
    """The lab's training by BP, reading included, beside torchfm's loop on its own cache; None without torchfm."""
    try:
        from torchfm.dataset.criteo import CriteoDataset
        from torchfm.model.dcn import DeepCrossNetworkModel
        from torchfm.model.dfm import DeepFactorizationMachineModel
    except ModuleNotFoundError as error:
        print(f"{error}: torchfm's loop is left out", file=sys.stderr)
        return None
    small = place / "torchfm.txt"
    write_log(small, rows)
    data = CriteoDataset(str(small), str(place / "lmdb"))
    asked = settings(net, "BP", threads)
    torch.manual_seed(0)
    model: Any = (
        DeepFactorizationMachineModel(data.field_dims, embed_dim=10, mlp_dims=(400, 400, 400), dropout=0.5)
        if net == "DeepFM"
        else DeepCrossNetworkModel(data.field_dims, embed_dim=16, num_layers=6, mlp_dims=(1024, 1024), dropout=0.0)
    )
    optimizer, criterion = torch.optim.Adam(model.parameters(), lr=1e-3), torch.nn.BCELoss()
    # As its example does, but in this process: eight workers on two cores take longer.
    loader = torch.utils.data.DataLoader(data, batch_size=asked.batch_size)
    theirs = itertools.chain.from_iterable(itertools.repeat(loader))

    def loop() -> None:
        fields, target = next(theirs)
        loss = criterion(model(fields), target.float())
        model.zero_grad()
        loss.backward()
        optimizer.step()

    # The same rows, read as the lab reads them: tables of the same size.
    folder = place / "small"
    folder.mkdir(exist_ok=True)
    small.rename(folder / "train.txt")
    same = load_clicks(folder, name="criteo")
    _, step = stepping(same, asked)
    read = endless(same, asked.batch_size)
    ratio = paired_ratio(loop, lambda: step(next(read)), repeats=pairs, warmup=2)
    shutil.rmtree(place / "lmdb")
    shutil.rmtree(folder)
    return _row(net, "torchfm's loop", "BP, from the cache", ratio, asked.batch_size)


def _row(net: str, subject: str, reference: str, ratio: Any, size: int) -> results.Row:
    return {"net": net, "subject": subject, "reference": reference, "time": asdict(ratio), "batch": size}


def epoch(clicks: Clicks, net: str, rule: str, threads: int, log: str) -> results.Row:
    """One pass: rows a second, how far the process grows, and what is learned of the planted interactions."""
    row: results.Row = {"net": net, "subject": f"a pass by {rule}", "reference": log}
    with tempfile.TemporaryDirectory() as place, watched(row), contextlib.redirect_stdout(None):
        record = run(settings(net, rule, threads, batch_size=2048), clicks, Path(place))
    rate = len(clicks.train) / record["epochs"][0]["seconds"]
    return row | {"rows_per_second": rate, "auc": record["auc"], "log_loss": record["log_loss"]}


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


def measured(place: Path, options: Any, rows: int, beside: int) -> Iterator[results.Row]:
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
            found = beside_torchfm(place, net, beside, min(options.pairs, 10), options.threads)
            if found:
                yield found
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
    parser.add_argument("--pairs", type=int, default=30, help="pairs of steps (default: 30)")
    parser.add_argument("--kills", type=int, default=0, help="how often a run is killed (default: 0)")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK:,} rows in place of them all, and 3 pairs")
    options = parser.parse_args()
    rows, beside = (QUICK, QUICK // 10) if options.quick else (options.rows, options.beside)
    options.pairs = 3 if options.quick else options.pairs
    torch.set_num_threads(options.threads)
    started = script.run()
    print(HEADER)
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = place
        for row in measured(Path(place), options, rows, beside):
            print(line(row), flush=True)
            results.write(options.out, started, [row])


if __name__ == "__main__":
    main()
