"""Ctrl-C and its like wait until a call to the database is over.

What a signal raises arises between any two instructions. Within such a call it would leave a transaction open that
nobody knows of, and with it SQLite's lock, for which this process and all others would wait in vain.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def shielded() -> Iterator[None]:
    """Put off what the first signal does that asks this process to end; the second acts at once.

    Only what Python does at a signal is put off; where it has no handler, the system ends the process as ever.
    """
    if threading.current_thread() is not threading.main_thread():  # no other thread is interrupted
        yield
        return
    with _put_off(signal.SIGINT), _put_off(signal.SIGTERM):
        yield


@contextmanager
def _put_off(number: signal.Signals) -> Iterator[None]:
    handler = signal.getsignal(number)
    if not callable(handler):
        yield
        return
    arrived = False

    def keep(_: int, frame: FrameType | None) -> None:
        nonlocal arrived
        arrived = True
        signal.signal(number, handler)

    signal.signal(number, keep)
    try:
        yield
    finally:
        signal.signal(number, handler)
        if arrived:
            signal.raise_signal(number)
