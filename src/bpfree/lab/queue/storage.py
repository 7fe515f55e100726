"""Optuna's storage, opened so that several processes and machines can share it."""

from __future__ import annotations

import functools
import random
import sqlite3
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import optuna
from optuna.storages import RDBStorage
from sqlalchemy import create_engine, event, exc

from bpfree.errors import BpfreeError
from bpfree.lab.errors import LedgerError
from bpfree.lab.queue.address import Address
from bpfree.lab.queue.delay_signals import shielded

HEARTBEAT = 15
"""Seconds between two signs of life of a worker."""
GRACE = 60
"""Seconds without one after which a worker counts as dead, and its run is given to others."""
_ATTEMPTS = 8  # to make the tables of a new database, which several processes may do at once
_SQLITE_SECONDS = 60  # to wait for another process's transaction
_PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0)  # seconds before a database that did not answer is asked again
FAILURES = (optuna.exceptions.StorageInternalError, exc.SQLAlchemyError)
"""The errors of Optuna's storage if its database fails."""
UNREADABLE = (ValueError, LookupError, TypeError, AttributeError)
"""The errors if a database holds something else than was written."""
_P = ParamSpec("_P")
_T = TypeVar("_T")


def open_storage(place: str) -> RDBStorage:
    """Open a database, or make it.

    Args:
        place: A database URL as SQLAlchemy takes it, or the path of an SQLite file.

    Raises:
        LedgerError: The database cannot be opened, or is damaged.
    """
    address = Address.of(place)
    # The names of studies are the ledger's business, and heartbeats are what it is made for. Of a database that is away
    # the ledger itself says what is to be said.
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    pauses = _until_open(address)
    while True:
        try:
            return _open(address)
        except (*FAILURES, RuntimeError, ImportError, ValueError) as error:
            may_pass = isinstance(error, FAILURES) and (_passes(error) or _lacks_parts(error))
            pause = next(pauses, None) if may_pass else None
            if pause is None:
                raise _unopened(address, error) from None
            time.sleep(pause)


def _unopened(address: Address, error: Exception) -> LedgerError:
    """Make the error for a database that cannot be opened; its own error may hold the password, and is not shown."""
    if _is_damage(error):
        return _damaged(address, _cause(error))
    if isinstance(error, ImportError | exc.NoSuchModuleError) and address.driver:
        return LedgerError(f"--ledger {address.shown} needs a driver that is not installed: {address.driver}.")
    return LedgerError(f"--ledger {address.shown} cannot be opened ({address.without_secrets(error)}).")


def _until_open(address: Address) -> Iterator[float]:
    """Return the pauses between attempts to open a database: short for another process's tables, long for servers."""
    yield from (random.random() * attempt / 4 for attempt in range(1, _ATTEMPTS))
    if not address.is_file:  # a file does not restart
        yield from _PAUSES


