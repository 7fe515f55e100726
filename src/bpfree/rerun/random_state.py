"""The global random state: that of torch, and those of Python and numpy, from which models draw too."""

from __future__ import annotations

import ctypes
import pickle
import random
import struct
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

_WORDS = 624
_PYTHON, _NUMPY = struct.Struct(f"=i{_WORDS}I"), struct.Struct(f"={_WORDS}Ii")
"""The layout of a Mersenne twister's state in memory. To ask Python or numpy for it takes as long as a small model."""


@dataclass(frozen=True)
class RandomState:
    """The global random state at one moment, of the CPU and of the accelerators that a model is on.

    Attributes:
        cpu: The state of torch's generator on the CPU.
        accelerators: The state of torch's generator on every accelerator.
        others: The states of Python's and numpy's generators.
    """

    cpu: Tensor
    accelerators: tuple[tuple[torch.device, Tensor], ...]
    others: tuple[tuple[Twister, Any], ...]

    @classmethod
    def now(cls, *modules: nn.Module) -> RandomState:
        """Return the state now, with that of the accelerators that ``modules`` are on."""
        devices = _accelerators(modules)
        states = [(device, torch.get_device_module(device).get_rng_state(device)) for device in devices]
        return cls(torch.get_rng_state(), tuple(states), tuple((other, other.now()) for other in _others()))

    def is_same(self, other: RandomState) -> bool:
        """Return whether no random number was drawn between this moment and the other one."""
        ours, theirs = ([one.cpu, *(state for _, state in one.accelerators)] for one in (self, other))
        drawn = zip(self.others, other.others, strict=False)
        return all(map(torch.equal, ours, theirs)) and all(now[0] == then[0] for (_, now), (_, then) in drawn)

    def restore(self) -> None:
        """Set the global random state to this one."""
        torch.set_rng_state(self.cpu)
        for device, state in self.accelerators:
            torch.get_device_module(device).set_rng_state(state, device)
        for other, kept in self.others:
            other.restore(kept)


def _accelerators(modules: Sequence[nn.Module]) -> list[torch.device]:
    if not torch.accelerator.is_available():  # saves every step a loop over the model's tensors
        return []
    devices = {tensor.device for module in modules for tensor in (*module.parameters(), *module.buffers())}
    return [device for device in devices if device.type not in ("cpu", "meta")]


class Twister(ABC):
    """A global Mersenne twister outside torch. If its place in memory is known, the state is read from there."""

    @abstractmethod
    def now(self) -> Any:
        """Return its state; two states can be compared."""

    @abstractmethod
    def put(self, kept: Any) -> None:
        """Set this state."""

    def restore(self, kept: Any) -> None:
        """Set this state, if it has another one."""
        if self.now() != kept:
            self.put(kept)


def _view(address: int) -> Any:
    return (ctypes.c_char * _PYTHON.size).from_address(address)


class PythonsTwister(Twister):
    """The generator of Python's ``random``."""

    def __init__(self) -> None:
        self._generator: Any = random._inst
        self._seen = _view(id(self._generator) + object.__basicsize__) if self._lies_as_known() else None

    @staticmethod
    def _lies_as_known() -> bool:
        size = random.Random.__basicsize__ - object.__basicsize__
        if sys.implementation.name != "cpython" or size < _PYTHON.size:
            return False
        trial = random.Random(5)
        _, (*words, index), _ = trial.getstate()
        return bool(_view(id(trial) + object.__basicsize__).raw == _PYTHON.pack(index, *words))

    def now(self) -> Any:
        """Return its state; two states can be compared."""
        return random.getstate() if self._seen is None else (self._seen.raw, self._generator.gauss_next)

    def put(self, kept: Any) -> None:
        """Set this state."""
        if self._seen is not None:
            index, *words = _PYTHON.unpack(kept[0])
            kept = (random.Random.VERSION, (*words, index), kept[1])
        random.setstate(kept)


class NumpysTwister(Twister):
    """The global generator of numpy."""

    def __init__(self, drawn: Any) -> None:
        self._drawn, self._bits, self._seen = drawn, drawn.get_bit_generator(), None
        # The second number of a normal pair lies elsewhere: it is asked for at first, and if passes draw from numpy.
        self._asked, self._is_drawn_from = 0, False
        self._left: tuple[bytes, bytes] = b"", b""
        state = drawn.get_state(legacy=False)
        if state["bit_generator"] == "MT19937":
            seen, inner = _view(self._bits.ctypes.state_address), state["state"]
            self._seen = seen if seen.raw == _NUMPY.pack(*inner["key"].tolist(), inner["pos"]) else None

    def is_of(self, drawn: Any) -> bool:
        """Return whether this is the generator that numpy draws from now."""
        return drawn.get_bit_generator() is self._bits

    def now(self) -> Any:
        """Return its state; two states can be compared."""
        seen = b"" if self._seen is None else self._seen.raw
        self._asked += 1
        whole = not seen or self._is_drawn_from or self._asked <= 2
        return seen, self._whole() if whole else b""

    def _whole(self) -> bytes:
        return pickle.dumps(self._drawn.get_state(legacy=False))

    def put(self, kept: Any) -> None:
        """Set this state."""
        seen, whole = kept
        left, known = self._left
        self._is_drawn_from = True
        self._left = (b"" if self._seen is None else self._seen.raw), self._whole()
        whole = whole or (known if seen == left else b"")
        if whole:
            self._drawn.set_state(pickle.loads(whole))
            return
        *key, pos = _NUMPY.unpack(seen)
        self._drawn.set_state({"bit_generator": "MT19937", "state": {"key": key, "pos": pos}})

    def restore(self, kept: Any) -> None:
        """Set this state, if it has another one."""
        if not kept[0] or kept[0] != self.now()[0]:
            self.put(kept)


@cache
def _of_python() -> PythonsTwister:
    return PythonsTwister()


_OF_NUMPY: list[NumpysTwister] = []


def _others() -> list[Twister]:
    drawn: Any = sys.modules.get("numpy.random")
    if drawn is None:
        return [_of_python()]
    if not _OF_NUMPY or not _OF_NUMPY[0].is_of(drawn):
        _OF_NUMPY[:] = [NumpysTwister(drawn)]
    return [_of_python(), _OF_NUMPY[0]]
