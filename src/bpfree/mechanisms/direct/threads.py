"""Segments on several CPU threads: cut from each other, their backward passes need not wait for each other.

One operation at a time on all threads is what torch does by itself, and the better way for large layers. Many small
ones leave threads idle: there each thread had better run a segment of its own.

What segments share, two threads must not touch at once: a layer, a path around a cut, or a checkpoint's second forward
pass, which sets the random state of the whole process. The first pass of a kind (which taps, which parameters learn)
finds that out, in turns.
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
from bpfree.segments import Reach

_Segment = tuple[Tensor, Tensor]
"""A segment's root, and the root's signal."""

_TRIED = 8
"""How many passes are measured on either way; the first of each does not count."""


class ThreadChoice:
    """Which way passes go: segments one after another, or on several threads at once.

    Args:
        threads: The number of threads; None measures both ways in the first passes, with as many threads as torch has.
    """

    def __init__(self, threads: int | None) -> None:
        self.threads = threads or torch.get_num_threads()
        self._decided: bool | None = None if threads is None and self.threads > 1 else self.threads > 1
        self._seconds: dict[bool, list[float]] = {False: [], True: []}
        self._separate: dict[Hashable, bool] = {}

    def knows(self, kind: Hashable) -> bool:
        """Whether a pass of this kind has been looked at."""
        return kind in self._separate

    def found(self, kind: Hashable, *, separate: bool) -> None:
        """Hear whether the segments of such a pass have nothing in common."""
        self._separate[kind] = separate

    def concurrent(self, kind: Hashable) -> bool:
        """Whether a pass of this kind runs on several threads."""
        if not self._separate[kind]:
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
            return "Segments run one after another: paths lead around the cuts, or layers are shared or checkpointed."
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


class ThreadedPass(StoredGraphPass):
    """All segments below the last one run when the error has come, on as many threads as ``choice`` says.

    Args:
        choice: Which way passes go.
        learning: Which parameters want a gradient: a path around a cut has a graph only where something in it does.
    """

    def __init__(self, choice: ThreadChoice, learning: tuple[bool, ...]) -> None:
        super().__init__()
        self._choice, self._learning = choice, learning

    def connect(self, output: Tensor, handler: ErrorHandler, taps: Sequence[int], *, just_in_time: bool) -> Tensor:
        """The output as it is; its backward pass runs the segments."""
        # Where nothing above the last tap learns, there is no graph that the others could be started from. With several
        # errors a segment has to wait for all of them.
        if output.device.type != "cpu" or not output.requires_grad or self.several:
            return super().connect(output, handler, taps, just_in_time=just_in_time)
        choice, kind = self._choice, (tuple(self.names), self._learning)
        if not choice.knows(kind):
            if _separate([*self.outputs, output]):
                return self._run_by(partial(_run_watched, partial(choice.found, kind)), output, handler)
            choice.found(kind, separate=False)
        concurrent = choice.concurrent(kind)
        timed = _timed(handler, partial(choice.measured, concurrent))
        if not concurrent:
            return signals_from_error(timed, output, self.outputs, just_in_time=just_in_time, fetching=self.fetching)
        return self._run_by(partial(_run, threads=choice.threads), output, timed)

    def _run_by(self, run: Callable[[Sequence[_Segment]], None], output: Tensor, make: MakeSignals) -> Tensor:
        """The output as it is; its backward pass gives ``run`` the segments below, then goes on with the last one."""
        taps = tuple(self.outputs)

        def gradients(error: Tensor) -> Sequence[Tensor | None]:
            pairs = zip(taps, make(error), strict=True)
            run([(tap, signal) for tap, signal in pairs if signal is not None and tap.requires_grad])
            return [error]

        return gradients_from_error(gradients, output, [output], accumulates=True)


def _timed(make: MakeSignals, measured: Callable[[float], None]) -> MakeSignals:
    """The same signals; when the backward pass under way has ended, ``measured`` hears the seconds since they left."""

    def signals(error: Tensor) -> Sequence[Tensor | None]:
        start = time.perf_counter()
        at_end: Callable[[Callable[[], None]], None] = Variable._execution_engine.queue_callback
        at_end(lambda: measured(time.perf_counter() - start))
        return make(error)

    return signals


def _run_watched(found: Callable[..., None], segments: Sequence[_Segment]) -> None:
    """Run them in turns, and tell ``found`` whether any ran forward again."""
    with _Recomputations() as watch:  # type: ignore[no-untyped-call]
        _run(segments, threads=1)
    found(separate=not watch.seen)


class _Recomputations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees whether a backward pass runs anything forward: that has gradients enabled, as nothing else there has."""

    seen = False

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.seen = self.seen or torch.is_grad_enabled()
        return func(*args, **(kwargs or {}))


def _run(segments: Sequence[_Segment], threads: int) -> None:
    """Run every segment on whichever thread is free."""
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
