"""Runs as a ledger sees them, and a database that does not answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import optuna
import pytest
from sqlalchemy.exc import OperationalError


@dataclass(frozen=True)
class Asked:
    """A run as the ledger sees it."""

    key: str
    seed: int = 0
    metric: str | None = None
    measures: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return f"row {self.key}"


RUN, OTHER = Asked("a"), Asked("b")


def away(opened: Any, monkeypatch: pytest.MonkeyPatch, name: str, times: int) -> list[float]:
    """Let a storage, or all, not answer a number of times; returns the pauses that are made."""
    pauses: list[float] = []
    call, left = getattr(opened, name), iter(range(times))

    def perhaps(*arguments: Any, **named: Any) -> Any:
        for _ in left:
            raise optuna.exceptions.StorageInternalError from OperationalError("SELECT", {}, Exception("gone away"))
        return call(*arguments, **named)

    monkeypatch.setattr(opened, name, perhaps)
    monkeypatch.setattr("bpfree.lab.queue.storage.time.sleep", pauses.append)
    return pauses
