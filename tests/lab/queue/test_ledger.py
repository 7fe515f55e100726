"""The ledger: whose turn a run is, after failures, deaths and a database that was away."""

from __future__ import annotations

import itertools
import signal
import sqlite3
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from optuna.storages import RDBStorage
from optuna.trial import TrialState
from sqlalchemy import create_engine
from sqlalchemy.exc import DataError, OperationalError

from bpfree.lab.errors import LedgerError
from bpfree.lab.queue import record_attributes, storage
from bpfree.lab.queue.ledger import Claim, Ledger
from support.ledger_runs import OTHER, RUN, away


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(str(tmp_path / "ledger.db"), "made up")


def die(ledger: Ledger, claim: Claim | None) -> None:
    """What becomes of a claim whose worker shows no sign of life."""
    assert claim is not None
    ledger._storage.set_trial_state_values(claim._number, TrialState.FAIL)


def test_a_worker_that_dies_gives_its_run_back_though_the_run_had_failed_before(ledger: Ledger) -> None:
    ledger.ask([RUN], again=True)
    with ledger.claim([RUN]) as claim:
        claim.fail("out of paper")
    assert ledger.state([RUN]).wrong == {"a": "out of paper"}
    assert ledger.claim([RUN]) is None  # not by the same command
    ledger.ask([RUN], again=True)
    die(ledger, ledger.claim([RUN]))
    state = ledger.state([RUN])
    assert (state.wrong, state.unfinished) == ({}, {"a"})
    with ledger.claim([RUN]) as claim:
        claim.finish({"label": "a", "seed": 0})
    assert set(ledger.state([RUN]).records) == {"a"}


def test_a_run_that_kills_its_workers_waits_behind_the_others_and_fails_after_three(ledger: Ledger) -> None:
    works = [RUN, OTHER]
    ledger.ask(works, again=True)
    die(ledger, ledger.claim(works))
    claim = ledger.claim(works)
    assert claim.work is OTHER
    for _ in range(2):
        assert not ledger.state(works).wrong
        die(ledger, ledger.claim(works))
    assert ledger.claim(works) is None
    state = ledger.state(works)
    assert "row a, seed 0: its worker died 3 times and said nothing" in state.wrong["a"]
    assert state.unfinished == {"b"}
    ledger.ask(works, again=True)  # the next command tries again
    assert ledger.claim(works).work is RUN


@pytest.mark.parametrize("known", [True, False])
def test_deaths_before_a_command_are_forgiven(known: bool, ledger: Ledger) -> None:
    for _ in range(5):  # so often is the machine switched off, and the command repeated
        ledger.ask([RUN], again=True)
        claim = ledger.claim([RUN])
        if not known:  # the next command is there before the last one's worker counts as dead
            ledger.ask([RUN], again=True)
        die(ledger, claim)
        assert ledger.state([RUN]).unfinished == {"a"}


def test_interruptions_are_no_deaths(ledger: Ledger) -> None:
    ledger.ask([RUN], again=True)
    for _ in range(4):
        with pytest.raises(KeyboardInterrupt), ledger.claim([RUN]):
            raise KeyboardInterrupt
    assert not ledger.state([RUN]).wrong
    assert ledger.claim([RUN]) is not None


def test_what_two_ask_for_at_once_is_run_once(ledger: Ledger, tmp_path: Path, monkeypatch: Any) -> None:
    other = Ledger(str(tmp_path / "ledger.db"), "made up")
    look = ledger._look
    interposed = iter([True])

    def between() -> dict:
        """The other asks when this one has looked, and has not asked yet."""
        seen = look()
        if next(interposed, False):
            other.ask([RUN], again=True)
        return seen

    monkeypatch.setattr(ledger, "_look", between)
    ledger.ask([RUN], again=True)
    with ledger.claim([RUN]) as claim:
        claim.fail("out of paper")
    assert other.claim([RUN]) is None
    assert ledger.state([RUN]).wrong == {"a": "out of paper"}


@pytest.mark.parametrize("name", ["set_trial_user_attr", "set_trial_state_values"])
def test_a_record_outlives_a_database_that_restarts(name: str, ledger: Ledger, monkeypatch: Any) -> None:
    ledger.ask([RUN], again=True)
    with ledger.claim([RUN]) as claim:
        pauses = away(ledger._storage, monkeypatch, name, 3)
        claim.finish({"label": "a", "seed": 0})
    assert ledger.state([RUN]).records == {"a": {"label": "a", "seed": 0}}
    assert pauses == sorted(pauses)
    assert len(pauses) == 3


@pytest.mark.parametrize("name", ["_get_stale_trial_ids", "record_heartbeat"])
def test_a_database_that_stays_away_is_said(name: str, ledger: Ledger, monkeypatch: Any) -> None:
    ledger.ask([RUN], again=True)
    away(ledger._storage, monkeypatch, name, 100)
    with pytest.raises(LedgerError, match=r"database does not answer .*gone away.*repeat the command"):
        ledger.claim([RUN])


