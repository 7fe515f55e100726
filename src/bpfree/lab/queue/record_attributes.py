"""A record as attributes of a trial, none of them large: MySQL takes 64 KB in each, and no more.

A record carries its checksum, in a database as in a file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from bpfree.lab.disk.checksums import is_sealed, is_whole, sealed, unsealed
from bpfree.lab.disk.files import storable
from bpfree.lab.errors import DamageError

RECORD = "sealed record"
"""The attribute that holds a record, with its checksum, without its epochs and large parts."""
_UNSEALED = "record"  # its name before every record had a checksum
_EPOCH, _PART = "epoch ", "part of "
_LARGEST = 30_000  # characters; as JSON within JSON they may be twice as many


def split(record: Mapping[str, Any]) -> dict[str, Any]:
    """Split a record into attributes: one per epoch, and, if it is large, one for each large part, such as pictures."""
    plain = sealed(storable(dict(record)))
    found = {f"{_EPOCH}{number}": epoch for number, epoch in enumerate(plain.pop("epochs", []), start=1)}
    texts = {name: json.dumps(value) for name, value in plain.items()}
    while len(json.dumps(plain)) > _LARGEST:
        name = max(plain, key=lambda name: len(texts[name]))
        del plain[name]
        starts = range(0, len(texts[name]), _LARGEST)
        found |= {f"{_PART}{name} {start}": texts[name][start : start + _LARGEST] for start in starts}
    return {RECORD: plain, **found}


def joined(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record of a trial's attributes.

    Raises:
        DamageError: They are not those that :func:`split` made.
    """
    try:
        record = _joined(attributes)
    except (ValueError, LookupError, TypeError) as error:
        raise DamageError(f"a part of it is missing or altered ({error})") from error
    # The attribute's name says that there is a checksum: the checksum's own name may be damaged too.
    if (RECORD in attributes or is_sealed(record)) and not is_whole(record):
        raise DamageError("its checksum is not that of what stands in it")
    return unsealed(record)


def _joined(attributes: Mapping[str, Any]) -> dict[str, Any]:
    epochs = [attributes[name] for name in _ordered(attributes, _EPOCH)]
    large: dict[str, str] = {}
    for name in _ordered(attributes, _PART):
        whole = name.removeprefix(_PART).rpartition(" ")[0]
        large[whole] = large.get(whole, "") + attributes[name]
    parts = {name: json.loads(text) for name, text in large.items()}
    plain = attributes[RECORD if RECORD in attributes else _UNSEALED]
    return plain | parts | ({"epochs": epochs} if epochs else {})


def _ordered(attributes: Mapping[str, Any], kind: str) -> list[str]:
    """Return the names of this kind, by the number that each ends with."""
    return sorted((name for name in attributes if name.startswith(kind)), key=lambda name: int(name.rpartition(" ")[2]))


def value(record: Mapping[str, Any]) -> float:
    """Return the number that Optuna's own tools show of a run."""
    found = record.get("value")
    return float(found) if isinstance(found, int | float) and math.isfinite(found) else 0.0
