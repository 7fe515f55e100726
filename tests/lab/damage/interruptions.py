"""``python -m lab.damage.interruptions``: Ctrl-C at random moments of runs in one process, as in a notebook."""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from functools import partial
from pathlib import Path

import torch

from bpfree.lab.disk.files import storable
from bpfree.lab.running.runs import run
from support import evidence, tiny_lab

GOOD = ("interrupted", "finished before")
RULES = ("BP", "DFA", "GrAPE", "KP", "PEPITA", "FG-W")


def numbers(record: dict) -> str:
    """What does not depend on the clock, as a file has it: NaN is null."""
    kept = [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in record["epochs"]]
    return json.dumps(storable([kept, record["accuracy"]]))


def once(label: str, folder: Path, after: float | None = None) -> str:
    """One run, interrupted after so many seconds: its numbers, or that it was interrupted."""
    settings = tiny_lab.settings(label, epochs=2)
    if after is not None:
        signal.setitimer(signal.ITIMER_REAL, after)
    try:
        return numbers(run(settings, tiny_lab.splits(), folder))
    except (KeyboardInterrupt, SystemExit):
        return "interrupted"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def interrupted(times: int, luck: random.Random, labels: tuple[str, ...] = RULES) -> Counter[str]:
    """Interrupt runs so often, and run each again; counts what came of it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    found = Counter[str]()
    with tempfile.TemporaryDirectory() as place:
        fresh, seconds = {}, {}
        for label in labels:
            once(label, Path(place) / "warm")
            began = time.perf_counter()
            fresh[label] = once(label, Path(place) / "fresh" / label)
            seconds[label] = time.perf_counter() - began
        threads, handlers = threading.active_count(), signal.getsignal(signal.SIGINT)
        for number in range(times):
            label, folder = labels[number % len(labels)], Path(place) / str(number)
            first = once(label, folder, luck.uniform(0.001, seconds[label]))
            found["interrupted" if first == "interrupted" else "finished before"] += 1
            # The same is continued, or begun anew in a process that has been interrupted.
            for again in (folder, Path(place) / f"{number} anew"):
                if once(label, again) != fresh[label]:
                    found[f"other numbers: {label} ({number})"] += 1
            if not torch.is_grad_enabled():
                found["gradients left off"] += 1
            if threading.active_count() > threads:
                found["threads left"] += 1
            if signal.getsignal(signal.SIGINT) is not handlers:
                found["handlers left"] += 1
    return found


def main() -> int:
    """Print what came of it; the exit status is 1 if anything was other than in a fresh process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=500)
    parser.add_argument("--rules", nargs="+", default=list(RULES))
    evidence.add_option(parser)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    trial = partial(interrupted, asked.times, random.Random(0), tuple(asked.rules))
    name = f"runs of {', '.join(asked.rules)}"
    return evidence.make([(name, asked.times, trial)], asked.evidence, "python -m lab.damage.interruptions", GOOD)


if __name__ == "__main__":
    raise SystemExit(main())
