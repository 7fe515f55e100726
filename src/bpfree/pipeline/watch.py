"""Which process is gone: a heartbeat for the processes of a run, pipeline or data parallel.

A process that dies takes the others' collectives down with it, with messages that name an address at best. Here every
process beats in the run's store, watches the next one, and says whose beat has stopped.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

import torch.distributed as dist

from bpfree.errors import BpfreeError, LostRankError, OptionError

_LOG = logging.getLogger("bpfree")
_MISSED = 4
"""How many beats a process may miss: a loaded machine delays some."""


@contextmanager
def watched_ranks(interval: float = 1.0) -> Generator[None]:
    """Within this context a process that dies or freezes is named: wrap the training loop in it, in every process.

    When a collective or a transfer fails in the others, they raise :class:`bpfree.errors.LostRankError`; where a
    backend ends the process by itself (NCCL's watchdog), the log says it before. A rank is called lost when it has
    missed four beats, or when an exception has ended its loop. Choose ``interval`` well below the process group's
    timeout.

    Args:
        interval: Seconds between two beats.

    Raises:
        LostRankError: A process of the run is gone or frozen.
        OptionError: ``interval`` is not positive, or there is no process group.
    """
    if interval <= 0:
        raise OptionError(f"interval={interval}: a number of seconds above 0.")
    if not dist.is_initialized():
        raise OptionError("watched_ranks: there is no process group yet; call torch.distributed.init_process_group().")
    watch = _Watch(interval)
    watch.start()
    try:
        yield
    except BaseException as failure:
        # What backends raise; an error of ours, or one from the keyboard, is this process's own.
        foreign = isinstance(failure, RuntimeError) and not isinstance(failure, BpfreeError)
        lost = watch.diagnose() if foreign else None
        if lost is None:
            watch.give_up()
            raise
        raise LostRankError(
            f"rank {lost} is gone; rank {dist.get_rank()} cannot go on without it. Look into the log of rank {lost}, "
            "start the run again, and resume from the last checkpoint."
        ) from failure
    finally:
        watch.stop()


class _Watch:
    """One process's beat, and its eye on the next one's."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._rank, self._count = dist.get_rank(), dist.get_world_size()
        # A connection of its own: the main one may be held by a call that waits.
        store: Any = dist.distributed_c10d._get_default_store()
        self._store: Any = store.clone()
        self._stopped = threading.Event()
        self._found = threading.Event()
        self._lost: int | None = None
        self._thread = threading.Thread(target=self._run, name="bpfree-watch", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        # Who watches must not take the time until the next one's first beat for silence.
        self._store.set(_beat(self._rank), "0")
        self._store.wait([_beat(rank) for rank in range(self._count)])
        self._thread.start()

    def stop(self) -> None:
        """Leave in order."""
        if self._lost is not None:
            time.sleep(2 * self._interval)  # whoever has not heard asks the store, which may end with this process
        self._stopped.set()
        self._thread.join()

    def give_up(self) -> None:
        """Let the others know that this process ends."""
        with suppress(RuntimeError):  # the store may be gone
            self._store.set(_LOST, str(self._rank))
        self._found.wait(2 * self._interval)

    def diagnose(self) -> int | None:
        """Who is lost, or None if everyone still beats."""
        self._found.wait(self._interval * (_MISSED + 2))
        return self._lost

    def _run(self) -> None:
        beat, seen, since = 0, b"", time.monotonic()
        neighbour = (self._rank + 1) % self._count
        # The store's host may be the one that is gone: then the next statement raises.
        try:
            while not self._stopped.wait(self._interval):
                beat += 1
                self._store.set(_beat(self._rank), str(beat))
                now = self._store.get(_beat(neighbour))
                if now != seen:
                    seen, since = now, time.monotonic()
                elif now != _LEFT and time.monotonic() - since > _MISSED * self._interval:
                    self._store.set(_LOST, str(neighbour))
                if self._store.check([_LOST]):
                    self._say(int(self._store.get(_LOST)))
                    return
            self._store.set(_beat(self._rank), _LEFT)
        except RuntimeError:
            if not self._stopped.is_set():
                self._say(_STORE_HOST)

    def _say(self, lost: int) -> None:
        self._lost = lost
        _LOG.error("rank %d is gone, says rank %d.", lost, self._rank)
        self._found.set()


_LOST = "bpfree/lost"
_LEFT = b"left"
_STORE_HOST = 0
"""Without torchrun, rank 0 holds the store."""


def _beat(rank: int) -> str:
    return f"bpfree/beat/{rank}"
