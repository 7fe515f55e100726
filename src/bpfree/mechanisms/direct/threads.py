"""Segments on several CPU threads: they are cut from each other, so their backward passes can run at once.

Torch by itself runs one operation at a time on all threads, which is best for large layers. Small layers leave
threads idle: then it is better that each thread runs a segment of its own.

Two threads must not touch at once what segments share: a layer, a path around a cut, or a checkpoint's second forward
pass, which sets the random state of the whole process. The first pass of a kind (same taps, same learning parameters)
finds this out; it runs the segments one after another.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import lru_cache, partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable
from torch.utils._python_dispatch import TorchDispatchMode

from bpfree.mechanisms.autograd import MakeSignals, gradients_from_error, signals_from_error
from bpfree.mechanisms.direct.delivery import ErrorHandler
from bpfree.mechanisms.direct.forward_pass import StoredGraphPass
from bpfree.segments import Reach, first_overlap

_Segment = tuple[Tensor, Tensor]
"""A segment's root, and the root's signal."""

_TRIED = 8
"""The number of passes measured with one thread, and with several; the first of each does not count."""


class ThreadChoice:
    """Chooses whether segments run one after another, or on several threads at once.

    Args:
        threads: The number of threads; None measures both choices in the first passes, with torch's number of threads.
    """

    def __init__(self, threads: int | None) -> None:
        self.threads = threads or torch.get_num_threads()
        self._decided: bool | None = None if threads is None and self.threads > 1 else self.threads > 1
        self._seconds: dict[bool, list[float]] = {False: [], True: []}
        self._separate: dict[Hashable, bool] = {}

    def knows(self, kind: Hashable) -> bool:
        """Return whether a pass of this kind has been looked at."""
        return kind in self._separate

    def found(self, kind: Hashable, *, separate: bool) -> None:
        """Note whether the segments of such a pass have nothing in common."""
        self._separate[kind] = separate

    def concurrent(self, kind: Hashable) -> bool:
        """Return whether a pass of this kind runs on several threads."""
        if not self._separate[kind]:
            return False
        if self._decided is not None:
            return self._decided
        return len(self._seconds[True]) < len(self._seconds[False])

    def measured(self, concurrent: bool, seconds: float) -> None:
        """Note how many seconds the segments of a pass took."""
        if self._decided is None:
            self._seconds[concurrent].append(seconds)
            if min(map(len, self._seconds.values())) == _TRIED:
                alone, together = (median(self._seconds[way][1:]) for way in (False, True))
                self._decided = together < alone

    def describe(self) -> str:
        """Return the remark for the attachment's table."""
        if not all(self._separate.values()):
            return "Segments run one after another: paths lead around the cuts, or layers are shared or checkpointed."
        if self._decided is None:
            return f"Segments run one after another or on {self.threads} threads: both ways are being measured."
        return (
            f"Segments run on {self.threads} threads at once." if self._decided else "Segments run one after another."
        )


def _are_separate(roots: Sequence[Tensor]) -> bool:
    """Return whether the segments that end in these tensors share neither a leaf nor a part of the graph."""
    return first_overlap(reach.inner.union(reach.leaves) for reach in map(Reach.of, roots)) is None


class ThreadedPass(StoredGraphPass):
    """A pass whose segments, except the last, run when the error has come, on as many threads as ``choice`` says.

    Args:
        choice: Chooses the number of threads.
        learning: Which parameters require a gradient: a path around a cut has a graph only if a parameter on it does.
    """

    def __init__(self, choice: ThreadChoice, learning: tuple[bool, ...]) -> None:
        super().__init__()
        self._choice, self._learning = choice, learning

    def connect(self, output: Tensor, handler: ErrorHandler, taps: Sequence[int], *, just_in_time: bool) -> Tensor:
        """Return the output; its backward pass runs the segments."""
        # If nothing above the last tap learns, there is no graph from which the segments could be started. With several
        # errors a segment has to wait for all of them.
        if output.device.type != "cpu" or not output.requires_grad or self.several:
            return super().connect(output, handler, taps, just_in_time=just_in_time)
        below = [self.outputs[number] for number in taps]
        choice, kind = self._choice, (tuple(self.names), self.phase, self._learning)
        if not choice.knows(kind):
            if _are_separate([*below, output]):
                return self._run_by(partial(_run_watched, partial(choice.found, kind)), output, handler, below)
            choice.found(kind, separate=False)
        concurrent = choice.concurrent(kind)
        timed = _timed(handler, partial(choice.measured, concurrent))
        if not concurrent:
            return signals_from_error(timed, output, below, just_in_time=just_in_time, fetching=self.fetching)
        return self._run_by(partial(_run, threads=choice.threads), output, timed, below)

    def _run_by(
        self, run: Callable[[Sequence[_Segment]], None], output: Tensor, make: MakeSignals, taps: Sequence[Tensor]
    ) -> Tensor:
        """Return the output; its backward pass gives ``run`` the segments below, and then runs the last segment."""

        def gradients(error: Tensor) -> Sequence[Tensor | None]:
            pairs = zip(taps, make(error), strict=True)
            run([(tap, signal) for tap, signal in pairs if signal is not None and tap.requires_grad])
            return [error]

        return gradients_from_error(gradients, output, [output], accumulates=True)


def _timed(make: MakeSignals, measured: Callable[[float], None]) -> MakeSignals:
    """Return ``make`` with a clock: when the backward pass has ended, ``measured`` gets the seconds it took."""

    def signals(error: Tensor) -> Sequence[Tensor | None]:
        start = time.perf_counter()
        at_end: Callable[[Callable[[], None]], None] = Variable._execution_engine.queue_callback
        at_end(lambda: measured(time.perf_counter() - start))
        return make(error)

    return signals


def _run_watched(found: Callable[..., None], segments: Sequence[_Segment]) -> None:
    """Run the segments one after another, and tell ``found`` whether one of them ran a forward pass again."""
    with _Recomputations() as watch:  # type: ignore[no-untyped-call]
        _run(segments, threads=1)
    found(separate=not watch.seen)


class _Recomputations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees whether a backward pass runs a forward pass: only such operations have gradients enabled there."""

    seen = False

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen = self.seen or torch.is_grad_enabled()
        return func(*args, **(kwargs or {}))


def _run(segments: Sequence[_Segment], threads: int) -> None:
    """Run every segment on the next free thread."""
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
            torch.autograd.backward(root, signal.to(root.dtype))

    others = [_pool(threads - 1).submit(work) for _ in range(threads - 1)]
    try:
        work()
    finally:
        wait(others)
        torch.set_num_threads(every)  # last: a thread that had not begun yet would set its own number again
    for other in others:
        other.result()


@lru_cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, "bpfree-segments")


if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    # A forked process has the pool and none of its threads: it would wait for them for ever.
    os.register_at_fork(after_in_child=_pool.cache_clear)
