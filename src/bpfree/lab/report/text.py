"""Numbers, dates and settings as people read them. What is missing becomes an en dash."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

from markupsafe import Markup, escape

DASH = "–"
MINUS = "−"


def with_code(line: str) -> Markup:
    """Return a line in which what stands between backticks is shown as code."""
    parts = [
        escape(part) if place % 2 == 0 else Markup(f"<code>{escape(part)}</code>")
        for place, part in enumerate(line.split("`"))
    ]
    return Markup("").join(parts)


def is_number(value: object) -> bool:
    """Return whether `value` is a finite number (True and False are not)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def number(value: object, digits: int = 2) -> str:
    """Return `value` with `digits` decimals and a true minus sign; an en dash where there is no finite number."""
    if not is_number(value):
        return DASH
    text = f"{value:,.{digits}f}"
    return text.replace("-", MINUS) if float(text.replace(",", "")) else text.lstrip("-")


def mean_std(mean: object, std: object, digits: int = 2) -> str:
    """Return `mean ± std`; the mean alone where the deviation is unknown (a single seed)."""
    if not is_number(mean) or not is_number(std):
        return number(mean, digits)
    return f"{number(mean, digits)} ± {number(std, digits)}"


def others(entry: Mapping[str, object], seeds: int) -> str:
    """Return ` (2)`, to stand in a table's cell that is the mean of other than its row's ``seeds``; else nothing."""
    return f" ({entry['seeds']})" if entry["seeds"] not in (0, seeds) else ""


def tolerances(entries: Iterable[Mapping[str, object]]) -> dict[str, str]:
    """Return, by name, the tolerances of the columns that have one and a paper's number.

    `± 1.5`, or `−1.5/+∞` where the measured number may be above the paper's by any amount.
    """
    found = {}
    for entry in entries:
        if entry["paper"] is not None and entry["tolerance"] is not None:
            # Files of before it was told have no "above".
            form = f"{MINUS}{{:g}}/+∞" if entry.get("above") else "± {:g}"
            found[str(entry["column"])] = form.format(entry["tolerance"])
    return found


def failures(entry: Mapping[str, Any]) -> str:
    """Return ` (4 of 5 seeds failed)`, to stand behind the mean of a table's cell; nothing where none did."""
    failed = entry.get("failed", 0)  # files of before it was counted
    return f" ({failed} of {failed + entry['seeds']} seeds failed)" if failed else ""


def mebibytes(size: Any, digits: int = 1) -> str:
    """Return a size in bytes as MiB, with `digits` decimals below 100 MiB."""
    if not is_number(size):
        return DASH
    mib = size / 2**20
    return number(mib, digits if mib < 100 else 0)


def date(created: object) -> str:
    """Return an ISO 8601 time as `21 November 2026`; any other text as it stands."""
    text = str(created or DASH)
    try:
        when = datetime.fromisoformat(text.replace("Z", "+00:00"))
    except ValueError:
        return text
    return f"{when.day} {when:%B %Y}"


def setting(value: object) -> str:
    """Return a setting of any JSON type as one line of plain text."""
    if isinstance(value, Mapping):
        return ", ".join(f"{key} = {nested(item)}" for key, item in value.items()) or DASH
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(nested(item) for item in value) or DASH
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}" if math.isfinite(value) else DASH
    return DASH if value is None or value == "" else str(value)


def nested(value: object) -> str:
    """Return a setting inside another, in brackets where it has parts of its own."""
    if isinstance(value, Mapping):
        return f"({setting(value)})"
    return f"[{setting(value)}]" if isinstance(value, list | tuple) else setting(value)


def listing(words: Sequence[str]) -> str:
    """Return `a`, `a and b`, `a, b and c`."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def span(values: Collection[int]) -> str:
    """Return `3`, or `3 to 10` where they are not all the same."""
    return " to ".join(f"{end:,}" for end in sorted({min(values), max(values)}))


def count(n: int, noun: str) -> str:
    """Return `1 seed`, `3 seeds`."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"
