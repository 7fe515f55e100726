"""Ctrl-C in a process that lives on: the next run is as in a fresh one."""

from __future__ import annotations

import random
import signal
import threading
from pathlib import Path

import pytest
from lightning.pytorch import Trainer

from bpfree.lab.queue.ledger import Ledger
from bpfree.lab.running.runs import run
from lab.damage.interruptions import interrupted
from support import tiny_lab
from support.ledger_runs import RUN


def test_the_next_run_is_as_in_a_fresh_process() -> None:
    before = signal.getsignal(signal.SIGALRM)
    try:
        found = interrupted(2, random.Random(1), ("DFA",))
    finally:
        signal.signal(signal.SIGALRM, before)
    assert set(found) <= {"interrupted", "finished before"}


@pytest.mark.parametrize("where", ["_run", "_teardown"])
def test_an_interruption_as_training_begins_or_ends_leaves_ctrl_c_alive(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Trainer, where, interrupted)
    try:
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            run(tiny_lab.settings(epochs=1), tiny_lab.splits(), tmp_path)
        assert signal.getsignal(signal.SIGINT) is before
    finally:
        signal.signal(signal.SIGINT, before)


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
    claim._pulse.join(300)
    assert threading.active_count() == before
