"""The kinds of files that the lab reads: how one is made, and how it is read."""

from __future__ import annotations

import functools
import gzip
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from alembic.util import pyfiles
from PIL import Image
from scipy.sparse import csr_matrix

from bpfree.errors import BpfreeWarning
from bpfree.lab.data.idx import parse_idx
from bpfree.lab.data.idx_set import Original, _verified
from bpfree.lab.data.pickled import NUMBERS, parse_pickle, unpickled
from bpfree.lab.data.picture import picture
from bpfree.lab.data.planetoid import CORA, _indices, _neighbours
from bpfree.lab.data.text.reading import lines
from bpfree.lab.disk.files import read_json, write_json
from bpfree.lab.errors import WriteError
from bpfree.lab.kept import checkpoints
from bpfree.lab.kept.checkpoints import WholeFiles
from bpfree.lab.queue.ledger import Ledger
from bpfree.lab.recipe.reading import read
from bpfree.lab.tables import result
from support import tiny_table
from support.ledger_runs import Asked

RUNS = [Asked(key) for key in ("a", "b", "c")]


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        make: Makes one in a folder, and returns its path.
        read: Reads it; what it returns can be compared with ``==``.
        sealed: Whether it has a checksum: what is read is what was written, or an error.
        partly: Whether a part may be missing of what is read, if that was said.
        sparse: Whether most of it is empty, so that most bits that flip are nobody's.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]
    sealed: bool = True
    partly: bool = False
    sparse: bool = False


def records() -> list[dict[str, Any]]:
    return [
        tiny_table.record(f"row {run.key}", 0, 50.25 + place, key=run.key, value=50.25 + place, duration=1.5)
        for place, run in enumerate(RUNS)
    ]


