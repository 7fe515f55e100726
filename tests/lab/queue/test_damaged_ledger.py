"""A ledger in a damaged file: it is called damaged at once, or lacks the damaged record and says so."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from bpfree.errors import BpfreeWarning
from bpfree.lab.errors import LedgerError
from bpfree.lab.queue import storage
from bpfree.lab.queue.ledger import Ledger
from lab.damage.kinds import RUNS, ledger, records


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return ledger(tmp_path)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    made: list[float] = []
    monkeypatch.setattr(storage.time, "sleep", made.append)
    return made


def alter(path: Path, *statements: str) -> None:
    """Let SQLite itself change a file, so that its own checks find nothing."""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA writable_schema = ON")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_a_record_that_is_no_text_any_more_is_named_and_the_others_count(path: Path, pauses: list[float]) -> None:
    whole = {record["key"]: record for record in records()}
    content = path.read_bytes()
    assert content.count(b'"label": "row b"') == 1
    path.write_bytes(content.replace(b'"label": "row b"', b'"label": "row \xe2"'))
    with pytest.warns(BpfreeWarning, match=r"record 1 \(row b, seed 0\) is damaged.*measured anew"):
        found = Ledger(str(path), "made up").state(RUNS).records
    assert found == {"a": whole["a"], "c": whole["c"]}
    assert not pauses


@pytest.mark.parametrize(
    "statement",
    [
        "ALTER TABLE trial_params RENAME COLUMN param_value TO param_walue",
        "ALTER TABLE trials RENAME COLUMN datetime_start TO datetime_sta\xf2t",
        "ALTER TABLE trial_user_attributes RENAME TO trial_user_attributer",
    ],
)
def test_a_part_that_is_missing_is_damage_and_not_waited_for(statement: str, path: Path, pauses: list[float]) -> None:
    opened = Ledger(str(path), "made up")
    alter(path, statement)
    with pytest.raises(LedgerError, match=r"ledger\.db is damaged .*no such (column|table).*Move it away"):
        opened.state(RUNS)
    assert not pauses


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE version_info SET library_version = CAST(X'352E30B0' AS TEXT)",
        "UPDATE sqlite_schema SET sql = CAST(replace(CAST(sql AS BLOB), X'646973747269', X'646973F47269') AS TEXT)"
        " WHERE name = 'trial_params'",
    ],
)
def test_what_cannot_be_opened_for_its_content_is_damaged(statement: str, path: Path, pauses: list[float]) -> None:
    alter(path, statement)
    with pytest.raises(LedgerError, match=r"ledger\.db is damaged .*Move it away"):
        Ledger(str(path), "made up")
    assert sum(pauses) < 10  # seconds, in which another process may make its tables


def test_a_file_that_another_process_holds_is_not_damaged(
    path: Path, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "_SQLITE_SECONDS", 0)
    opened, other = Ledger(str(path), "made up"), sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(LedgerError, match=r"ledger\.db does not answer .*database is locked"):
        opened.state(RUNS)
    assert pauses == list(storage._PAUSES)
    other.close()
    assert len(opened.state(RUNS).records) == len(RUNS)