@pytest.mark.parametrize("name", ["create_new_study", "get_study_id_from_name"])
def test_a_ledger_is_opened_while_its_database_restarts(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    pauses = away(RDBStorage, monkeypatch, name, 3)
    assert not Ledger(str(tmp_path / "ledger.db"), "made up").state([RUN]).records
    assert len(pauses) == 3


@pytest.mark.parametrize(("place", "seconds"), [("postgresql://host/name", (31, 40)), ("ledger.db", (0, 9))])
def test_a_server_is_waited_for_and_a_file_is_not(
    place: str, seconds: tuple[int, int], tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    pauses: list[float] = []

    def refused(*_: Any, **__: Any) -> None:
        raise OperationalError("SELECT", {}, Exception("gone away"))

    monkeypatch.setattr(storage, "RDBStorage", refused)
    monkeypatch.setattr(storage.time, "sleep", pauses.append)
    with pytest.raises(LedgerError, match=r"--ledger .* cannot be opened .*gone away"):
        storage.open_storage(place)
    assert seconds[0] <= sum(pauses) <= seconds[1]


def test_a_statement_that_is_refused_is_not_repeated(ledger: Ledger, monkeypatch: Any) -> None:
    def refused(*_: Any) -> None:
        raise optuna.exceptions.StorageInternalError from DataError("INSERT", {}, Exception("data too long"))

    ledger.ask([RUN], again=True)
    claim = ledger.claim([RUN])
    monkeypatch.setattr(storage.time, "sleep", lambda _: pytest.fail("it would be asked again"))
    monkeypatch.setattr(ledger._storage, "set_trial_user_attr", refused)
    with pytest.raises(LedgerError, match=r"refuses what it is asked .*data too long"):
        claim.finish({"label": "a", "seed": 0})


def test_connections_to_a_server_are_tried_before_they_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    made, opened = [], SimpleNamespace(engine=create_engine("sqlite://"))
    monkeypatch.setattr(storage, "RDBStorage", lambda url, options, **_: made.append((url, options)) or opened)
    storage.open_storage("postgresql://host/name")
    assert made == [("postgresql://host/name", {"pool_pre_ping": True})]


def test_parts_that_are_large_together_are_divided_too() -> None:
    record = {"label": "a", "seed": 0, **dict.fromkeys(("one", "two", "three"), "x" * 29000)}
    attributes = record_attributes.split(record)
    assert max(len(optuna.storages._rdb.storage.json.dumps(value)) for value in attributes.values()) < 2**16
    assert record_attributes.joined(attributes) == record


def test_large_parts_of_a_record_are_divided(ledger: Ledger) -> None:
    record = {
        "label": "a",
        "seed": 0,
        "filters": [[0.123456789] * 50] * 400,
        "visualized": {"module": "conv", "png": 'ü"\\' * 30_000},
        "epochs": [{"epoch": number} for number in range(1, 13)],
    }
    attributes = record_attributes.split(record)
    # Optuna keeps each as JSON, in a column that holds 64 KB in MySQL.
    assert max(len(optuna.storages._rdb.storage.json.dumps(value)) for value in attributes.values()) < 2**16
    ledger.ask([RUN], again=True)
    with ledger.claim([RUN]) as claim:
        claim.finish(record)
    assert ledger.state([RUN]).records["a"] == record


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def interruption(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    """A signal at which Python raises KeyboardInterrupt."""
    before = signal.signal(request.param, signal.default_int_handler)
    yield request.param
    assert signal.signal(request.param, before) is signal.default_int_handler  # the ledger has left it as it was


def interrupt(opened: RDBStorage, number: signal.Signals, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let signals arrive when the last thing about a run is about to be entered."""
    enter = opened.set_trial_state_values

    def interrupted(*told: Any) -> bool:
        for _ in range(times):
            signal.raise_signal(number)
        return enter(*told)

    monkeypatch.setattr(opened, "set_trial_state_values", interrupted)


@pytest.mark.parametrize(("times", "entered"), [(1, {"a"}), (2, set())])
def test_the_first_signal_waits_until_a_record_is_entered_and_the_second_does_not(
    times: int, entered: set[str], interruption: signal.Signals, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.ask([RUN], again=True)
    claim = ledger.claim([RUN])
    interrupt(ledger._storage, interruption, times, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        claim.finish({"label": "a", "seed": 0})
    monkeypatch.undo()
    assert set(ledger.state([RUN]).records) == entered


def test_a_run_is_given_back_by_a_process_that_is_asked_to_end_meanwhile(
    interruption: signal.Signals, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger.ask([RUN], again=True)
    claim = ledger.claim([RUN])
    interrupt(ledger._storage, interruption, 1, monkeypatch)
    with pytest.raises(KeyboardInterrupt), claim:
        raise RuntimeError
    monkeypatch.undo()
    ledger.ask([RUN], again=False)
    assert ledger.claim([RUN]) is not None


def test_a_signal_at_any_moment_leaves_no_lock(interruption: signal.Signals, ledger: Ledger, tmp_path: Path) -> None:
    """SQLite's lock would be left by a transaction that Python has begun, and SQLAlchemy not yet heard of."""

    def look(moment: int | None) -> int:
        calls = itertools.count()

        def interrupted(*_: Any) -> None:
            if next(calls) == moment:
                signal.raise_signal(interruption)

        sys.setprofile(interrupted)
        try:
            ledger.state([RUN])
        finally:
            sys.setprofile(None)
        return next(calls)

    look(None)  # what is made once is made
    calls = look(None)
    within = range(100, calls - 100, calls // 100)  # before and behind it, no transaction is open
    for moment in within:
        with pytest.raises(KeyboardInterrupt):
            look(moment)
        other = sqlite3.connect(tmp_path / "ledger.db", timeout=0)
        other.execute("BEGIN IMMEDIATE")
        other.close()


def test_threads_other_than_the_main_one_use_a_ledger_too(ledger: Ledger) -> None:
    found = []
    thread = threading.Thread(target=lambda: found.append(ledger.state([RUN])))
    thread.start()
    thread.join()
    assert [state.unfinished for state in found] == [set()]
