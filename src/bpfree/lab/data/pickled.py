"""Pickled numbers, texts, lists, dictionaries and arrays of numbers, read without running anything that they name.

A pickle names the functions that rebuild its objects, and any function may be named. Here the few names of numpy
and scipy that an array or a sparse matrix needs lead to stand-ins, which keep the array's bytes, and every other name
is refused: of numpy itself nothing is called before the bytes are known, whichever version or Python wrote the file.
What a file asks for in memory is counted before anything of it is made.
"""

from __future__ import annotations

import io
import pickle
import pickletools
from collections.abc import Collection
from typing import Any

import numpy as np

from bpfree.lab.disk.bounded import allowed
from bpfree.lab.errors import DataError

BYTES = ("u1",)
NUMBERS = ("f4", "f8", "i4", "i8")


def parse_pickle(content: bytes, name: str) -> dict[str, Any]:
    """Return the dictionary in ``content``; arrays are uint8 and may be written to.

    Pickles of Python 2, whose texts are bytes, and of Python 3 give the same.

    Args:
        content: The file's bytes.
        name: The name of the file in messages.

    Raises:
        DataError: No complete pickle, no dictionary, or something in it that is neither plain nor an array of bytes.
    """
    value = unpickled(content, name, BYTES)
    if not isinstance(value, dict):
        raise _not_read(name, f"it holds a {type(value).__name__} in place of a dictionary")
    return {_text(key): entry for key, entry in value.items()}


def unpickled(content: bytes, name: str, kinds: Collection[str]) -> Any:
    """Return the value in ``content``: plain, an array, or a dictionary of these; a sparse matrix as :class:`Csr`.

    Args:
        content: The file's bytes.
        name: The name of the file in messages.
        kinds: numpy's codes of the types that arrays may have.

    Raises:
        DataError: No complete pickle, or something in it that is neither plain nor an array of these types.
    """
    try:
        _check(content)
        # As bytes: the texts of Python 2 are those, and so are its arrays, which no text encoding must touch.
        value = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        found = {key: _made(entry, kinds) for key, entry in value.items()} if isinstance(value, dict) else value
        found = _made(found, kinds)
        if _size(found) > len(content):  # one array's bytes may be named many times
            raise DataError("its arrays are larger than the file")
        return found
    except DataError as error:
        raise _not_read(name, str(error)) from error
    # Damaged bytes are other instructions, and these may fail in any way, for want of memory too.
    except Exception as error:
        raise DataError(f"{name} is truncated or altered ({error}). Fetch the original file again.") from error


_OBJECT = 256  # bytes that an instruction of a pickle may take, beside those of a text or number in it
_MEMO = ("PUT", "BINPUT", "LONG_BINPUT")


def _check(content: bytes) -> None:
    """Count what the instructions of a pickle ask for.

    Raises:
        DataError: It is more than is allowed to a file of this size.
        ValueError: They are no pickle's, or break off.
    """
    most = allowed(len(content)) // _OBJECT
    for number, (instruction, argument, _) in enumerate(pickletools.genops(content)):
        if number > most:
            raise DataError("it holds more values than a data set of its size")
        # A place in the list of what was read: the list is made as long as the highest one needs.
        if instruction.name in _MEMO and argument is not None and not 0 <= argument <= number:
            raise DataError(f"it asks for a list of {argument:,} entries")


def _size(value: Any) -> int:
    """Return the bytes of the arrays in a value."""
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    if isinstance(value, Csr):
        return sum(array.nbytes for array in (value.indptr, value.indices, value.data))
    return value.nbytes if isinstance(value, np.ndarray) else 0


def _not_read(name: str, why: str) -> DataError:
    return DataError(f"{name}: {why}. Fetch the original file again.")


def _made(value: Any, kinds: Collection[str]) -> Any:
    return value.made(kinds) if isinstance(value, _Array | Csr) else value


def _text(value: object) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


