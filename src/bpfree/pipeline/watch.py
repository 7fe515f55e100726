"""A heartbeat for the processes of a run, pipeline or data parallel: it says which process is gone.

If a process dies, the collectives of the others fail with messages that name an address at best. Here every process
writes its beat to the run's store, watches the next process, and says whose beat has stopped.
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
"""The number of beats that a process may miss: a loaded machine delays some."""


@contextmanager
def watched_ranks(interval: float = 1.0) -> Generator[None]:
    """Within this context a process that dies or freezes is named: wrap the training loop in it, in every process.

    When a collective or a transfer fails in the others, they raise :class:`bpfree.errors.LostRankError`; where a
    backend ends the process by itself (NCCL's watchdog), the log says it before. A rank is called lost when it has
    missed four beats, or when an exception has ended its loop. Choose ``interval`` well below the process group's
    timeout. Rank 0, which without torchrun holds the store, leaves the context last.

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
    """The beat of one process, and its watch on the beat of the next one."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._rank, self._count = dist.get_rank(), dist.get_world_size()
        # A connection of its own: the main one may be held by a call that waits.
        store: Any = dist.distributed_c10d._get_default_store()
        self._store: Any = store.clone()
        self._stopped = threading.Event()
        self._found = threading.Event()
        self._lost: int | None = None
        self._gave_up = False
        self._beats = 0
        # The neighbour's last beat, when it came, and whether this process calls it silent.
        self._seen, self._since, self._accuses = b"", time.monotonic(), False
        self._thread = threading.Thread(target=self._run, name="bpfree-watch", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        # Who watches must not take the time until the next one's first beat for silence.
        self._store.set(_beat(self._rank), "0")
        self._store.wait([_beat(rank) for rank in range(self._count)])
        self._thread.start()

    def stop(self) -> None:
        """Stop the watch, and tell the others that this process leaves in order."""
        self._stopped.set()
        self._thread.join()
        if self._found.is_set():
            time.sleep(2 * self._interval)  # whoever has not heard asks the store, which may end with this process

    def give_up(self) -> None:
        """Let the others know that this process ends."""
        self._gave_up = True
        with suppress(RuntimeError):  # the store may be gone
            self._store.set(_ENDED, str(self._rank))
        self._found.wait(2 * self._interval)

    def diagnose(self) -> int | None:
        """Return the rank of the process that is lost, or None if every process still beats."""
        self._found.wait(self._interval * (_MISSED + 2))
        return self._lost

    def _run(self) -> None:
        # The store's host may be the one that is gone: then the store raises.
        try:
            while not self._stopped.wait(self._interval):
                self._beats += 1
                self._store.set(_beat(self._rank), str(self._beats))
                self._look()
            self._store.set(_beat(self._rank), _LEFT)
            if self._rank == _STORE_HOST:
                self._stay()
        except RuntimeError:
            if not self._stopped.is_set():
                self._hear(_STORE_HOST)

    def _look(self) -> None:
        """Watch the neighbour, and read the findings of the others."""
        neighbour = (self._rank + 1) % self._count
        now, moment = self._store.get(_beat(neighbour)), time.monotonic()
        if now != self._seen:
            self._seen, self._since = now, moment
            if self._accuses:  # it has paused, and no more
                self._store.set(_SILENT, _NOBODY)
            self._accuses = False
        elif now != _LEFT and moment - self._since > _MISSED * self._interval:
            self._accuses = True
            self._store.set(_SILENT, str(neighbour))
        told = [self._store.get(key) for key in (_ENDED, _SILENT) if self._store.check([key])]
        lost = next((int(rank) for rank in told if rank != _NOBODY), None)
        # Whoever reads of its own silence beats again: the one that watches it will see that.
        self._hear(None if lost == self._rank and not self._gave_up else lost)

    def _stay(self) -> None:
        """Keep the store until all others have left, or none of them beats."""
        seen, since = [b""], time.monotonic()
        while not self._found.is_set() and time.monotonic() - since <= _MISSED * self._interval:
            now = [self._store.get(_beat(rank)) for rank in range(self._count) if rank != self._rank]
            if all(beat == _LEFT for beat in now):
                return
            if now != seen:
                seen, since = now, time.monotonic()
            time.sleep(self._interval / 10)
            self._look()

    def _hear(self, lost: int | None) -> None:
        if lost == self._lost:
            return
        if lost is None:
            _LOG.warning("rank %d beats again, says rank %d.", self._lost, self._rank)
            self._found.clear()
        else:
            _LOG.error("rank %d is gone, says rank %d.", lost, self._rank)
            self._found.set()
        self._lost = lost


_SILENT, _ENDED = "bpfree/silent", "bpfree/ended"
"""The store's keys for the rank whose beat has stopped (while it has), and for that whose loop an exception ended."""
_NOBODY = b"nobody"
_LEFT = b"left"
_STORE_HOST = 0
"""Without torchrun, rank 0 holds the store."""


def _beat(rank: int) -> str:
    return f"bpfree/beat/{rank}"
