"""``python -m lab.damage.search``: alter files of every kind, read them in limited memory, and count the outcomes.

Bit flips and truncations are for files with a checksum, where no other value may ever be read; mutations for all. A
child process reads, whose memory is limited to what it has, four times the file's size and the fixed amount; if it
dies, the alteration at which it died is named, and another goes on.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import resource
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

from bpfree.errors import BpfreeError
from bpfree.lab.disk.bounded import allowed
from lab.damage.alter import flipped, flipped_where_written, mutated, truncated
from lab.damage.kinds import KINDS, Kind
from support import evidence

GOOD = ("as before", "named", "another value", "a part, and said so")
_ROOM = 2**26  # for what a process does beside


def outcome(kind: Kind, path: Path, whole: object) -> str:
    """What comes of reading an altered file; one of GOOD, or what is wrong."""
    try:
        found = kind.read(path)
    except BpfreeError as error:
        return "named" if path.name in str(error) or path.stem in str(error) else f"no file in: {error}"
    except BaseException as error:
        return f"raw: {type(error).__name__}: {error}"[:200]
    if found == whole:
        return "as before"
    if not kind.sealed:
        return "another value"
    if kind.partly and found.items() <= whole.items():
        return "a part, and said so"
    return "another value, unnoticed"


def cases(kind: Kind, alter: Callable[[bytes, random.Random], bytes], numbers: range) -> Iterator[tuple[int, str]]:
    """Number and outcome of alterations of one kind; the same number is the same alteration."""
    with tempfile.TemporaryDirectory() as folder:
        path = kind.make(Path(folder))
        content = path.read_bytes()  # before it is read: some kinds are packed for that
        whole = kind.read(path)
        for number in numbers:
            for other in Path(folder).iterdir():
                other.unlink()
            path.write_bytes(alter(content, random.Random(number)))
            yield number, outcome(kind, path, whole)


def limit(size: int) -> None:
    """Let this process have no more memory than it has, and what a file of this size may take."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + allowed(size) + _ROOM
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _child(name: str, alter: Callable[[bytes, random.Random], bytes], numbers: range, pipe: Connection) -> None:
    kind = KINDS[name]
    with tempfile.TemporaryDirectory() as folder:
        path = kind.make(Path(folder))
        kind.read(path)  # what is loaded at the first time
        limit(path.stat().st_size)
    for number, found in cases(kind, alter, numbers):
        pipe.send((number, found))
    pipe.send(None)


def search(name: str, alter: Callable[[bytes, random.Random], bytes], count: int) -> Counter[str]:
    """Count the outcomes of so many alterations of one kind."""
    found, first = Counter[str](), 0
    while first < count:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        child = multiprocessing.get_context("fork").Process(
            target=_child, args=(name, alter, range(first, count), theirs)
        )
        child.start()
        theirs.close()
        try:
            while (told := ours.recv()) is not None:
                first = told[0] + 1
                found[told[1] if told[1] in GOOD else f"{told[1]} (number {told[0]})"] += 1
            first = count
        except EOFError:
            child.join()
            found[f"killed: exit code {child.exitcode} (number {first})"] += 1
            first += 1
        child.join()
    return found


def alterations(kind: Kind) -> Iterator[Callable[[bytes, random.Random], bytes]]:
    """The ways to alter a file of this kind."""
    if kind.sealed:
        yield from (flipped, truncated)
    yield mutated
    if kind.sparse:
        yield flipped_where_written


def main() -> int:
    """Search, and print a line a kind; the exit status is 1 if anything is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flips", type=int, default=2500)
    parser.add_argument("--truncations", type=int, default=200)
    parser.add_argument("--mutations", type=int, default=20_000)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), metavar="KIND", help=", ".join(KINDS))
    evidence.add_option(parser)
    asked = parser.parse_args()
    counts = {
        flipped: asked.flips,
        truncated: asked.truncations,
        mutated: asked.mutations,
        flipped_where_written: asked.flips,
    }
    trials = [
        (f"{name}, {alter.__name__}", counts[alter], partial(search, name, alter, counts[alter]))
        for name in asked.kinds
        for alter in alterations(KINDS[name])
    ]
    return evidence.make(trials, asked.evidence, "python -m lab.damage.search", GOOD)


if __name__ == "__main__":
    raise SystemExit(main())
