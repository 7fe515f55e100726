"""Numbered lists of modules: what a pattern leaves out of them, and which pattern matches them all."""

from __future__ import annotations

import fnmatch
import re
import warnings
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from bpfree.errors import BpfreeWarning
from bpfree.tabulate import fold_names

_WILDCARD = re.compile(r"[*?\[]")
_NUMBER = re.compile(r"\d+")


def warn_of_left_out_blocks(found: Mapping[Any, Sequence[str]], names: Iterable[str]) -> None:
    """Warn where patterns match every block with a number of one digit in a list, and not all that have more.

    Args:
        found: The names that each part of ``taps=`` matches.
        names: Those of all modules.
    """
    chosen = {name for matched in found.values() for name in matched}
    families = _families(names)
    warned: set[str] = set()
    for pattern, matched in found.items():
        if not isinstance(pattern, str) or not _WILDCARD.search(pattern):
            continue
        for template in dict.fromkeys(template for name in matched for template, _ in _templates(name)):
            family = families[template]
            left_out = [name for name in family.values() if name not in chosen]
            if left_out and warned.isdisjoint(left_out) and _is_cut_at_ten(family, chosen):
                warned.update(left_out)
                _warn(pattern, list(family.values()), left_out, names)


def _is_cut_at_ten(family: Mapping[int, str], chosen: Container[str]) -> bool:
    """Return whether several numbers are below ten, and all of these are chosen."""
    below = [name for number, name in family.items() if number < 10]
    return len(below) > 1 and all(name in chosen for name in below)


def _warn(pattern: str, family: Sequence[str], left_out: Sequence[str], names: Iterable[str]) -> None:
    everything = pattern_text(patterns_for(family, names))
    warnings.warn(
        f"taps=: {pattern!r} matches only a part of {', '.join(fold_names(family))}: it leaves out "
        f"{', '.join(fold_names(left_out))}. All are matched by taps={everything}. If a part is "
        "meant, name its modules without a pattern.",
        BpfreeWarning,
        stacklevel=5,
    )


def _families(names: Iterable[str]) -> dict[tuple[str, str], dict[int, str]]:
    """Return families of names that differ in one number: for each common part, the names by number."""
    families: dict[tuple[str, str], dict[int, str]] = {}
    for name in names:
        for template, number in _templates(name):
            families.setdefault(template, {})[number] = name
    return families


def _templates(name: str) -> list[tuple[tuple[str, str], int]]:
    return [((name[: at.start()], name[at.end() :]), int(at.group())) for at in _NUMBER.finditer(name)]


def patterns_for(family: Sequence[str], names: Iterable[str]) -> list[str]:
    """Return patterns that match only the names in ``family``, which differ in one number; at worst the names."""
    before = _common(family)
    after = _common([name[len(before) :][::-1] for name in family])[::-1]
    digits = sorted({len(name) - len(before) - len(after) for name in family})
    tries = [[f"{before}*{after}"], [f"{before}{'?' * count}{after}" for count in digits]]
    everything = list(names)
    for patterns in tries if digits[-1:] != [0] else []:
        matched = {name for name in everything if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)}
        if matched == set(family):
            return patterns
    return list(family)


def _common(names: Sequence[str]) -> str:
    """Return the longest beginning that all names share."""
    first, last = min(names), max(names)
    end = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    return first[:end]


def pattern_text(patterns: Sequence[str]) -> str:
    """Write patterns as ``taps=`` takes them."""
    return repr(patterns[0]) if len(patterns) == 1 else repr(list(patterns))
