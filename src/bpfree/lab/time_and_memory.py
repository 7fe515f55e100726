"""Measuring memory and time, the same way for every subject."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from bpfree.lab.disk.leftovers import temporary_folder
from bpfree.lab.errors import SettingsError, WriteError

Batch = TypeVar("Batch")


def peak_bytes(step: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """Return the most memory that ``step`` holds at one time, in bytes above what was held when it began.

    It is counted by torch's allocator. The process's memory would count the allocator's reserves and the libraries'
    code as well, and never shrinks. On a CPU memory that a kernel takes by itself, beside the allocator (oneDNN's
    scratch space), is not seen.

    Args:
        step: Called once. Call it a few times before, if its first call allocates what later ones reuse.
        device: Where the step's tensors live.
    """
    if torch.device(device).type == "cuda":
        return _cuda_peak(step, device)
    return max(0, max(accumulate(size for _, size in _allocations(step)), default=0))


def held_bytes(step: Callable[[], object]) -> int:
    """Return the bytes that ``step`` has allocated on a CPU and not released at its end; see :func:`peak_bytes`.

    Its return value is in use until then.
    """
    held: dict[int, int] = {}
    for address, size in _allocations(step):
        if size > 0:
            held[address] = size
        else:
            held.pop(address, None)  # not there: garbage of before, which is collected whenever it happens
    return sum(held.values())


def _profiled(step: Callable[[], object]) -> profile:
    # The profiler's own log writes to standard error when it starts and stops, unless told not to before its first use.
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = step()
    del kept  # what the step returns is alive at its end and belongs to it
    return profiler


def stored_bytes(module: nn.Module) -> int:
    """Return the bytes of the parameters and buffers of ``module``; for an attachment, the bytes of the feedback."""
    return sum(tensor.numel() * tensor.element_size() for tensor in [*module.parameters(), *module.buffers()])


def _cuda_peak(step: Callable[[], object], device: str | torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _allocations(step: Callable[[], object]) -> list[tuple[int, int]]:
    """Return address and bytes of every allocation (positive) and release (negative) on the CPU, in time order."""
    profiler = _profiled(step)
    with temporary_folder() as folder:
        path = folder / "trace.json"
        # The exported trace is the documented place where single allocations are listed.
        profiler.export_chrome_trace(str(path))
        if not path.is_file():  # the profiler says nothing of a full disk
            raise WriteError(f"{path} could not be written. Free some space, or name another folder by TMPDIR.")
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    memory = [event for event in events if event.get("name") == "[memory]" and event["args"]["Device Type"] == 0]
    memory.sort(key=lambda event: (event["ts"], event["args"]["Ev Idx"]))
    return [(event["args"]["Addr"], event["args"]["Bytes"]) for event in memory]


@dataclass(frozen=True)
class Ratio:
    """The time of a subject relative to that of a reference.

    Attributes:
        median: The median of subject / reference over the pairs.
        lower: The first quartile of that ratio.
        upper: The third quartile.
        subject_seconds: Median time of the subject.
        reference_seconds: Median time of the reference.
        pairs: The number of pairs.
    """

    median: float
    lower: float
    upper: float
    subject_seconds: float
    reference_seconds: float
    pairs: int


def paired_ratio(
    subject: Callable[[], object],
    reference: Callable[[], object],
    *,
    repeats: int = 30,
    warmup: int = 5,
    synchronize: Callable[[], object] = lambda: None,
) -> Ratio:
    """Time two things in turns, in one process, and compare within each pair.

    A disturbance of the machine disturbs both; a ratio of two averages taken one after the other would not
    notice. Which of the two goes first alternates.

    Args:
        subject: The function that is measured.
        reference: The function that it is compared with.
        repeats: The number of pairs, at least 2.
        warmup: Calls of each before the first pair.
        synchronize: Waits until the device has finished, for instance ``torch.cuda.synchronize``.

    Raises:
        SettingsError: Fewer than two pairs.
    """
    if repeats < 2:
        raise SettingsError(f"repeats={repeats}: quartiles need at least 2 pairs.")
    for _ in range(warmup):
        subject()
        reference()
    pairs = [_pair(subject, reference, synchronize, swap=bool(number % 2)) for number in range(repeats)]
    lower, median, upper = statistics.quantiles([a / b for a, b in pairs], n=4, method="inclusive")
    subject_seconds, reference_seconds = (statistics.median(times) for times in zip(*pairs, strict=True))
    return Ratio(median, lower, upper, subject_seconds, reference_seconds, repeats)


def _pair(
    subject: Callable[[], object],
    reference: Callable[[], object],
    synchronize: Callable[[], object],
    swap: bool,
) -> tuple[float, float]:
    if swap:
        second = seconds(reference, synchronize)
        return seconds(subject, synchronize), second
    return seconds(subject, synchronize), seconds(reference, synchronize)


def seconds(call: Callable[[], object], synchronize: Callable[[], object] = lambda: None) -> float:
    """Return the seconds of one call."""
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def clock(device: torch.device) -> float:
    """Return the seconds of a clock, read when the device has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass(frozen=True)
class InputShare:
    """The time of a network's input compared with a step.

    Attributes:
        input_seconds: Median time to get one batch.
        step_seconds: Median time of one step.
        share: The input's part of the sum of both.
    """

    input_seconds: float
    step_seconds: float
    share: float


def input_share(loader: Iterable[Batch], step: Callable[[Batch], object], *, steps: int = 100) -> InputShare:
    """Time an input pipeline against the step that it feeds, in turns as in training.

    Args:
        loader: Yields at least one batch.
        step: Trains on one batch; it waits until the device has finished.
        steps: The largest number of batches that are taken.

    Raises:
        SettingsError: The loader yields nothing.
    """
    inputs, trainings = list[float](), list[float]()
    batches = iter(loader)
    while len(trainings) < steps:
        start = time.perf_counter()
        batch = next(batches, None)
        if batch is None:
            break
        middle = time.perf_counter()
        step(batch)
        trainings.append(time.perf_counter() - middle)
        inputs.append(middle - start)
    if not trainings:
        raise SettingsError("the loader yields no batch, so there is nothing to time.")
    fetch, train = statistics.median(inputs), statistics.median(trainings)
    return InputShare(fetch, train, fetch / (fetch + train))
