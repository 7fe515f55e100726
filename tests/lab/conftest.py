"""What several files of the lab's tests need."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import os
import sqlite3
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from lightning.fabric.utilities import registry
from sqlalchemy import Engine, event

from support import browser
from support.two_ranks import once_per_run


@pytest.fixture(autouse=True, scope="session")
def _revisions_read_once() -> Iterator[None]:
    """Optuna reads the files of all its revisions whenever a database is opened; they are the same every time."""
    made = ScriptDirectory.from_config

    @functools.cache
    def of_folder(folder: str) -> ScriptDirectory:
        config = Config()
        config.set_main_option("script_location", folder)
        return made(config)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            ScriptDirectory, "from_config", lambda config: of_folder(config.get_main_option("script_location"))
        )
        yield


@pytest.fixture(autouse=True, scope="session")
def _nothing_waits_for_the_disk() -> Iterator[None]:
    """No test cuts the power: a ledger that is made waits for the disk dozens of times otherwise, each file once."""

    def connected(connection: Any, record: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            with contextlib.suppress(sqlite3.Error):  # a damaged file is another one's matter
                connection.execute("PRAGMA synchronous = OFF")

    event.listen(Engine, "connect", connected)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        yield
    event.remove(Engine, "connect", connected)


@pytest.fixture(autouse=True, scope="session")
def _entry_points_read_once() -> Iterator[None]:
    """Every Trainer of Lightning asks all installed packages for callbacks; they are the same every time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "entry_points", functools.cache(registry.entry_points))
        yield


@pytest.fixture(autouse=True, scope="session")
def _scripts_of_pages_made_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Each report holds the same scripts; to put them together takes seconds, once for all of pytest's workers."""
    if importlib.util.find_spec("vl_convert") is None:
        yield
        return
    vl_convert = importlib.import_module("vl_convert")
    make = vl_convert.javascript_bundle

    @functools.cache
    def bundle(**options: str) -> str:
        name = "-".join(("scripts", *options.values()))
        return once_per_run(tmp_path_factory, name, lambda: make(**options))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vl_convert, "javascript_bundle", bundle)
        yield


@pytest.fixture(autouse=True)
def _own_marks(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recipes that tests write are the user's own; what is imported for one test is not looked for by the next."""
    folder = tmp_path_factory.getbasetemp()
    (folder / "bpfree").mkdir(exist_ok=True)
    (folder / "bpfree" / "trusted-folders").write_text(f"{folder}\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(folder))
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))  # what is kept of texts is known by their content
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of an installed browser."""
    found = browser.find()
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(browser.NAMES)} is on the PATH")
    return found