def checkpoint(folder: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    weights = {"0.weight": torch.randn(16, 64, generator=generator), "0.bias": torch.randn(16, generator=generator)}
    state = {"step": torch.tensor(32.0), "exp_avg": torch.randn(16, 64, generator=generator)}
    WholeFiles().save_checkpoint({"epoch": 3, "state_dict": weights, "optimizer_states": [state]}, folder / "last.ckpt")
    return folder / "last.ckpt"


def plain(value: Any) -> Any:
    """Tensors and arrays as what ``==`` compares."""
    if isinstance(value, torch.Tensor | np.ndarray):
        return (str(value.dtype), tuple(value.shape), np.asarray(value).tobytes())
    if isinstance(value, dict):
        return {name: plain(item) for name, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def load_checkpoint(path: Path) -> Any:
    return plain(WholeFiles().load_checkpoint(path, map_location="cpu", weights_only=True))


def sealed_anew(path: Path) -> Any:
    """A checkpoint of somebody who has made the checksum fit: it may hold anything, and do no harm."""
    content = path.read_bytes()
    end = content.rfind(b"PK\5\6")
    path.write_bytes(content[: end + 22] if end >= 0 else content)
    with suppress(zipfile.BadZipFile):  # what is no zip file at all needs no checksum
        if zipfile.is_zipfile(path):
            checkpoints._seal(path)
    return load_checkpoint(path)


def document(folder: Path) -> Path:
    cells = [{"row": "a", "column": "accuracy", "mean": 50.25, "keys": ["a"]}]
    content = {"format": result.FORMAT, "name": "made-up", "command": "bpfree table made-up", "title": "Made up"}
    return result.write(content | {"tables": {"full": cells}, "records": records()}, folder)


def cost(folder: Path) -> Path:
    scales = {"full": {"runs": 3, "hours": 1.25, "rows": [{"label": "a", "bytes": 1234.0}]}}
    return write_json(folder / "made-up-cost.json", {"format": result.COST_FORMAT, "name": "made-up", "scales": scales})


def own(path: Path, name: str) -> Any:
    """What is read of a recipe's own file; every caller refuses one that is somebody else's, by name."""
    found = result.of_format(path, name, own=True)
    if found is None:
        raise WriteError(f"{path} is no such file of bpfree's.")
    return found


def ledger(folder: Path) -> Path:
    found = Ledger(str(folder / "ledger.db"), "made up")
    found.adopt({record["key"]: record for record in records()})
    found._storage.engine.dispose()
    return folder / "ledger.db"


# Optuna's scripts of migrations, which it would load again for every ledger: half the time that opening one takes.
pyfiles.load_module_py = functools.cache(pyfiles.load_module_py)


def read_ledger(path: Path) -> Any:
    """The records; one may be missing if that was said."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = Ledger(str(path), "made up")
        state = found.state(RUNS)
        found._storage.engine.dispose()
    named = sum(issubclass(warning.category, BpfreeWarning) for warning in said)
    missing = {run.key for run in RUNS} - set(state.records)
    if len(missing) > named:
        raise AssertionError(f"records {sorted(missing)} are missing, and nothing was said")
    return state.records


def idx(folder: Path) -> Path:
    content = b"\0\0\x08\3" + struct.pack(">3I", 20, 28, 28) + bytes(i * 7 % 256 for i in range(20 * 784))
    path = folder / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(content, mtime=0))
    return path


class Anything(str):
    """A checksum that every file has."""

    __slots__ = ()
    __hash__ = str.__hash__

    def __eq__(self, _: object) -> bool:
        return True

    def __ne__(self, _: object) -> bool:
        return False


def read_idx(path: Path) -> Any:
    # Of a published file the checksum would be known: here what is behind it is reached as well.
    anything = Anything()
    content, _ = _verified(path, Original(anything, anything))
    return plain(parse_idx(content, str(path)))


def packed_anew(read: Callable[[Path], Any], path: Path) -> Any:
    """Read what was altered inside a gzip file, which carries the right checksum all the same."""
    path.write_bytes(gzip.compress(path.read_bytes(), mtime=0))
    return read(path)


def unpacked(make: Callable[[Path], Path], folder: Path) -> Path:
    """Make a gzip file, and put its content in its place, to be altered."""
    path = make(folder)
    path.write_bytes(gzip.decompress(path.read_bytes()))
    return path


def batch(folder: Path, protocol: int = 3) -> Path:
    pixels = np.arange(4 * 3072, dtype=np.uint8).reshape(4, 3072)
    path = folder / "data_batch_1"
    path.write_bytes(pickle.dumps({"data": pixels, "labels": [1, 2, 3, 4], "batch_label": "made up"}, protocol))
    return path


def matrix(folder: Path) -> Path:
    path = folder / CORA.file("x")
    path.write_bytes(pickle.dumps(csr_matrix(np.eye(12, 30, dtype=np.float32)), 3))
    return path


def neighbours(folder: Path) -> Path:
    path = folder / CORA.file("graph")
    path.write_bytes(pickle.dumps({node: [(node + 1) % 40, (node + 7) % 40] for node in range(40)}, 2))
    return path


def read_matrix(path: Path) -> Any:
    found = unpickled(path.read_bytes(), str(path), NUMBERS)
    return plain(vars(found)) if hasattr(found, "indptr") else type(found).__name__


def read_neighbours(path: Path) -> Any:
    found = unpickled(path.read_bytes(), str(path), NUMBERS)
    if isinstance(found, dict) and _neighbours(found):
        return sum(map(len, found.values()))
    return type(found).__name__


def index(folder: Path) -> Path:
    path = folder / CORA.file("test.index")
    path.write_text("\n".join(map(str, range(1708, 1750))))
    return path


def text(folder: Path, packed: bool = True) -> Path:
    content = "\n".join(f"line {number} of a text that is made up" for number in range(200)).encode()
    path = folder / ("train.txt.gz" if packed else "train.txt")
    path.write_bytes(gzip.compress(content, mtime=0) if packed else content)
    return path


def image(folder: Path, name: str) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(folder / name)
    return folder / name


def chunks_anew(path: Path) -> Any:
    """Read a PNG whose chunks have the right checksums all the same."""
    content = bytearray(path.read_bytes())
    place = 8
    while place + 12 <= len(content):
        length = int.from_bytes(content[place : place + 4], "big")
        end = place + 8 + length
        if end + 4 > len(content):
            break
        content[end : end + 4] = zlib.crc32(content[place + 4 : end]).to_bytes(4, "big")
        place = end + 4
    path.write_bytes(content)
    return plain(picture(path, 16))


def read_text(path: Path) -> Any:
    return list(lines(path))


def recipe(folder: Path) -> Path:
    return tiny_table.write(folder)


def read_recipe(path: Path) -> Any:
    return str(read(path, trust=False))


KINDS: dict[str, Kind] = {
    "checkpoint": Kind(checkpoint, load_checkpoint),
    "results": Kind(document, lambda path: own(path, result.FORMAT)),
    "cost": Kind(cost, lambda path: own(path, result.COST_FORMAT)),
    "record of a run": Kind(lambda folder: write_json(folder / "DFA-seed0.json", records()[0]), read_json),
    "ledger": Kind(ledger, read_ledger, partly=True, sparse=True),
    "checkpoint, checksum made anew": Kind(checkpoint, sealed_anew, sealed=False),
    "idx.gz": Kind(idx, read_idx, sealed=False),
    "idx.gz, packed anew": Kind(partial(unpacked, idx), partial(packed_anew, read_idx), sealed=False),
    "CIFAR's pickle, protocol 3": Kind(batch, lambda path: plain(parse_pickle(path.read_bytes(), str(path))), False),
    "CIFAR's pickle, protocol 5": Kind(
        lambda folder: batch(folder, 5), lambda path: plain(parse_pickle(path.read_bytes(), str(path))), False
    ),
    "Planetoid's matrix": Kind(matrix, read_matrix, False),
    "Planetoid's graph": Kind(neighbours, read_neighbours, False),
    "Planetoid's test.index": Kind(index, lambda path: plain(_indices(path, path.read_bytes())), False),
    "txt.gz": Kind(text, read_text, False),
    "txt.gz, packed anew": Kind(partial(unpacked, text), partial(packed_anew, read_text), False),
    "txt": Kind(lambda folder: text(folder, packed=False), read_text, False),
    "png": Kind(lambda folder: image(folder, "a.png"), lambda path: plain(picture(path, 16)), False),
    "png, checksums made anew": Kind(lambda folder: image(folder, "a.png"), chunks_anew, False),
    "jpg": Kind(lambda folder: image(folder, "a.jpg"), lambda path: plain(picture(path, 16)), False),
    "recipe": Kind(recipe, read_recipe, False),
}
"""Name -> kind."""