class _Type:
    """Stands for ``numpy.dtype``."""

    def __init__(self, code: bytes | str, *_: object) -> None:
        self.code = _text(code)
        self.order = "="

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = _text(state[1])


class _Array:
    """Stands for an array that is made empty and then told its content, as numpy has pickled arrays since Python 2."""

    made_before = False

    def __init__(self, *_: object) -> None:
        self.parts: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_columns, content = state
        self.parts = (content, kind, shape, "F" if by_columns else "C")

    def made(self, kinds: Collection[str]) -> np.ndarray:
        """Make the array that this stands for."""
        content, kind, shape, order = self.parts
        if self.made_before:
            raise DataError("it names an array twice")
        self.made_before = True
        if kind.code not in kinds:
            wanted = "bytes (u1)" if kinds == BYTES else f"numbers ({', '.join(kinds)})"
            raise DataError(f"it holds an array of type {kind.code} in place of {wanted}")
        found = np.frombuffer(content, np.dtype(kind.code).newbyteorder(kind.order)).reshape(shape, order=order)
        return np.array(found, kind.code, order="C")


class _BufferArray(_Array):
    """Stands for an array that is made from its content, as protocol 5 has it."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts


_MOST_COLUMNS = 2**24  # a network's first layer has as many weights for each unit


class Csr:
    """Stands for scipy's compressed sparse rows.

    Attributes:
        shape: Rows and columns.
        indptr: Where each row begins in the other two.
        indices: Columns.
        data: Values.
    """

    shape: tuple[int, int]
    indptr: np.ndarray
    indices: np.ndarray
    data: np.ndarray

    def __setstate__(self, state: dict[Any, Any]) -> None:
        self.parts = {_text(name).lstrip("_"): entry for name, entry in state.items()}

    def made(self, kinds: Collection[str]) -> Csr:
        """Make its arrays, and return itself."""
        rows, columns = self.parts["shape"]
        self.shape = (int(rows), int(columns))
        self.indptr, self.indices, self.data = (self.parts[name].made(kinds) for name in ("indptr", "indices", "data"))
        ends = (int(self.indptr[0]), int(self.indptr[-1]))
        within = not len(self.indices) or 0 <= self.indices.min() <= self.indices.max() < self.shape[1]
        rising = bool((np.diff(self.indptr) >= 0).all())
        lengths = (len(self.indptr), len(self.indices)) == (self.shape[0] + 1, len(self.data))
        if self.shape[1] > _MOST_COLUMNS:
            raise DataError(f"its sparse matrix has {self.shape[1]:,} columns")
        if not lengths or ends != (0, len(self.data)) or not (within and rising):
            raise DataError(f"its sparse matrix of shape {self.shape} points at entries that it has not")
        return self


class _Dictionary(dict[Any, Any]):
    """Stands for a dictionary with a default, which is left out."""

    def __init__(self, *_: object) -> None:
        super().__init__()

    def __setstate__(self, *_: object) -> None:  # of one of them, or of the class
        raise DataError("it gives a dictionary attributes, which no such file does")


class _List:
    """Stands for what a dictionary makes by default. No file calls it."""

    def __init__(self, *_: object) -> None:
        raise DataError("it calls list, which no such file does")


_STAND_INS = {
    ("collections", "defaultdict"): _Dictionary,
    ("__builtin__", "list"): _List,
    ("builtins", "list"): _List,
    ("scipy.sparse.csr", "csr_matrix"): Csr,
    ("scipy.sparse._csr", "csr_matrix"): Csr,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    # numpy 2 has moved what pickles name.
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy.core.numeric", "_frombuffer"): _BufferArray,
    ("numpy._core.numeric", "_frombuffer"): _BufferArray,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        found = _STAND_INS.get((module_name, global_name))
        if found is None:
            raise DataError(f"it asks for {module_name}.{global_name}, which no array needs, and is not read")
        return found
