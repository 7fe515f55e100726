"""Keys of a recipe's file that a YAML loader would drop, or take for something else, without a word."""

from __future__ import annotations

import yaml

from bpfree.lab.errors import SettingsError

_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
_WORDS = {f"{_TAG}bool": "true or false", f"{_TAG}null": "nothing"}
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_size(text: str) -> None:
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


def check(text: str, recipe: str) -> None:
    """Check that every key is a name, and is given once.

    Args:
        text: The file's text, which can be read as YAML.
        recipe: The recipe's name.

    Raises:
        SettingsError: A key is given twice: a loader would keep only the last value. Or a key is a word such as ``no``,
            which YAML 1.1 reads as false.
    """
    root = yaml.compose(text, Loader=_LOADER)
    if root is not None:
        _check(root, recipe)


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
