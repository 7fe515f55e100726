"""Processes that begin as copies of one that has imported all: imports outlast most tests."""

from __future__ import annotations

import multiprocessing
import os
import warnings
from collections.abc import Sequence
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker, util
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from typing import Any


def copies() -> ForkServerContext:
    """Return a context whose processes are copies of multiprocessing's fork server.

    A test process has one such server. With ``--forks`` it is a copy of pytest's first process; else it imports what it
    is told before it makes its first process.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bpfree", "bpfree.lab.data", "torch._dynamo", "support.two_ranks"])
    return context


def serve_copies(sender: Connection) -> None:
    """Let a copy of this process be the fork server.

    A program started anew would import torch and bpfree, and each of its processes what else it needs.

    Args:
        sender: Where the first process listens; it would not see this process end while a copy could still send.
    """
    start = util.spawnv_passfds

    def copy(path: bytes, args: Sequence[Any], passfds: Sequence[int]) -> int:
        util.spawnv_passfds = start
        pid = os.fork()
        if pid == 0:
            try:
                sender.close()
                _close_other_ends(passfds)
                _forget_filters()
                exec(args[-1], {})
            finally:
                os._exit(0)
        return pid

    resource_tracker.ensure_running()
    util.spawnv_passfds = copy
    forkserver.ensure_running()


def _close_other_ends(files: Sequence[int]) -> None:
    """Close the other ends of pipes: a program started anew would get these ends alone."""
    for other in set(range(3, 256)) - set(files):
        with suppress(OSError):
            if any(os.path.sameopenfile(other, file) for file in files):
                os.close(other)


def _forget_filters() -> None:
    """Take warnings as a new interpreter does; pytest's filters are for tests."""
    warnings.resetwarnings()
    for hidden in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
        warnings.simplefilter("ignore", hidden)
