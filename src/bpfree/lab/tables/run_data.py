"""The data of a table's runs: where they lie, loaded once, and known by their checksums."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from bpfree.lab.data import clicks, load, text
from bpfree.lab.data.scenes import SCENES
from bpfree.lab.settings.plain_values import plain

ANY_FOLDER = ("folder", "text", *clicks.LOGS, *SCENES)
"""Data sets that are whatever a folder holds: their name says nothing about it."""

_KEPT: dict[str, Any] = {}
_KNOWN: dict[str, dict[str, str]] = {}


def loaded(name: str, data_dir: str | None, how: Mapping[str, Any]) -> Any:
    """Return the data; those of the last run are kept, because most runs of a table share them.

    Args:
        name: The data set.
        data_dir: The folder of its files, or one in which each data set has a folder of its name.
        how: The options for reading it.

    Raises:
        DataError: They cannot be read.
    """
    place = _folder(data_dir, name)
    asked = _asked(name, place, how)
    if asked not in _KEPT:
        _KEPT.clear()  # before the next ones are read: two data sets may be more than fits in memory
        _KEPT[asked] = load(name, place, **how)
    return _KEPT[asked]


def of_folder(name: str, data_dir: str | None, how: Mapping[str, Any]) -> dict[str, str] | None:
    """Return the checksums that identify a user's folder; None for a data set that its name identifies.

    They are computed once in a process: a table's runs keep their keys though files change while it runs. Those of text
    are of the files alone: what a tokenizer makes of them may be other with its next version.

    Raises:
        DataError: The folder cannot be read.
    """
    place = _folder(data_dir, name)
    if name not in ANY_FOLDER or (place is None and not _is_local(how)):
        return None
    asked = _asked(name, place, how)
    if asked not in _KNOWN and name == "text":
        _KNOWN[asked] = text.checksums(None if place is None else Path(place).expanduser(), how["text"])
    elif asked not in _KNOWN and name in clicks.LOGS:
        _KNOWN[asked] = clicks.checksums(None if place is None else Path(place).expanduser(), how["clicks"], name)
    elif asked not in _KNOWN:
        _KNOWN[asked] = loaded(name, data_dir, how).describe()["checksums"]
    return _KNOWN[asked]


def of_record(described: Mapping[str, Any]) -> dict[str, str]:
    """Return the checksums of a user's folder, as :func:`of_folder` does, from what a record says of its data."""
    return {name: checksum for name, checksum in described["checksums"].items() if name != text.TOKENS}


def at_hand(data: Iterable[tuple[str, Mapping[str, Any]]], data_dir: str | None) -> dict[str, dict[str, str]]:
    """Return the checksums of published data sets that this process has loaded, by their names in records.

    Others are not loaded: that takes seconds and a gigabyte, and a table that is complete needs no data.

    Args:
        data: Names of data sets, and how they are read.
        data_dir: The folder of the data.
    """
    asked = {_asked(name, _folder(data_dir, name), how) for name, how in data if name not in ANY_FOLDER}
    described = [kept.describe() for place, kept in _KEPT.items() if place in asked]
    return {one["name"]: one["checksums"] for one in described}


def _is_local(how: Mapping[str, Any]) -> bool:
    """Return whether the text is a data set in a folder, which its name says nothing about."""
    dataset = how["text"].dataset  # of other data this is None
    return dataset is not None and Path(dataset).expanduser().is_dir()


def _asked(name: str, place: str | None, how: Mapping[str, Any]) -> str:
    return json.dumps([name, place, plain(how)], sort_keys=True)


def _folder(data_dir: str | None, name: str) -> str | None:
    """Return the folder of one data set: ``data_dir`` itself, or the folder in it with the data set's name."""
    own = Path(data_dir or "").expanduser() / name
    return str(own) if data_dir is not None and own.is_dir() else data_dir
