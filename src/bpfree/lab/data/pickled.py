"""Pickled dictionaries of numbers, texts and numpy arrays of bytes, read without running anything that they name.

A pickle names the functions that rebuild its objects, and any function may be named. Here the few names of numpy
that an array needs lead to stand-ins, which keep the array's bytes, and every other name is refused: of numpy
itself nothing is called before the bytes are known, whichever version or Python wrote the file.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

from bpfree.lab.errors import DataError


def parse_pickle(content: bytes, name: str) -> dict[str, Any]:
    """The dictionary in ``content``; arrays are uint8 and may be written to.

    Pickles of Python 2, whose texts are bytes, and of Python 3 give the same.

    Args:
        content: The file's bytes.
        name: How to call the file in messages.

    Raises:
        DataError: No complete pickle, no dictionary, or something in it that is neither plain nor an array of bytes.
    """
    try:
        # As bytes: the texts of Python 2 are those, and so are its arrays, which no text encoding must touch.
        value = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        if not isinstance(value, dict):
            raise DataError(f"it holds a {type(value).__name__} in place of a dictionary")
        return {_text(key): entry.array() if isinstance(entry, _Array) else entry for key, entry in value.items()}
    except DataError as error:
        raise DataError(f"{name}: {error}. Fetch the original file again.") from error
    # Damaged bytes are other instructions, and these may fail in any way.
    except Exception as error:
        raise DataError(f"{name} is truncated or altered ({error}). Fetch the original file again.") from error


def _text(value: object) -> str:
    return value.decode("latin1") if isinstance(value, bytes) else str(value)


class _Type:
    """Stands for ``numpy.dtype``."""

    def __init__(self, code: bytes | str, *_: object) -> None:
        self.code = _text(code)

    def __setstate__(self, state: object) -> None:
        """Byte order and the like mean nothing for single bytes."""


class _Array:
    """Stands for an array that is made empty and then told its content, as numpy has pickled arrays since Python 2."""

    def __init__(self, *_: object) -> None:
        self.parts: tuple[Any, ...] = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, kind, by_columns, content = state
        self.parts = (content, kind, shape, "F" if by_columns else "C")

    def array(self) -> np.ndarray:
        """The array that this stands for."""
        content, kind, shape, order = self.parts
        if kind.code != "u1":
            raise DataError(f"it holds an array of type {kind.code} in place of bytes (u1)")
        return np.array(np.frombuffer(content, np.uint8).reshape(shape, order=order), order="C")


class _BufferArray(_Array):
    """Stands for an array that is made from its content, as protocol 5 has it."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts


_STAND_INS = {
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
            raise DataError(f"it asks for {module_name}.{global_name}, which no array of bytes needs, and is not read")
        return found
