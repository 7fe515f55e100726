"""The quotes of a piece of CSV: which of them open and close fields, and which are mistakes.

A quote opens a field where a field begins, and closes it where one ends; two in a row stand for a letter. Any other
one, and one that is never closed, would hide the ends of rows up to the next one: its row is bad, and the next line is
read as if nothing had been.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

QUOTE, NEWLINE, _RETURN = ord('"'), ord("\n"), ord("\r")


def find_quotes(content: bytes, separator: str, *, ended: bool) -> tuple[NDArray[np.int64], list[int]]:
    """Return the places of quotes, an opening and a closing one in turn, and those of mistakes.

    Args:
        content: The text, from the beginning of a row on.
        separator: What stands between fields.
        ended: Whether nothing follows: a quote that is open at the end is a mistake then.
    """
    letters = np.frombuffer(content, np.uint8)
    rest = np.flatnonzero(letters == QUOTE)
    good, mistakes = list[NDArray[np.int64]](), list[int]()
    while True:
        pair = _first_mistake(letters, rest, ord(separator), ended=ended)
        if pair is None:
            return np.concatenate([*good, rest]), mistakes
        place = int(rest[2 * pair])
        mistakes.append(place)
        good.append(rest[: 2 * pair])
        line_end = content.find(b"\n", place)
        rest = rest[rest >= (line_end if line_end >= 0 else len(content))]


def _first_mistake(letters: NDArray[np.uint8], quotes: NDArray[np.int64], separator: int, *, ended: bool) -> int | None:
    """Return the number of the first pair of quotes that is none."""
    opening, closing = quotes[0::2], quotes[1::2]
    before = np.where(opening > 0, letters[opening - 1], NEWLINE)
    after = np.where(closing + 1 < len(letters), letters[np.minimum(closing + 1, len(letters) - 1)], NEWLINE)
    wrong = ~np.isin(before, (separator, NEWLINE, QUOTE))
    wrong[: len(closing)] |= ~np.isin(after, (separator, NEWLINE, _RETURN, QUOTE))
    if ended and len(opening) > len(closing):
        wrong[-1] = True
    found = np.flatnonzero(wrong)
    return int(found[0]) if len(found) else None


def outside(quotes: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which places stand outside of quotes: behind an even number of them."""
    return np.searchsorted(quotes, places) % 2 == 0
