"""Text of at most eight bytes, as numbers of 64 bits: whether two are equal is one comparison.

The first byte is the highest one, so numbers are in the order of the texts. 0 is no text: a missing value.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray

LONGEST = 8
"""The bytes of a text in UTF-8, none of which is NUL."""
_SLOTS = 4  # of a hash table, for each row: one value in eight or fewer then meets another one
_MIXING = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: its products differ in their upper bits (Knuth)
_DEALING = 0xC4CEB9FE1A85EC53  # another factor (MurmurHash3), that deals texts out to parts
_TOGETHER = 19  # bits of the number of texts that are numbered together


def numbered(texts: NDArray[np.uint64]) -> tuple[NDArray[np.uint32], NDArray[np.uint64]]:
    """Number the different values of ``texts``, ``(n,)``.

    Returns:
        For each one the place of its value, ``(n,)``, and the different values.
    """
    # Large hash tables would be outside of the processor's cache: equal texts are dealt to the same of several parts.
    bits = max(0, len(texts).bit_length() - _TOGETHER)
    if not bits:
        return _numbered(texts)
    part_of = (texts * np.uint64(_DEALING) >> np.uint64(64 - bits)).astype(np.uint16)
    places, values, count = np.empty(len(texts), np.uint32), list[NDArray[np.uint64]](), 0
    for part in range(1 << bits):
        rows = np.flatnonzero(part_of == part)
        within, different = _numbered(texts[rows])
        places[rows] = within + np.uint32(count)
        values.append(different)
        count += len(different)
    return places, np.concatenate(values)


def _numbered(texts: NDArray[np.uint64]) -> tuple[NDArray[np.uint32], NDArray[np.uint64]]:
    chosen = _representatives(texts)
    begins = np.flatnonzero(chosen == np.arange(len(texts), dtype=np.uint32))
    places = np.empty(len(texts), np.uint32)
    places[begins] = np.arange(len(begins), dtype=np.uint32)
    return places[chosen], texts[begins]


def _representatives(texts: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Return for each text the place of one that is equal, the same one for all that are equal."""
    slots = 1 << (_SLOTS * max(len(texts), 1)).bit_length()
    shift = np.uint64(64 - slots.bit_length() + 1)
    table = np.empty(slots, np.uint32)

    def meeting(texts: NDArray[np.uint64], places: NDArray[np.uint32], factor: int) -> NDArray[np.uint32]:
        """Return for each text the place of one in the same slot."""
        slot = (texts * np.uint64(factor) >> shift).astype(np.int64)
        table[slot] = places
        return table[slot]

    factor = _MIXING
    chosen = meeting(texts, np.arange(len(texts), dtype=np.uint32), factor)
    rest = np.flatnonzero(texts[chosen] != texts).astype(np.uint32)
    while len(rest):
        factor = factor * _MIXING % 2**64
        left = texts[rest]
        found = meeting(left, rest, factor)
        chosen[rest] = found
        rest = rest[texts[found] != left]
    return chosen


def as_text(numbers: NDArray[np.uint64]) -> pl.Series:
    """Return the texts of these numbers, String ``(n,)``, null for 0."""
    if not len(numbers):
        return pl.Series([], dtype=pl.String)
    lines = np.full((len(numbers), LONGEST + 1), ord("\n"), np.uint8)
    lines[:, :LONGEST] = numbers.astype(">u8").view(np.uint8).reshape(-1, LONGEST)
    text = lines[lines != 0][:-1].tobytes().decode()
    found = pl.Series([text]).str.split("\n").explode()
    return found.set(pl.Series(numbers == 0), None)


def of_words(words: Sequence[str]) -> NDArray[np.uint64]:
    """Return the numbers of those words that have one."""
    encoded = [word.encode() for word in words]
    short = [int.from_bytes(word.ljust(LONGEST, b"\0"), "big") for word in encoded if len(word) <= LONGEST]
    return np.array(short, np.uint64)


def text_of(values: pl.Series) -> pl.Series:
    """Return values as they were written: numbers of text become text, others are as they are."""
    return as_text(values.to_numpy()) if values.dtype == pl.UInt64 else values
