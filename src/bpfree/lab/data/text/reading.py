"""Reading text as a stream of lines, however long the file or a line is."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from bpfree.lab.disk.bounded import pieces
from bpfree.lab.errors import DataError

_LONG = 2**16  # letters from which on a line is cut at the next blank, so that one of gigabytes can be read
_LONGEST = 2**20  # letters without such a blank, behind which it is cut all the same
# A tokenizer's words begin with the blank before them, and end at it: cut here, a line has the same tokens.
_CUT = re.compile(r"(?<=\S) (?=\S)")


def lines(path: Path) -> Iterator[str]:
    r"""Yield the lines of a text file, ``.gz`` or not, each with its ``"\n"``, which the last one gets if it has none.

    A line of more than 65,536 letters comes in several pieces, of which the last alone has the end.

    Raises:
        DataError: It cannot be read, is no UTF-8, or holds nothing but blanks.
    """
    return _not_empty(_lines(_decoded(path)), str(path))


def lines_of(texts: Iterable[str], name: str) -> Iterator[str]:
    """Yield the lines of several texts, as :func:`lines` does; every text ends at the end of a line.

    Args:
        texts: The texts.
        name: What all of them are, for the error.

    Raises:
        DataError: They hold nothing but blanks.
    """
    return _not_empty(_lines(text if text.endswith("\n") else f"{text}\n" for text in texts), name)


def _not_empty(lines: Iterable[str], name: str) -> Iterator[str]:
    empty = True
    for line in lines:
        empty = empty and not line.strip()
        yield line
    if empty:
        raise DataError(f"{name} is empty. It needs text, one sentence or paragraph a line.")


def _decoded(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    place = 0
    for piece in pieces(path):
        yield _decode(decoder, piece, path, place)
        place += len(piece)
    yield _decode(decoder, b"", path, place)


def _decode(decoder: codecs.IncrementalDecoder, piece: bytes, path: Path, place: int) -> str:
    try:
        return decoder.decode(piece, final=not piece)
    except UnicodeDecodeError as error:
        # The decoder has kept the beginning of a letter that the piece before ended in.
        where = place - (len(error.object) - len(piece)) + error.start
        raise DataError(f"{path} is no UTF-8 text ({error.reason} at byte {where:,}). Convert it first.") from error


def _lines(texts: Iterable[str]) -> Iterator[str]:
    rest = ""  # of a line whose end has not come yet
    for text in texts:
        # Not splitlines(), which also breaks at characters that stand within a line.
        *whole, rest = (rest + text).split("\n")
        for line in whole:
            while cut := _cut(line):
                yield line[:cut]
                line = line[cut:]
            yield f"{line}\n"
        while cut := _cut(rest):
            yield rest[:cut]
            rest = rest[cut:]
    if rest:
        yield f"{rest}\n"


def _cut(line: str) -> int:
    """Return where a line, or the beginning of one, is cut; 0 for nowhere, or for not yet."""
    if len(line) <= _LONG:
        return 0
    found = _CUT.search(line, _LONG, _LONGEST)
    return found.start() if found else _LONGEST if len(line) > _LONGEST else 0
