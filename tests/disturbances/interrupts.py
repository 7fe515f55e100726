"""Ctrl-C at random moments of training, in one process that lives on, as in a notebook.

    PYTHONPATH=tests python -m disturbances.interrupts [--times 500] [--nets plain ...] [--evidence FILE]

Each of 30 variants of the rules trains, SIGINT ends the training anywhere between attaching and the last step, and the
same process goes on: the interrupted model from the state that it had behind its first step (attached anew where it did
not come so far), and a new model from the beginning. Both must end with the numbers of a process in which nobody was
interrupted. Gradients must be on, no thread and no switch of torch's may be left.

The exit status is 1 if anything was otherwise.
"""

from __future__ import annotations

import argparse
import copy
import multiprocessing
import random
import signal
import threading
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.autograd.forward_ad as forward_mode
import torch.nn.functional as F

import bpfree
from disturbances.nets import NETS, VARIANTS, batches
from support import evidence
from support.runs import Numbers, attach, learned

STEPS = 5
RATE, DECAY = 0.05, 0.01
"""Of plain SGD."""
TORCH = "in torch's own code"
GOOD = ("interrupted", "finished before", f"gradients are off ({TORCH})")
"""The last one is none of the rule's: it comes in optimizers' steps and copies of tensors, without a rule too."""
_LIBRARY = Path(bpfree.__file__).parent

_BATCHES = batches(STEPS)


class Training:
    """The training of one net under one variant of a rule.

    Attributes:
        attachment: Its attachment, as soon as it has one.
        behind_first: The states of model and attachment behind the first step, as soon as that is over.
        step: How many steps have been taken.
    """

    def __init__(self, net: str, variant: str) -> None:
        self._net, self._row = NETS[net], VARIANTS[variant]
        self._model = self._net.build()
        self._start = copy.deepcopy(self._model.state_dict())
        self._prepare()

    def _prepare(self) -> None:
        self.attachment: bpfree.Attachment | None = None
        self.behind_first: tuple[dict[str, Any], dict[str, Any]] | None = None
        self.step, self._losses = 0, [0.0] * STEPS

    def run(self) -> Numbers:
        """Take all steps from the beginning."""
        self.attachment = attach(self._row, self._model, **self._net.options)
        self._take_step()
        self.behind_first = copy.deepcopy((self._model.state_dict(), self.attachment.state_dict()))
        return self._rest()

    def again(self) -> Numbers:
        """Take the steps again that come behind the first one; all of them if that was not over."""
        if self.behind_first is None:
            bpfree.detach_all(self._model)
            self._model.load_state_dict(self._start)
            self._prepare()
            return self.run()
        assert self.attachment is not None
        model, attachment = self.behind_first
        self._model.load_state_dict(model)
        self.attachment.load_state_dict(attachment)
        self.step = 1
        return self._rest()

    def _rest(self) -> Numbers:
        while self.step < STEPS:
            self._take_step()
        assert self.attachment is not None
        return learned(self._model, self.attachment) | {"losses": torch.tensor(self._losses)}

    def _take_step(self) -> None:
        assert self.attachment is not None
        optimizer = torch.optim.SGD([*self._model.parameters(), *self.attachment.parameters()], lr=RATE,
                                    weight_decay=DECAY)  # fmt: skip
        optimizer.zero_grad()
        x, y = _BATCHES[self.step]
        self.attachment.targets(y)
        loss = F.cross_entropy(self._model(x), y)
        loss.backward()
        optimizer.step()
        self._losses[self.step] = loss.item()
        self.step += 1


def alone(names: Sequence[tuple[str, str]]) -> list[Numbers]:
    """The numbers of these trainings in this process."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    return [Training(*name).run() for name in names]


def in_a_fresh_process(names: Sequence[tuple[str, str]]) -> dict[tuple[str, str], Numbers]:
    """The numbers of these trainings where nobody is interrupted."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return dict(zip(names, pool.apply(alone, (names,)), strict=True))


