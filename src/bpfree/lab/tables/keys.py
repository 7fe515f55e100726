"""Keys of a recipe's file that a YAML loader would drop, or take for something else, without a word."""

from __future__ import annotations

import yaml

from bpfree.lab.errors import SettingsError

_TAG = "tag:yaml.org,2002:"
_MERGE = f"{_TAG}merge"
_WORDS = {f"{_TAG}bool": "true or false", f"{_TAG}null": "nothing"}
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check(text: str, recipe: str) -> None:
    """Find out whether every key is a name, and given once.

    Args:
        text: The file's text, which can be read as YAML.
        recipe: The recipe's name.

    Raises:
        SettingsError: One is given twice, of which a loader keeps the last; or one is a word such as ``no``, which
            YAML 1.1 reads as false.
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
