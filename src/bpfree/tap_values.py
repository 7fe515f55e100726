"""The tensor in a tap's output that receives the signal: taken from a tuple, list, dictionary or object."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from torch import Tensor

from bpfree.containers import parts_of, tensors_in, with_parts
from bpfree.errors import TapOutputError

Key: TypeAlias = "int | str | tuple[int | str, ...] | None"
"""The place of one tensor in an output: an index, a key or a field's name, a path of these, or None.

None is the first floating point tensor, found depth first. ``1`` is the second value of a tuple, ``"hidden"`` a
dictionary's entry or an object's field, ``(1, 0)`` the first value of the tuple that comes second (an LSTM's last h).
"""


def take(output: Any, key: Key, name: str) -> Tensor:
    """Return the tensor at ``key`` of what the tap ``name`` returned; ``output`` itself where that is the tensor.

    Raises:
        TapOutputError: There is no floating point tensor at ``key``, or, for None, in the whole output.
    """
    if key is None and isinstance(output, Tensor) and output.is_floating_point():
        return output
    found = _follow(output, _path(output, key, name), name)
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise TapOutputError(
            f"the output of tap {name!r} has {_text(found)} at {key!r}; a tap needs a floating point tensor. "
            f"{_valid(output)}"
        )
    return found


def told_of_several(output: Any, key: Key, name: str) -> str:
    """Return what an error about a tap's shape adds: which tensor was taken. Nothing where there is no other."""
    taken = take(output, key, name)
    places = [(path, value) for path, value in tensors_in(output) if value.is_floating_point()]
    here = [_as_key(path) for path, value in places if value is taken]
    others = [_as_key(path) for path, value in places if value is not taken]
    if not here or not others:
        return ""
    return (
        f" {name!r} hands on a {type(output).__name__}, of which the tensor at {here[0]!r} was taken: "
        f"taps={{{name!r}: {others[0]!r}}} takes another."
    )


def put(output: Any, key: Key, tensor: Tensor) -> Any:
    """Return ``output`` with ``tensor`` in the place of the one that :func:`take` found at the same ``key``.

    Tuples, lists, dictionaries and objects are copied one level deep along the path to it: whoever else holds
    ``output`` sees no change. All other values are the same objects as before. The tensors among them keep their graph:
    an LSTM's last states (h, c), a spiking cell's membrane potential, a block's attention weights or position bias.
    Their gradients flow into the tap's own segment as in backpropagation, and no further down.
    """
    if key is None and isinstance(output, Tensor):
        return tensor
    return _replaced(output, _path(output, key, ""), tensor)


def _path(output: Any, key: Key, name: str) -> tuple[int | str, ...]:
    """Return the path from ``output`` to the tensor."""
    if key is not None:
        return key if isinstance(key, tuple) else (key,)
    first = next((path for path, value in tensors_in(output) if value.is_floating_point()), None)
    if first is None:
        raise TapOutputError(
            f"the output of tap {name!r} is {_text(output)}; a tap needs a floating point tensor. Choose a module "
            "inside it, or put a bpfree.Tap() where the tensor is."
        )
    return first


def _follow(output: Any, path: tuple[int | str, ...], name: str) -> Any:
    for step in path:
        try:
            value = _value(output, step)
        except (LookupError, AttributeError, TypeError):
            raise TapOutputError(
                f"the output of tap {name!r} has nothing at {step!r}: {_text(output)} is there. {_valid(output)}"
            ) from None
        output = value
    return output


def _value(output: Any, step: int | str) -> Any:
    if isinstance(output, Tensor):
        raise TypeError("a tensor's rows are no parts of an output")
    # Some libraries' dictionaries are tuples and objects as well: `output[0]`, `output["hidden"]`, `output.hidden`.
    if isinstance(output, Mapping | tuple | list) and not _is_field(output, step):
        return output[step]  # type: ignore[index]
    return getattr(output, str(step))


def _is_field(output: Any, step: int | str) -> bool:
    """Return whether ``step`` names a field of a named tuple."""
    return isinstance(output, tuple) and isinstance(step, str)


def _replaced(output: Any, path: tuple[int | str, ...], tensor: Tensor) -> Any:
    if not path:
        return tensor
    step, *rest = path
    value = _replaced(_value(output, step), tuple(rest), tensor)
    return with_parts(output, {_key_of(output, step): value})


def _key_of(output: Any, step: int | str) -> Any:
    """Return the key of the part that ``step`` means: tuples count from the end too, dictionaries have positions."""
    keys = parts_of(output)
    return list(keys)[step] if isinstance(step, int) and step not in keys else step


def _as_key(path: tuple[Any, ...]) -> Any:
    """Return a path as ``taps=`` takes it."""
    return path[0] if len(path) == 1 else path


def _text(value: Any) -> str:
    return f"a tensor of {value.dtype}" if isinstance(value, Tensor) else f"of type {type(value).__name__}"


def _valid(output: Any) -> str:
    """Return a sentence on the places of floating point tensors."""
    places = [path for path, value in tensors_in(output) if value.is_floating_point() and path]
    if not places:
        return "Leave the key out." if isinstance(output, Tensor) else "There is none in this output."
    shown = ", ".join(repr(_as_key(path)) for path in places)
    return f"There are floating point tensors at: {shown}."
