"""YAML files that people write: recipes, and schemas of logs. What a loader would drop without a word is an error."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import get_loader

from bpfree.lab.disk.files import storable
from bpfree.lab.errors import SettingsError

_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
_WORDS = {f"{_TAG}bool": "true or false", f"{_TAG}null": "nothing"}
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_LARGEST = 2**18  # bytes of a file; the largest recipe of the package has 10,000


def read(path: Path) -> Any:
    """Return the content of a YAML file; names of rows, columns and the like become text, even if written as numbers.

    Raises:
        SettingsError: It cannot be read, or has a key twice, or one that is no name.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError(f"it is larger than {_LARGEST:,} bytes")
        text = path.read_text(encoding="utf-8")
        _check_size(text)
        content = _named(get_loader("yaml")(text))
    except Exception as error:  # the loader's errors have no public base
        raise SettingsError(f"{path} cannot be read as YAML ({error}).") from error
    _check_keys(text, path.stem)
    return content


def _named(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(_named(name)): _named(entry) for name, entry in value.items()}
    if isinstance(value, str) and storable(value) != value:
        raise ValueError(f"{storable(value)!r} holds half a letter (\\ud800 to \\udfff)")
    return [_named(entry) for entry in value] if isinstance(value, list) else value


def _check_size(text: str) -> None:
    """Find out what aliases (``*name``) make of a file, before a loader does.

    Raises:
        ValueError: It becomes more than a file of its size holds.
    """
    root = yaml.compose(text, Loader=_LOADER)
    if root is not None and _size(root, {}) > 2 * len(text):
        raise ValueError("its aliases (*name) make more of it than a file of its size holds")


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Return the number of nodes in a node, with repetitions; ``known`` holds the numbers of other nodes."""
    if id(node) not in known:
        known[id(node)] = 10**9  # for a node that holds itself
        inside = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        known[id(node)] = 1 if isinstance(inside, str) else 1 + sum(_size(part, known) for part in inside)
    return known[id(node)]


def _check_keys(text: str, name: str) -> None:
    """Check that every key is a name, and is given once.

    Args:
        text: The file's text, which can be read as YAML.
        name: The file's name, for the error.

    Raises:
        SettingsError: A key is given twice: a loader would keep only the last value. Or a key is a word such as ``no``,
            which YAML 1.1 reads as false.
    """
    root = yaml.compose(text, Loader=_LOADER)
    if root is not None:
        _check(root, name)


def _check(node: yaml.Node, where: str) -> None:
    if isinstance(node, yaml.SequenceNode):
        for entry in node.value:
            _check(entry, where)
    if not isinstance(node, yaml.MappingNode):
        return
    seen = set()
    for key, value in node.value:
        place = f"{where}: {key.value}"
        if key.tag in _WORDS:
            raise SettingsError(f"{place} means {_WORDS[key.tag]} in YAML; write it in quotes.")
        if key.value in seen and key.tag != _MERGE:
            raise SettingsError(f"{place} is given twice, and the first would be lost; leave one out.")
        seen.add(key.value)
        _check(value, place)