def _open(address: Address) -> RDBStorage:
    lite = address.is_file
    # A server closes connections that are idle for hours, as they are during a long run.
    options: dict[str, Any] = {"connect_args": {"timeout": _SQLITE_SECONDS}} if lite else {"pool_pre_ping": True}
    if lite:
        _check_file(address, options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        storage = RDBStorage(address.url, options, heartbeat_interval=HEARTBEAT, grace_period=GRACE)
    _name_errors(storage.engine, address)
    if lite:
        _serialize(storage.engine)
    return storage


def _check_file(address: Address, options: dict[str, Any]) -> None:
    """Find out whether SQLite's file is whole: what it is made of, and its names beside their indices.

    Raises:
        DatabaseError: It is not.
    """
    engine = create_engine(address.url, **options)
    try:
        with engine.connect() as connection:
            said = connection.exec_driver_sql("PRAGMA integrity_check(1)").scalar()
    finally:
        engine.dispose()
    if said != "ok":
        raise exc.DatabaseError("PRAGMA integrity_check", None, sqlite3.DatabaseError(str(said)))


def _name_errors(engine: Any, address: Address) -> None:
    """Let what the database raises say which one it is."""

    @event.listens_for(engine, "handle_error")
    def named(context: Any) -> None:
        if context.sqlalchemy_exception is not None:
            context.sqlalchemy_exception.address = address


def persistent(call: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let a call that asks the database wait for it: one that restarts must not end a campaign of days.

    Raises:
        LedgerError: It has not answered several times, over half a minute, or refuses what it is asked, or is damaged.
    """

    @functools.wraps(call)
    def tried(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        pauses = iter(_PAUSES)
        while True:
            try:
                return call(*args, **kwargs)
            except BpfreeError:  # some of which are ValueErrors too
                raise
            except (*FAILURES, *UNREADABLE) as error:
                pause = next(pauses, None)
                if pause is None or not _passes(error):
                    raise told(error) from error
                time.sleep(pause)

    return tried


def patient(call: Callable[_P, _T]) -> Callable[_P, _T]:
    """Let a short call wait for the database, see :func:`persistent`.

    A signal that asks this process to end waits for the call, but for no pause between two of its attempts.
    """
    return persistent(shielded()(call))


def told(error: Exception) -> LedgerError:
    """Make the error for the user from one of FAILURES, or from content of the ledger that cannot be read."""
    cause = _cause(error)
    address = getattr(cause, "address", _UNNAMED)
    if _is_damage(error):
        return _damaged(address, cause)
    why = address.without_secrets(str(cause).partition("\n")[0])
    if _sqlite_code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):  # the latter where a quota is used up
        return LedgerError(
            f"the ledger{address.named} could not be read or written ({why}). What has finished is kept: see that its "
            "disk works and your quota is not used up, free some space, and repeat the command."
        )
    if _passes(error):
        return LedgerError(
            f"the ledger's database{address.named} does not answer ({why}). What has finished is kept: see that the "
            "database runs, and repeat the command."
        )
    return LedgerError(
        f"the ledger's database{address.named} refuses what it is asked ({why}). What has finished is kept: see that "
        "its user may read and write all tables and that it takes texts of 64 KB, or begin another --ledger."
    )


_UNNAMED = Address("", "")


def _damaged(address: Address, error: Exception) -> LedgerError:
    why = address.without_secrets(str(error).partition("\n")[0])
    return LedgerError(
        f"the ledger{address.named} is damaged ({type(error).__name__}: {why}). Move it away, or name another "
        "--ledger: records in the folder of results count as finished, and the others are measured anew."
    )


def _cause(error: Exception) -> Exception:
    """Return the database's own error, if Optuna has wrapped it."""
    inner = error.__cause__ if isinstance(error, optuna.exceptions.StorageInternalError) else None
    return inner if isinstance(inner, Exception) else error


def _is_damage(error: Exception) -> bool:
    """Return whether the database is damaged: SQLite says so, or lacks a part, or an entry is no record."""
    cause = _cause(error)
    if isinstance(cause, exc.DatabaseError) and type(cause.orig) is sqlite3.DatabaseError:
        return True
    return isinstance(cause, UNREADABLE) or _lacks_parts(error)


def _lacks_parts(error: Exception) -> bool:
    """Return whether SQLite's file has no such table or column, or a name that is no text.

    The file is then damaged, unless another process is making its tables. SQLite has codes of their own for a file that
    is locked, full, or that nobody may write.
    """
    return _sqlite_code(error) == sqlite3.SQLITE_ERROR


def _sqlite_code(error: Exception) -> int | None:
    """Return the primary code of SQLite's operational error; that of no particular error if Python has raised it."""
    cause = _cause(error)
    if not isinstance(cause, exc.OperationalError) or not isinstance(cause.orig, sqlite3.OperationalError):
        return None
    return getattr(cause.orig, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF


def _passes(error: Exception) -> bool:
    """Return whether a later attempt may succeed: the database is away or busy, or another process wrote first.

    A connection that breaks during a query may raise many errors, some of them only at the next query. If a database
    refuses for good, it raises one of these.
    """
    refused = exc.ProgrammingError | exc.DataError | exc.NotSupportedError | exc.ArgumentError  # the last: no such kind
    final = isinstance(_cause(error), refused)
    return not final and not _is_damage(error)


def _serialize(engine: Any) -> None:
    """Make SQLite take its lock where a transaction begins.

    It knows no locks on rows, by which Optuna lets one of several workers alone have a trial: without this, two that
    read "waiting" at once would both write "running".
    """

    @event.listens_for(engine, "connect")
    def connected(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # Python's module would begin late, with the first change
        # A damaged record may be no text any more: its checksum tells, and the others can be read.
        connection.text_factory = functools.partial(str, encoding="utf-8", errors="replace")

    @event.listens_for(engine, "begin")
    def begins(connection: Any) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections that were opened before know nothing of this
