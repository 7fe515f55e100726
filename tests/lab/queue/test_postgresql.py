"""A ledger on PostgreSQL, whose server restarts."""

from __future__ import annotations

from pathlib import Path

import pytest

from bpfree.lab.queue import processes, storage
from bpfree.lab.tables import workers
from lab.damage import restarts, server

pytestmark = pytest.mark.skipif(bool(server.absent()), reason=server.absent() or "there is a server")


def test_a_table_outlives_restarts_in_the_middle_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "METHOD", "fork")
    monkeypatch.setattr(workers, "_POLL", 0.1)
    monkeypatch.setattr(storage, "_PAUSES", (0.2, 0.5, 1.0, 2.0, 4.0, 8.0))
    assert restarts.restarted(times=2, rows=6, seeds=2) == {"a restart": 2, "a run, once": 12}
