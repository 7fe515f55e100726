"""Where a ledger is: what is said of it, what it needs, and how long it is waited for."""

from __future__ import annotations

import builtins
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from sqlalchemy import exc, text

from bpfree.lab.errors import LedgerError
from bpfree.lab.queue import pulses, storage
from bpfree.lab.queue.address import Address
from bpfree.lab.queue.ledger import Ledger
from support.ledger_runs import RUN, away


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("postgresql://me:s3cret@host:5432/runs", "postgresql://me:***@host:5432/runs"),
        ("postgresql://host/runs?user=me&password=s3cret", "postgresql://host/runs?password=%2A%2A%2A&user=me"),
        ("mysql+pymysql://me:s3%40cret@host/runs", "mysql+pymysql://me:***@host/runs"),
        ("postgresql://me@host/runs", "postgresql://me@host/runs"),
        ("runs/ledger.db", "runs/ledger.db"),
    ],
)
def test_a_ledger_is_shown_without_its_password(
    place: str, shown: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    address = Address.of(place)
    assert "s3" not in address.shown
    assert address.shown.partition("?")[0] == shown.partition("?")[0]
    for secret in address.secrets:
        assert secret in ("s3cret", "s3@cret")
        assert secret not in address.without_secrets(f"no entry for me, {secret}")
    assert bool(address.secrets) == ("s3" in place)


@pytest.mark.parametrize("place", ["postgresql://me:s3:cret/@x@host:/runs", "postgresql://me:s3cret@host:port/runs"])
def test_a_url_that_cannot_be_read_is_explained_without_its_password(place: str) -> None:
    with pytest.raises(LedgerError, match=r"me:\*\*\*@host.* is no URL .*%40.*%2F") as refused:
        storage.open_storage(place)
    assert "cret" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_no_message_of_an_open_ledger_has_the_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = exc.OperationalError("SELECT", {}, Exception("no entry for s3cret"))
    error.address = Address.of("postgresql://me:s3cret@host/runs")
    said = str(storage.told(error))
    assert "postgresql://me:***@host/runs does not answer" in said
    assert "s3cret" not in said

    def refused(*_: Any, **__: Any) -> None:
        raise exc.OperationalError("SELECT", {}, Exception("no entry for s3cret"))

    monkeypatch.setattr(storage, "RDBStorage", refused)
    monkeypatch.setattr(storage.time, "sleep", lambda _: None)
    with pytest.raises(LedgerError, match=r"--ledger postgresql://me:\*\*\*@host/runs cannot be opened") as raised:
        storage.open_storage("postgresql://me:s3cret@host/runs")
    assert "s3cret" not in str(raised.value)
    assert raised.value.__cause__ is None


@pytest.mark.parametrize(
    ("place", "driver", "remedy"),
    [
        ("postgresql://me@host/runs", "psycopg", r"pip install 'bpfree\[postgresql\]'"),
        ("mysql://me@host/runs", "MySQLdb", r"pip install pymysql, and begin the URL with mysql\+pymysql://"),
    ],
)
def test_a_missing_driver_is_named_with_what_installs_it(
    place: str, driver: str, remedy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = builtins.__import__

    def imported(name: str, *args: Any, **options: Any) -> Any:
        if name.partition(".")[0] in (driver, "psycopg2"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return known(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", imported)
    with pytest.raises(LedgerError, match=rf"needs a driver that is not installed: {remedy}"):
        storage.open_storage(place)


@pytest.mark.parametrize(
    "error",
    [
        exc.PendingRollbackError("Can't reconnect until invalid transaction is rolled back."),
        exc.ResourceClosedError("This Connection is closed"),
        exc.DatabaseError("SELECT", {}, Exception("error with status PGRES_TUPLES_OK and no message from the libpq")),
        exc.InternalError("SELECT", {}, Exception("current transaction is aborted")),
    ],
)
def test_whatever_a_broken_connection_shows_itself_by_is_tried_again(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(str(tmp_path / "ledger.db"), "made up")
    look, left = ledger._look, iter(range(2))

    def perhaps() -> Any:
        for number in left:
            raise error if number else optuna.exceptions.StorageInternalError from error
        return look()

    monkeypatch.setattr(ledger, "_look", perhaps)
    monkeypatch.setattr(storage.time, "sleep", lambda _: None)
    assert ledger.state([RUN]).unfinished == set()


@pytest.mark.parametrize("kind", [exc.ProgrammingError, exc.DataError, exc.NotSupportedError])
def test_what_a_database_refuses_for_good_is_not_asked_again(kind: type[exc.DBAPIError]) -> None:
    assert not storage._passes(kind("INSERT", {}, Exception("permission denied")))


def test_a_full_disk_is_told_with_the_ledgers_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(str(tmp_path / "ledger.db"), "made up")
    monkeypatch.setattr(storage.time, "sleep", lambda _: None)
    with ledger._storage.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count = 1")  # SQLite takes it for a full disk
    much = {str(number): {"label": "x" * 20_000, "seed": 0, "key": str(number)} for number in range(200)}
    with pytest.raises(LedgerError, match=r"ledger\.db could not be read or written .*free some space"):
        ledger.adopt(much)


def test_a_worker_that_died_before_the_clock_was_set_back_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(str(tmp_path / "ledger.db"), "made up")
    ledger.ask([RUN], again=True)
    assert ledger.claim([RUN]) is not None  # by a worker that dies at once
    with ledger._storage.engine.begin() as connection:
        connection.execute(text("UPDATE trial_heartbeats SET heartbeat = '2999-01-01 00:00:00'"))
    now = [time.monotonic()]
    monkeypatch.setattr(pulses.time, "monotonic", lambda: now[0])
    for seconds, claimed in ((0, False), (30, False), (29, False), (2, True)):
        now[0] += seconds
        assert (ledger.claim([RUN]) is not None) == claimed


def test_a_worker_that_lives_keeps_its_run_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Ledger(str(tmp_path / "ledger.db"), "made up")
    ledger.ask([RUN], again=True)
    ledger.claim([RUN])
    now = [time.monotonic()]
    monkeypatch.setattr(pulses.time, "monotonic", lambda: now[0])
    for number in range(8):  # signs of life from a clock that goes backwards
        with ledger._storage.engine.begin() as connection:
            connection.execute(text(f"UPDATE trial_heartbeats SET heartbeat = '2999-01-01 00:00:{59 - number}'"))
        assert ledger.claim([RUN]) is None
        now[0] += 20


def test_a_ledger_that_is_away_while_it_is_opened_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses = away(storage, monkeypatch, "RDBStorage", 2)
    assert Ledger(str(tmp_path / "ledger.db"), "made up").state([RUN]).records == {}
    assert len(pauses) == 2
