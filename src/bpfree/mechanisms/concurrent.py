"""Segments on several CPU threads: cut from each other, their backward passes need not wait for each other.

One operation at a time on all threads is what torch does by itself, and the better way for large layers. Many small
ones leave threads idle: there each thread had better run a segment of its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache, partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable

from bpfree.mechanisms.broadcast import Deliver, broadcast
from bpfree.mechanisms.leaving import leave
from bpfree.mechanisms.passage import Cut, Departure
from bpfree.segments import Reach

_TRIED = 8
"""How many passes are measured on either way; the first of each does not count."""


class Choice:
    """Which way passes go: segments one after another, or on several threads at once.

    Args:
        threads: The number of threads; None measures both ways in the first passes, with as many threads as torch has.
    """

    def __init__(self, threads: int | None) -> None:
        self.threads = threads or torch.get_num_threads()
        self._decided: bool | None = None if threads is None and self.threads > 1 else self.threads > 1
        self._seconds: dict[bool, list[float]] = {False: [], True: []}
        self._separate: dict[tuple[str, ...], bool] = {}

    def concurrent(self, names: Sequence[str], roots: Sequence[Tensor]) -> bool:
        """Whether a pass through these taps runs on several threads.

        Only where the graphs of ``roots`` have nothing in common: two threads cannot run through one graph.
        """
        key = tuple(names)
        if key not in self._separate:
            self._separate[key] = _separate(roots)
        if not self._separate[key]:
            return False
        if self._decided is not None:
            return self._decided
        return len(self._seconds[True]) < len(self._seconds[False])

    def measured(self, concurrent: bool, seconds: float) -> None:
        """Hear how long the segments of a pass took."""
        if self._decided is None:
            self._seconds[concurrent].append(seconds)
            if min(map(len, self._seconds.values())) == _TRIED:
                alone, together = (median(self._seconds[way][1:]) for way in (False, True))
                self._decided = together < alone

    def describe(self) -> str:
        """What an attachment's table says of it."""
        if not all(self._separate.values()):
            return "Segments run one after another: paths lead around the cuts, or layers are shared."
        if self._decided is None:
            return f"Segments run one after another or on {self.threads} threads: both ways are being measured."
        return (
            f"Segments run on {self.threads} threads at once." if self._decided else "Segments run one after another."
        )


def _separate(roots: Sequence[Tensor]) -> bool:
    seen: set[Any] = set()
    for root in roots:
        reach = Reach.of(root)
        found = reach.inner | set(reach.leaves)
        if not seen.isdisjoint(found):
            return False
        seen |= found
    return True


class ConcurrentPassage(Cut):
    """All segments below the last one run when the error has come, on as many threads as ``choice`` says."""

    def __init__(self, choice: Choice) -> None:
        super().__init__()
        self._choice = choice

    def leave(self, output: Tensor, deliver: Departure, *, just_in_time: bool) -> Tensor:
        """The output as it is; its backward pass runs the segments."""
        if output.device.type != "cpu":
            return super().leave(output, deliver, just_in_time=just_in_time)
        concurrent = self._choice.concurrent(self.names, [*self.outputs, output])
        timed = _timed(deliver, partial(self._choice.measured, concurrent))
        if not concurrent:
            return broadcast(timed, output, self.outputs, just_in_time=just_in_time)
        taps, threads = tuple(self.outputs), self._choice.threads

        def gradients(error: Tensor) -> Sequence[Tensor | None]:
            pairs = zip(taps, timed(error), strict=True)
            _run([(tap, signal) for tap, signal in pairs if signal is not None and tap.requires_grad], threads)
            return [error]

        return leave(gradients, output, [output])


def _timed(deliver: Deliver, measured: Callable[[float], None]) -> Deliver:
    """The same signals; when the backward pass under way has ended, ``measured`` hears the seconds since they left."""

    def signals(error: Tensor) -> Sequence[Tensor | None]:
        start = time.perf_counter()
        at_end: Callable[[Callable[[], None]], None] = Variable._execution_engine.queue_callback
        at_end(lambda: measured(time.perf_counter() - start))
        return deliver(error)

    return signals


def _run(segments: Sequence[tuple[Tensor, Tensor]], threads: int) -> None:
    """Run every segment, ``(its root, the root's signal)``, on whichever thread is free."""
    waiting, lock = iter(segments), threading.Lock()
    every = torch.get_num_threads()
    each = max(1, every // threads)

    def work() -> None:
        torch.set_num_threads(each)  # of this thread
        while True:
            with lock:
                segment = next(waiting, None)
            if segment is None:
                return
            root, signal = segment
            torch.autograd.backward(root, signal.view(root.shape).to(root.dtype))

    others = [_pool(threads - 1).submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        torch.set_num_threads(every)
        wait(others)
    for other in others:
        other.result()


@lru_cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "bpfree-segments")
