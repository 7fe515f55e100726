"""``python -m lab.damage.full_disk``: a disk that is full at many moments of writing each kind of file.

What stood before must still be there, nothing else may be left over, and an error must name the file.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from bpfree.errors import BpfreeError
from bpfree.lab.disk import files
from bpfree.lab.kept.checkpoints import WholeFiles
from bpfree.lab.queue import storage
from bpfree.lab.queue.ledger import Ledger
from bpfree.lab.tables import result
from lab.damage.kinds import RUNS, records
from support import evidence

GOOD = ("the old file as it was, the new one named",)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let the system refuse every byte of a file behind this one, as it does where the disk is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def checkpoint(folder: Path, number: int) -> Path:
    WholeFiles().save_checkpoint({"weights": torch.full((400,), float(number))}, folder / "last.ckpt")
    return folder / "last.ckpt"


def table(folder: Path, number: int) -> Path:
    found = [record | {"seed": number} for record in records()]
    said: dict[str, Any] = {"title": "T", "source": {}, "scales": {}, "deviations": [], "remarks": []}
    content = {"format": result.FORMAT, "name": "a", "command": "bpfree table a", "tables": {}, "records": found}
    return result.write(content | said, folder)


WRITERS: dict[str, Callable[[Path, int], Path]] = {
    "checkpoint": checkpoint,
    "table": table,
    "record": lambda folder, number: files.write_json(folder / "a.json", records()[0] | {"seed": number}),
    "page": lambda folder, number: files.write_text(folder / "RESULTS.md", f"{number} " * 2000),
}
"""What writes a file of each kind: in a folder, with a number in it."""


def files_cut_off(kind: str, moments: int) -> Counter[str]:
    """Write a file over another one while the disk fills, at so many moments; counts what came of it."""
    found, write = Counter[str](), WRITERS[kind]
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder), 1)
        before = path.read_bytes()
        for moment in range(moments):
            said = _error_of(partial(write, Path(folder), 2), len(before) * moment // moments)
            same = path.read_bytes() == before and list(Path(folder).iterdir()) == [path]
            found[_outcome(f"{path.name} could not be written", said, same=same)] += 1
    return found


def ledger_cut_off(moments: int) -> Counter[str]:
    """Enter a large record in a ledger while the disk fills, at so many moments; counts what came of it."""
    found, late = Counter[str](), {"c": records()[2] | {"filters": [[0.5] * 20_000] * 3}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ledger.db"
        Ledger(str(path), "made up").adopt({record["key"]: record for record in records()[:2]})
        before = path.read_bytes()
        Ledger(str(path), "made up").adopt(late)
        grown = path.stat().st_size - len(before)
        for moment in range(moments):
            for other in Path(folder).iterdir():
                other.unlink()
            path.write_bytes(before)
            size = len(before) + grown * moment // moments
            said = _error_of(lambda: Ledger(str(path), "made up").adopt(late), size)
            same = set(Ledger(str(path), "made up").state(RUNS).records) == {"a", "b"}
            found[_outcome("ledger.db could not be read or written", said, same=same)] += 1
    return found


def _error_of(write: Callable[[], object], size: int) -> str:
    try:
        with largest_file(size):
            write()
    except BpfreeError as error:
        return str(error)
    return "no error"


def _outcome(expected: str, said: str, *, same: bool) -> str:
    if expected not in said:
        return said
    return GOOD[0] if same else "the old file is another"


def main() -> int:
    """Print what came of it; the exit status is 1 if anything was lost or not named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--moments", type=int, default=50)
    evidence.add_option(parser)
    asked = parser.parse_args()
    storage._PAUSES = (0.0, 0.0)  # a disk that stays full need not be waited for
    trials = [(kind, asked.moments, partial(files_cut_off, kind, asked.moments)) for kind in WRITERS]
    trials.append(("ledger", asked.moments, partial(ledger_cut_off, asked.moments)))
    return evidence.make(trials, asked.evidence, "python -m lab.damage.full_disk", GOOD)


if __name__ == "__main__":
    raise SystemExit(main())
