"""Files of tensors with a checksum over every byte, in the safetensors format: nothing is unpickled.

A file is the length of its header (8 bytes), the header (JSON), and the tensors' bytes. The last two tensors are ours:
``sha256``, of all bytes before it, and ``save``, which the files of one checkpoint have in common. The checksum is
compared before the header is looked at; no header makes more room than the file's own bytes fill.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import os
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from bpfree.errors import CheckpointError

MOST_HEADER = 8 * 2**20
"""The longest header, in bytes: as objects of Python it takes some 25 times as much."""

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_DIGEST = hashlib.sha256().digest_size
_SEAL = {name: torch.empty(_DIGEST, dtype=torch.uint8) for name in ("sha256", "save")}
_CHUNK = 2**20
_MOST_DIMS = 64


def write_tensors(file: BinaryIO, tensors: Mapping[str, Tensor], note: str) -> bytes:
    """Write everything but the last two tensors; return the checksum.

    Args:
        file: Where to.
        tensors: Plain tensors by name.
        note: A text that is kept beside them.

    Raises:
        CheckpointError: There is no code for a tensor's dtype, or there are too many entries.
    """
    # The widest first: every tensor then lies at a multiple of its own numbers' size.
    ordered = dict(sorted(tensors.items(), key=lambda entry: -entry[1].element_size()))
    checksum = hashlib.sha256()
    for piece in chain([_header({**ordered, **_SEAL}, note)], map(_bytes, ordered.values())):
        checksum.update(piece)
        file.write(piece)
    return checksum.digest()


def write_seal(file: BinaryIO, checksum: bytes, save: bytes) -> None:
    """Write the last two tensors, and wait until all bytes are on the disk."""
    file.write(checksum + save)
    file.flush()
    os.fsync(file.fileno())


def read_seal(path: Path) -> tuple[bytes, bytes]:
    """Return the checksum of a file, which was compared with its bytes, and what it has in common with others.

    Raises:
        CheckpointError: The file is damaged, or not a file of tensors.
    """
    with path.open("rb") as file:
        rest = os.fstat(file.fileno()).st_size - 2 * _DIGEST
        checksum = hashlib.sha256()
        while rest > 0 and (piece := file.read(min(rest, _CHUNK))):
            checksum.update(piece)
            rest -= len(piece)
        told, save = file.read(_DIGEST), file.read(_DIGEST)
    if rest or told != checksum.digest():
        raise CheckpointError(f"{path}: its checksum is not that of its bytes")
    return told, save


def read_tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a file whose checksum was compared, and the note beside them.

    Raises:
        CheckpointError: What the checksum is of is no file of tensors.
    """
    with path.open("rb") as file:
        try:
            return _read(file)
        except (ValueError, TypeError, LookupError, AttributeError, RuntimeError, RecursionError) as strange:
            raise CheckpointError(f"{path} was not written by save_checkpoint ({strange}).") from strange


def _header(tensors: Mapping[str, Tensor], note: str) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"bpfree": note}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        if tensor.dtype not in _CODES:
            raise CheckpointError(f"{name!r} is a tensor of {tensor.dtype}, which no checkpoint can hold. Convert it.")
        entries[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    if len(text) > MOST_HEADER:
        raise CheckpointError(
            f"the names and shapes of {len(tensors)} tensors are a header of {len(text)} bytes, and a checkpoint's has "
            f"at most {MOST_HEADER}. Save fewer parts, or in several folders."
        )
    return len(text).to_bytes(8, "little") + text


def _read(file: BinaryIO) -> tuple[dict[str, Tensor], str]:
    length = int.from_bytes(file.read(8), "little")
    if length > MOST_HEADER:
        raise ValueError(f"a header of {length} bytes")
    entries = json.loads(file.read(length))
    note = entries.pop("__metadata__")["bpfree"]
    room = os.fstat(file.fileno()).st_size - 8 - length
    end = 0
    for name, entry in entries.items():
        begin, end = end, end + _size(entry)
        if entry["data_offsets"] != [begin, end]:
            raise ValueError(f"{name!r} does not lie behind the tensor before it")
    if end != room:
        raise ValueError(f"{room} bytes follow where {end} are told")
    tensors = {name: torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]]) for name, entry in entries.items()}
    for tensor in tensors.values():
        file.readinto(_bytes(tensor))  # type: ignore[attr-defined]
    return {name: tensor for name, tensor in tensors.items() if name not in _SEAL}, note


def _size(entry: Any) -> int:
    shape: list[int] = entry["shape"]
    if len(shape) > _MOST_DIMS or not all(type(size) is int and size >= 0 for size in shape):
        raise ValueError("a shape that no tensor has")
    dtype = _DTYPES[entry["dtype"]]
    return math.prod(shape) * dtype.itemsize


def _bytes(tensor: Tensor) -> Any:
    """Return the bytes of a tensor; those of a contiguous one on the CPU are its own."""
    plain = tensor.cpu().contiguous()
    array: Any = (ctypes.c_char * (plain.numel() * plain.element_size())).from_address(plain.data_ptr())
    array.owner = plain
    return array
