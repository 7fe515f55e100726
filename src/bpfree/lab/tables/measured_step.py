"""The cost of a training step and of an evaluation, measured with few samples."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from bpfree.lab.data.samples import Data
from bpfree.lab.process.environment import device
from bpfree.lab.running.runs import training_step
from bpfree.lab.settings import RunSettings
from bpfree.lab.tables import flops
from bpfree.lab.tasks.feed import Feed
from bpfree.lab.tasks.learner import Learner
from bpfree.lab.time_and_memory import peak_bytes, seconds

_MEASURED_NUMBERS = 700_000  # in the inputs of a measured batch: 227 images of 3 x 32 x 32, 4 of 3 x 224 x 224
_MEASURED_FLOPS = 1e11  # of a measured step: a second or two on a core
_REPEATS = 3


@dataclass(frozen=True)
class Linear:
    """A quantity of a step as a function of its samples: measured at two numbers of samples, a straight line between.

    Matrix products and activations are exactly such; times nearly so.
    """

    fixed: float
    each: float

    @classmethod
    def through(cls, first: tuple[int, float], second: tuple[int, float]) -> Linear:
        """Return the line through two measured points; with one number of samples only, proportional to it."""
        (n, low), (m, high) = first, second
        each = (high - low) / (m - n) if m > n else high / m
        return cls(high - each * m, each)

    def at(self, samples: int) -> float:
        """Return the quantity for so many samples."""
        return max(0.0, self.fixed + self.each * samples)


def measured_samples(settings: RunSettings, splits: Data, task: Learner, feed: Feed) -> int:
    """Return the number of samples to measure a step with: on a GPU its whole batch, on a CPU fewer, to be fast.

    There are as many in each micro-batch.
    """
    if device() == "cuda":
        return settings.batch_size
    task.train()
    fewest = _fewest(task)
    few = feed.first(fewest)
    task.batch_loss(few).backward()  # the first pass of an attachment is verified, by further passes
    with flops.counter() as counted:
        task.batch_loss(few).backward()
    task.zero_grad()
    numbers = math.prod(few[0].shape[1:] if isinstance(few[0], Tensor) else splits.shape)
    fast = min(_MEASURED_NUMBERS // numbers, int(fewest * _MEASURED_FLOPS / max(1, counted.get_total_flops())))
    return _in_parts(min(settings.batch_size, fast), task, settings)


def _in_parts(samples: int, task: Learner, settings: RunSettings) -> int:
    """Return about so many samples: as many in each micro-batch, and no fewer in one than can be measured."""
    parts = settings.accumulate
    return parts * max(min(_fewest(task), settings.batch_size // parts), samples // parts)


def _fewest(task: Learner) -> int:
    """Return the number of samples that the model needs in training: two for batch normalization."""
    return 2 if any(isinstance(module, _BatchNorm) for module in task.model.modules()) else 1


def step_lines(
    task: Learner, optimizer: torch.optim.Optimizer, feed: Feed, largest: int, settings: RunSettings
) -> dict[str, Linear]:
    """Return the cost of a step as functions of the number of samples: flops, operations, seconds and bytes.

    Memory is measured with more samples than time, if only once: with few, a step needs most where the gradients of
    the weights are, and with many where the activations are.
    """
    every = getattr(task.settings.rule, "every", 1)  # a rule whose steps differ has them in turns
    sizes = [_in_parts(largest // 4, task, settings), largest]
    widest = min(4 * largest, settings.batch_size)
    wide = [largest, widest] if widest > largest else sizes
    found = {size: _measured(task, training_step(task, optimizer, feed.first(size)), every) for size in sizes}
    lines = {name: Linear.through(*((n, found[n][name]) for n in sizes)) for name in ("flops", "seconds")}
    lines["operations"] = Linear(found[largest]["operations"], 0.0)  # as many whatever the number of samples
    peaks = [_peak(training_step(task, optimizer, feed.first(n)), every) for n in wide]
    lines["bytes"] = Linear.through(*zip(wide, peaks, strict=True))
    return lines


def _measured(task: Learner, step: Callable[[], None], every: int) -> dict[str, float]:
    """Measure the mean cost of one step over ``every`` steps."""
    task.train()
    for _ in range(every):
        step()  # allocations and choices that happen only once
    with flops.counter() as counted, _Operations() as operations:
        for _ in range(every):
            step()
    times = [_taken(lambda: _repeat(step, every)) for _ in range(_REPEATS)]
    return {
        "flops": counted.get_total_flops() / every,
        "operations": operations.count / every,
        "seconds": statistics.median(times) / every,
    }


def _peak(step: Callable[[], None], every: int) -> int:
    """Measure the largest memory of ``every`` steps."""
    return max(peak_bytes(step, device()) for _ in range(every))


def evaluation_of(task: Learner, inputs: Any, samples: int) -> dict[str, float]:
    """Measure the cost of one sample's evaluation on ``inputs`` of ``samples`` samples; operations are for all."""
    x = move_data_to_device(inputs, device())
    task.eval()
    with torch.no_grad(), task.autocast():
        with flops.counter() as counted, _Operations() as operations:
            task(x)
        taken = statistics.median(_taken(lambda: task(x)) for _ in range(_REPEATS))
    return {"flops": counted.get_total_flops() / samples, "seconds": taken / samples, "operations": operations.count}


def _repeat(call: Callable[[], None], times: int) -> None:
    for _ in range(times):
        call()


def _taken(call: Callable[[], object]) -> float:
    """Measure the seconds of a call; on a CPU, the time that its threads computed, so other programs do not count."""
    if device() == "cuda":
        return seconds(call, torch.cuda.synchronize)
    start = time.process_time()
    call()
    return (time.process_time() - start) / torch.get_num_threads()


class _Operations(TorchDispatchMode):
    """Counts the operations that are started, views left out: those start nothing on a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))
