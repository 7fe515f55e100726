"""The first half of caching: the log is read once, and each piece of it is encoded by itself and kept in a file."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from bpfree.lab.data.clicks.bad_rows import LISTED, BadLines
from bpfree.lab.data.clicks.encoding import encoded
from bpfree.lab.data.clicks.kinds import LABEL, ORDER
from bpfree.lab.data.clicks.parts import drawn_order
from bpfree.lab.data.clicks.piece_file import PieceFile, write_piece
from bpfree.lab.data.clicks.progress import Progress
from bpfree.lab.data.clicks.reading import Reader
from bpfree.lab.data.clicks.sources import Source
from bpfree.lab.data.clicks.text_rows import Piece

_THREADS = 4  # at most: each has a piece in memory


def threads() -> int:
    """Return the number of threads that work on a log."""
    return max(1, min(_THREADS, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 2))


def make_pieces(
    folder: Path, sources: Sequence[Source], readers: Sequence[Reader], progress: Progress
) -> tuple[list[PieceFile], BadLines]:
    """Encode a log piece by piece; pieces that an earlier process has finished are taken as they are.

    Args:
        folder: The folder of the pieces' files.
        sources: The files of the log.
        readers: What reads each of them.
        progress: Shows how far it is.

    Raises:
        DataError: A file is damaged, or has more bad rows than the schema allows.
        WriteError: A piece could not be written.
    """
    found, bad, lines, limit = list[PieceFile](), BadLines(), 0, readers[0].schema.bad_rows
    for file in _in_order(folder, readers):
        facts = file.facts
        if not found or found[-1].facts["source"] != facts["source"]:
            lines = readers[facts["source"]].lines_before
        bad.add(sources[facts["source"]].name, lines, facts["bad"], facts["n_bad"])
        lines += facts["lines"]
        found.append(file)
        bad.check(limit)
        progress.advance(facts["source"], facts["end"], file.rows)
    return found, bad


def _in_order(folder: Path, readers: Sequence[Reader]) -> Iterator[PieceFile]:
    """Yield the pieces in the order of the log; the next ones are at work by then."""
    waiting = deque[PieceFile | Future[PieceFile]]()
    workers = threads()
    pool = ThreadPoolExecutor(workers, "clicks")
    try:
        for entry in _pieces(folder, readers, pool):
            waiting.append(entry)
            if len(waiting) > workers:
                yield _result(waiting.popleft())
        while waiting:
            yield _result(waiting.popleft())
    finally:
        pool.shutdown(cancel_futures=True)


def _result(entry: PieceFile | Future[PieceFile]) -> PieceFile:
    return entry if isinstance(entry, PieceFile) else entry.result()


def _pieces(
    folder: Path, readers: Sequence[Reader], pool: ThreadPoolExecutor
) -> Iterator[PieceFile | Future[PieceFile]]:
    number = 0
    for source, reader in enumerate(readers):
        begin = reader.begin
        while known := _known(folder, number, source, begin):
            yield known
            begin, number = int(known.facts["end"]), number + 1
        for piece in reader.pieces(begin):
            path = _path(folder, number)
            known = _known(folder, number, source, piece.begin)
            yield known or pool.submit(_make, path, number, source, reader, piece)
            number += 1


def _path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.piece"


def _known(folder: Path, number: int, source: int, begin: int) -> PieceFile | None:
    """Return the piece of this number that an earlier process has finished, if it begins there."""
    found = PieceFile.open(_path(folder, number), check=True)
    if found is None or (found.facts["source"], found.facts["begin"]) != (source, begin):
        return None
    return found


def _make(path: Path, number: int, source: int, reader: Reader, piece: Piece) -> PieceFile:
    table, schema = reader.table(piece), reader.schema
    facts: dict[str, Any] = {"source": source, "begin": piece.begin, "end": piece.end, "rows": table.frame.height}
    bad = sorted(table.bad.items())
    facts |= {"lines": table.lines, "n_bad": len(bad), "bad": bad[:LISTED]}
    plain = {name: table.frame[name].to_numpy() for name in (LABEL, ORDER) if name in table.frame.columns}
    columns = {name: table.encoded.get(name) or encoded(table.frame[name]) for name in schema.fields}
    if schema.is_drawn:
        order = drawn_order(table.frame.height, schema.split, number)
        plain = {name: values[order] for name, values in plain.items()}
        columns = {name: column.at(order) for name, column in columns.items()}
    write_piece(path, facts, plain, columns)
    found = PieceFile.open(path)
    assert found is not None  # it was written just now, by this thread
    return found
