"""Logs by name, as every other data set, and what is said where their package is not installed."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from bpfree.lab.data import ClickSettings, TextSettings, load
from bpfree.lab.errors import DataError, SettingsError
from support import plain_log
from support.plain_log import SCHEMA
from support.small_log import schema_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = {name: plain_log.made_up(40, seed) for seed, name in enumerate(("train", "valid", "test"))}
    return plain_log.write(tmp_path / "log", made)


def test_a_log_by_name(folder: Path) -> None:
    settings = ClickSettings(schema=schema_file(folder, SCHEMA), measured_on="test")
    found = load("clicks", folder, clicks=settings)
    assert found.describe() == {
        "name": "log",
        "n_train": 40,
        "n_eval": 40,
        "measured_on": "test",
        "fields": 4,
        "identifiers": sum(found.sizes),  # type: ignore[attr-defined]
        "click_rate": found.describe()["click_rate"],
        "bad_rows": 0,
        "checksums": found.describe()["checksums"],
    }
    assert set(found.describe()["checksums"]) == {"train.csv", "valid.csv", "test.csv", "schema"}


def test_options_of_other_data_are_refused(folder: Path) -> None:
    settings = ClickSettings(schema=schema_file(folder, SCHEMA))
    with pytest.raises(SettingsError, match=r"--validation 5: a log has rows for validation anyway"):
        load("clicks", folder, validation=5, clicks=settings)
    with pytest.raises(SettingsError, match=r"--text: criteo has no text"):
        load("criteo", folder, text=TextSettings(context=3))
    with pytest.raises(SettingsError, match=r"--clicks: digits has no clicks"):
        load("digits", clicks=settings)
    with pytest.raises(DataError, match=r"train\.txt is missing"):
        load("criteo", folder)


def test_without_polars_it_is_said_what_installs_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("caching", "columns"):
        monkeypatch.delitem(sys.modules, f"bpfree.lab.data.clicks.{module}", raising=False)
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(SettingsError, match=r"--data clicks: polars is not installed: pip install 'bpfree\[clicks\]'"):
        load("clicks", folder, clicks=ClickSettings(schema=schema_file(folder, SCHEMA)))
