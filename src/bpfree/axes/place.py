"""The tensor of the error, or of one call of a tap, whose axes are to be told apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


def name_of_call(module: str, number: int) -> str:
    """Return the name of the call of a module that has this number, from 1: ``NAME``, ``NAME#2``, ``NAME#3``, ..."""
    return module if number == 1 else f"{module}#{number}"


def module_of_call(call: str) -> str:
    """Return the name of the module from that of one of its calls."""
    return call.partition("#")[0]


@dataclass(frozen=True)
class Place:
    """The error, or one call of a tap.

    Attributes:
        name: Its name, calls numbered.
        module: The tap module's name; of the error, ``"error"``.
        shape: The shape of its tensor.
        channel: The axis of the channels as far as it is known (:mod:`bpfree.axes.channels`).
        call: Which call of the module in this pass this is, from 0.
        calls: The number of its calls in this pass.
        note: What an error about it adds, where it is one of several tensors that the tap hands on.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    channel: int | None = None
    call: int = 0
    calls: int = 1
    note: str = ""

    @property
    def channels_at(self) -> int | None:
        """The axis of the channels, counted from the first."""
        return None if self.channel is None else self.channel % len(self.shape)

    @property
    def channels_last(self) -> bool:
        """True if the channels are known to be the last axis."""
        return self.channels_at == len(self.shape) - 1

    def positions(self, rows: Sequence[int]) -> tuple[int, ...]:
        """Return the axes that are neither these rows nor the channels: in doubt the last axis is the channels."""
        channels = len(self.shape) - 1 if self.channels_at is None else self.channels_at
        return tuple(axis for axis in range(len(self.shape)) if axis not in rows and axis != channels)

    def sizes(self, axes: Sequence[int]) -> tuple[int, ...]:
        """Return the sizes of these axes."""
        return tuple(self.shape[axis] for axis in axes)
