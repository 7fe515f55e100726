"""Optuna's storage, opened so that several processes and machines can share it."""

from __future__ import annotations

import functools
import random
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import optuna
from optuna.storages import RDBStorage
from sqlalchemy import event, exc

from bpfree.lab.errors import LedgerError
from bpfree.lab.tables.shield import shielded

HEARTBEAT = 15
"""Seconds between two signs of life of a worker."""
GRACE = 60
"""Seconds without one after which a worker counts as dead, and its run is given to others."""
_ATTEMPTS = 8  # to make the tables of a new database, which several processes may do at once
_SQLITE_SECONDS = 60  # to wait for another process's transaction
_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before a database that did not answer is asked again
FAILURES = (optuna.exceptions.StorageInternalError, exc.SQLAlchemyError)
"""What Optuna's storage raises when its database does not do what it is asked."""
_P, _T = ParamSpec("_P"), TypeVar("_T")


def open_storage(place: str) -> RDBStorage:
    """Open a database, or make it.

    Args:
        place: A database URL as SQLAlchemy takes it, or the path of an SQLite file.

    Raises:
        LedgerError: The database cannot be opened.
    """
    url = place if "://" in place else _of_file(Path(place).expanduser())
    # The names of studies are the ledger's business, and heartbeats are what it is made for.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pauses = _until_open(url)
    while True:
        try:
            return _open(url)
        except (exc.SQLAlchemyError, RuntimeError, ImportError, ValueError) as error:
            pause = next(pauses, None) if isinstance(error, exc.DBAPIError) else None
            if pause is None:
                raise LedgerError(f"--ledger {place} cannot be opened ({error}).") from error
            time.sleep(pause)


def _until_open(url: str) -> Iterator[float]:
    """The pauses before a database is tried again: short ones for another process's tables, long ones for servers."""
    yield from (random.random() * attempt / 4 for attempt in range(1, _ATTEMPTS))
    if not url.startswith("sqlite"):  # a file does not restart
        yield from _PAUSES


def _of_file(path: Path) -> str:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LedgerError(f"--ledger {path}: its folder cannot be made ({error.strerror}).") from error
    return f"sqlite:///{path}"


def _open(url: str) -> RDBStorage:
    lite = url.startswith("sqlite")
    # A server closes connections that are idle for hours, as they are during a long run.
    options: dict[str, Any] = {"connect_args": {"timeout": _SQLITE_SECONDS}} if lite else {"pool_pre_ping": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = RDBStorage(url, options, heartbeat_interval=HEARTBEAT, grace_period=GRACE)
    if lite:
        _serialize(storage.engine)
    return storage


def patient(call: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let a call that asks the database wait for it: one that restarts must not end a campaign of days.

    A signal that asks this process to end waits for the call, but for no pause between two of its attempts.

    Raises:
        LedgerError: It has not answered several times, over half a minute, or refuses what it is asked.
    """
    attempt = shielded()(call)

    @functools.wraps(call)
    def tried(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        for pause in _PAUSES:
            try:
                return attempt(*args, **kwargs)
            except FAILURES as error:
                if not _passes(error):
                    raise told(error) from error
                time.sleep(pause)
        try:
            return attempt(*args, **kwargs)
        except FAILURES as error:
            raise told(error) from error

    return tried


def told(error: Exception) -> LedgerError:
    """One of FAILURES as the user is told of it."""
    why = str(error.__cause__ or error).partition("\n")[0]
    if _passes(error):
        return LedgerError(
            f"the ledger's database does not answer ({why}). What has finished is kept: see that the database runs, "
            "and repeat the command."
        )
    return LedgerError(
        f"the ledger's database refuses what it is asked ({why}). What has finished is kept: see that its user may "
        "read and write all tables and that it takes texts of 64 KB, or begin another --ledger."
    )


def _passes(error: Exception) -> bool:
    """Whether the same may succeed a little later: the database is away or busy, or another wrote the same first."""
    cause = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else error
    if isinstance(cause, exc.OperationalError | exc.InterfaceError | exc.IntegrityError | exc.TimeoutError):
        return True
    return isinstance(cause, exc.DBAPIError) and cause.connection_invalidated


def _serialize(engine: Any) -> None:
    """Make SQLite take its lock where a transaction begins.

    It knows no locks on rows, by which Optuna lets one of several workers alone have a trial: without this, two that
    read "waiting" at once would both write "running".
    """

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # Python's module would begin late, with the first change

    @event.listens_for(engine, "begin")
    def begins(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections that were opened before know nothing of this
