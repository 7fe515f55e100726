"""Logs are cached in a folder of the test's own, and cut into pieces of a few rows."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

if importlib.util.find_spec("polars") is None:  # the extra [clicks]
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bpfree" / "clicks"


@pytest.fixture
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    from bpfree.lab.data.clicks import columns, reading, text_rows, vocabulary

    monkeypatch.setattr(text_rows, "PIECE", 500)
    monkeypatch.setattr(text_rows, "_BLOCK", 64)
    monkeypatch.setattr(reading, "_ROWS", 20)
    monkeypatch.setattr(vocabulary, "_HELD", 10)
    monkeypatch.setattr(columns, "_LOOKED_UP", 30)
