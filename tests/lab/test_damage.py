"""A sample of what ``python -m lab.damage.search`` looks for."""

from __future__ import annotations

import pytest

from lab.damage.alter import mutated
from lab.damage.kinds import KINDS
from lab.damage.search import GOOD, search


@pytest.mark.parametrize("name", [name for name in KINDS if name != "ledger"])
def test_altered_files_are_named_or_as_good_as_before_under_a_memory_limit(name: str) -> None:
    found = search(name, mutated, 60)
    assert sum(found.values()) == 60
    assert set(found) <= set(GOOD)