def seconds(name: tuple[str, str]) -> float:
    """How long a training takes, its caches warm, and nothing else in its way."""
    found = []
    for _ in range(4):
        began = time.perf_counter()
        Training(*name).run()
        found.append(time.perf_counter() - began)
    return min(found)


def interrupted(training: Training, after: float) -> tuple[str, str]:
    """Train until SIGINT comes, so many seconds after the start; what came of it, and where it came."""
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        signal.setitimer(signal.ITIMER_REAL, after)
        training.run()
        signal.setitimer(signal.ITIMER_REAL, 0)
        return "finished before", ""
    except KeyboardInterrupt as interrupt:
        frames = traceback.extract_tb(interrupt.__traceback__)[-2::-1]  # above the handler that raised it
        if not any(_LIBRARY in Path(frame.filename).parents for frame in frames):
            return "interrupted", TORCH
        return "interrupted", " < ".join(f"{Path(frame.filename).name}:{frame.name}" for frame in frames[:6])
    except Exception as error:
        return f"the interrupted run: {type(error).__name__}: {error}"[:200], ""
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def left_over(threads: int) -> list[str]:
    """What an interrupted pass has left in the process, where ``threads`` ran before."""
    wrong = {
        "gradients are off": not torch.is_grad_enabled(),
        "inference mode is on": torch.is_inference_mode_enabled(),
        "tangents are off": not torch._C._is_fwd_grad_enabled(),
        "a level of dual numbers is open": forward_mode._current_level != -1,
        "hooks on saved tensors are on": torch._C._autograd._top_saved_tensors_default_hooks(True) is not None,
        "a mode is on": torch._C._len_torch_function_stack() > 0,
        "autocast is entered": _autocast_depth() > 0,
        "attention has no fast path": not torch.backends.mha.get_fastpath_enabled(),
        "a thread is left": threading.active_count() > threads,
    }
    return [what for what, is_so in wrong.items() if is_so]


def _autocast_depth() -> int:
    torch.autocast_increment_nesting()
    return torch.autocast_decrement_nesting()


def once(name: tuple[str, str], after: float, expected: Numbers, threads: int) -> list[str]:
    """Interrupt one training, and say what came of it and of what followed."""
    training = Training(*name)
    ended, place = interrupted(training, after)
    wrong = left_over(threads)
    torch.set_grad_enabled(True)  # each fault is counted once
    for what, run in (("the interrupted model", training.again), ("a new model", Training(*name).run)):
        wrong += _compared(what, run, expected)
    return [ended, *(f"{what} ({place})" for what in wrong + left_over(threads))]


def _compared(what: str, run: Callable[[], Numbers], expected: Numbers) -> list[str]:
    try:
        numbers = run()
    except Exception as error:
        return [f"{what}: {type(error).__name__}: {error}"[:200]]
    same = numbers.keys() == expected.keys() and all(torch.equal(numbers[key], expected[key]) for key in expected)
    return [] if same else [f"{what}: other numbers"]


def interrupt(name: tuple[str, str], times: int, expected: Numbers) -> Counter[str]:
    """Interrupt a training so often, each time at a random moment; counts what came of it.

    A training that has finished before is counted too, and another one is interrupted instead.
    """
    luck, found, came = random.Random(str(name)), Counter[str](), 0
    duration, threads = seconds(name), threading.active_count()
    while came < times:
        outcomes = once(name, luck.uniform(1e-5, duration), expected, threads)
        found.update(outcomes)
        came += outcomes[0] != "finished before"
    return found


def main() -> int:
    """Print what came of it for every training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=500, help="interrupts of every variant on every net")
    parser.add_argument("--nets", nargs="+", default=["plain"], choices=NETS)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    evidence.add_option(parser)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a process in the background ignores it
    names = [(net, variant) for net in asked.nets for variant in asked.variants]
    expected = in_a_fresh_process(names)
    trials = ((", ".join(name), asked.times, partial(interrupt, name, asked.times, expected[name])) for name in names)
    return evidence.make(trials, asked.evidence, "python -m disturbances.interrupts", GOOD)


if __name__ == "__main__":
    raise SystemExit(main())
