"""Checksums that travel with the data: a record or a JSON file says itself whether it is as it was written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

CHECKSUM = "checksum"
"""The entry that holds the checksum of all the others."""


def checksum(value: Any) -> str:
    """Compute a checksum of plain values. Numbers count by their value and the order of names does not count."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries with their checksum behind them; one that they have is made anew."""
    content = unsealed(values)
    return {**content, CHECKSUM: checksum(content)}


def unsealed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries without their checksum."""
    return {name: value for name, value in values.items() if name != CHECKSUM}


def is_sealed(values: Any) -> bool:
    """Return whether these are entries with a checksum."""
    return isinstance(values, Mapping) and CHECKSUM in values


def is_whole(values: Any) -> bool:
    """Return whether these are entries with the right checksum, as :func:`sealed` has returned them."""
    return is_sealed(values) and sealed(values)[CHECKSUM] == values[CHECKSUM]
