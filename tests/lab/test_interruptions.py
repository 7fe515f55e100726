"""Ctrl-C in a process that lives on: the next run is as in a fresh one."""

from __future__ import annotations

import random
import signal
import threading
from pathlib import Path

import pytest

from bpfree.lab.queue.ledger import Ledger
from lab.damage.interruptions import interrupted
from support.ledger_runs import RUN


def test_the_next_run_is_as_in_a_fresh_process() -> None:
    before = signal.getsignal(signal.SIGALRM)
    try:
        found = interrupted(2, random.Random(1), ("DFA",))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert set(found) <= {"interrupted", "finished before"}


def test_an_interruption_while_a_claim_begins_leaves_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(str(tmp_path / "ledger.db"), "made up")
    ledger.ask([RUN], again=True)
    claim = ledger.claim([RUN])
    start = threading.Thread.start

    def interrupting(self: threading.Thread) -> None:
        start(self)
        raise KeyboardInterrupt

    before = threading.active_count()
    monkeypatch.setattr(threading.Thread, "start", interrupting)
    with pytest.raises(KeyboardInterrupt):
        claim.__enter__()
    claim._pulse.join(10)
    assert threading.active_count() == before
