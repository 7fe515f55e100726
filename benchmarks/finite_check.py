"""What it costs to look for NaN and infinity in every step: a step beside the same without this look.

Times are the processor time of one thread, which other processes do not add to. The difference is taken within each
pair; its median stands beside the median step. ``quiet`` has the fastest tenth of both.

    python benchmarks/finite_check.py [--nets 8x256@64 8x1024@256] [--only BP DFA] [--pairs 1500]
"""

from __future__ import annotations

import random
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median, quantiles

import torch

import bpfree
from bpfree.mechanisms.base import Mechanism
from bpfree.mechanisms.direct import rule_signals
from bpfree.mechanisms.forward_only import mechanism as forward_only
from common import results, script
from common.nets import Net, net
from common.subjects import Step, Subject

SUBJECTS = {"BP": bpfree.BP(), "DFA": bpfree.DFA(), "FA": bpfree.FA(), "PEPITA": bpfree.PEPITA()}
REFERENCE = "without the look"


@contextmanager
def without_look(step: Step) -> Iterator[None]:
    """Within this context the rule of a step looks at no gradient: the same model otherwise, in the same memory."""
    assert step.attachment is not None
    places = [part._forward_hooks for part in step.model.modules()]
    looks = [(place, key, hook) for place in places for key, hook in place.items() if _is_look(hook)]
    kept = rule_signals.require_finite, forward_only.require_finite
    for place, key, _ in looks:
        del place[key]
    rule_signals.require_finite = forward_only.require_finite = _nothing
    try:
        yield
    finally:
        rule_signals.require_finite, forward_only.require_finite = kept
        for place, key, hook in looks:
            place[key] = hook


def _is_look(hook: object) -> bool:
    return isinstance(hook, partial) and getattr(hook.func, "__func__", None) is Mechanism._watch_output


def _nothing(*_: object) -> None:
    """Look at nothing, in the time of a call."""


def seconds(step: Step) -> float:
    """Processor time of this thread in one step."""
    began = time.thread_time()
    step()
    return time.thread_time() - began


def measured(name: str, on: Net, pairs: int) -> results.Row:
    """One row: how much of a step the look takes."""
    step, luck = Subject(SUBJECTS[name]).on(on), random.Random(0)
    for _ in range(20):
        step()
    with_look, without = [], []
    for _ in range(pairs):
        first = luck.random() < 0.5
        if first:
            with_look.append(seconds(step))
        with without_look(step):
            without.append(seconds(step))
        if not first:
            with_look.append(seconds(step))
    differences = [ours - theirs for ours, theirs in zip(with_look, without, strict=True)]
    whole, (lower, middle, upper) = median(without), quantiles(differences, n=4)
    share = {"median": middle / whole, "lower": lower / whole, "upper": upper / whole}
    # On a busy machine the caches of most steps are cold; the fastest tenth has its own.
    fast = [quantiles(times, n=10)[0] for times in (with_look, without)]
    quiet = {"seconds": fast[0] - fast[1], "share": fast[0] / fast[1] - 1}
    found = {"share": share, "seconds": middle, "quiet": quiet, "step_seconds": whole, "pairs": pairs}
    return {"net": on.name, "subject": name, "reference": REFERENCE, **found}


def rows(nets: list[Net], only: list[str] | None, pairs: int) -> Iterator[results.Row]:
    """A row for every network and rule."""
    for on in nets:
        for name in SUBJECTS:
            if script.chosen(name, only):
                yield measured(name, on, pairs)


def main() -> None:
    """Measure, print the table, put the rows into the file."""
    script.keep_memory()
    parser = script.parser(__doc__, "finite_check.json")
    parser.add_argument("--nets", nargs="+", type=net, default=[net("8x256@64"), net("8x1024@256")])
    parser.add_argument("--pairs", type=int, default=1500, help="pairs of steps a row (default: 1500)")
    parser.set_defaults(threads=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore", bpfree.BpfreeWarning)
    run = script.run()
    print("| network | rule | look, microseconds | of a step | of the fastest tenth |\n| --- | --- | --- | --- | --- |")
    for row in rows(options.nets, options.only, options.pairs):
        look = f"{row['seconds'] * 1e6:.0f} | {row['share']['median']:.2%} | {row['quiet']['share']:.2%}"
        print(f"| {row['net']} | {row['subject']} | {look} |", flush=True)
        results.write(options.out, run, [row])


if __name__ == "__main__":
    main()
