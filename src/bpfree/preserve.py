"""Running a model without leaving a trace: what forward passes change is put back."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from bpfree.errors import UnsupportedLayerError
from bpfree.operands import Operands
from bpfree.state import LateBuffers

Buffers: TypeAlias = Mapping[tuple[nn.Module, str], "Tensor | None"]
"""Buffers, also those that have no tensor yet, by the module that owns them and their names there."""


def _buffers_of(owners: Iterable[nn.Module]) -> Buffers:
    return {(owner, name): buffer for owner in owners for name, buffer in owner._buffers.items()}


def _copied(buffers: Buffers) -> Buffers:
    """Copies of the tensors; one for a tensor that has several names."""
    copies: dict[Tensor, Tensor] = {}
    for (owner, name), buffer in buffers.items():
        if buffer is None or buffer in copies:
            continue
        if is_lazy(buffer):
            raise UnsupportedLayerError(
                f"{name!r} of {type(owner).__name__} has no shape yet: run the model once before bpfree.attach()."
            )
        copies[buffer] = buffer.clone()
    return {place: None if buffer is None else copies[buffer] for place, buffer in buffers.items()}


@contextmanager
def preserved(*modules: nn.Module, within: Buffers | None = None) -> Generator[None]:
    """Put back, on leaving, the buffers and counters of ``modules`` and the global random state.

    Copies of the buffers stand in for them, so that graphs which hold the originals stay valid.

    Args:
        modules: What is to be left without a trace.
        within: Values that buffers have in this context, in place of those that they have now.
    """
    places = _buffers_of(_each(modules))
    counters = [(owner, dict(owner.numbers)) for owner in _each(modules) if isinstance(owner, LateBuffers)]
    random = RandomState.now(*modules)
    try:
        for (owner, name), copy in _copied({**places, **(within or {})}).items():
            setattr(owner, name, copy)
        yield
    finally:
        for (owner, name), buffer in places.items():
            setattr(owner, name, buffer)
        for owner, numbers in counters:
            owner.numbers.clear()
            owner.numbers.update(numbers)
        random.restore()


def _each(modules: tuple[nn.Module, ...]) -> Iterator[nn.Module]:
    return (owner for module in modules for owner in module.modules())


@dataclass(frozen=True)
class RandomState:
    """The global random state at one moment, of the CPU and of the accelerators that a model is on."""

    cpu: Tensor
    accelerators: tuple[tuple[torch.device, Tensor], ...]

    @classmethod
    def now(cls, *modules: nn.Module) -> RandomState:
        """Keep it."""
        devices = _accelerators(modules)
        states = [(device, torch.get_device_module(device).get_rng_state(device)) for device in devices]
        return cls(torch.get_rng_state(), tuple(states))

    def restore(self) -> None:
        """Put it back."""
        torch.set_rng_state(self.cpu)
        for device, state in self.accelerators:
            torch.get_device_module(device).set_rng_state(state, device)


def _accelerators(modules: tuple[nn.Module, ...]) -> list[torch.device]:
    if not torch.accelerator.is_available():  # spares every step a walk through the model
        return []
    devices = {tensor.device for module in modules for tensor in (*module.parameters(), *module.buffers())}
    return [device for device in devices if device.type not in ("cpu", "meta")]


@dataclass(frozen=True)
class Autocast:
    """Which precisions operations run in at one moment.

    Attributes:
        kinds: Device type -> whether autocast is on, and its precision.
        cached: Whether it keeps converted weights.
    """

    kinds: Mapping[str, tuple[bool, torch.dtype]]
    cached: bool

    @classmethod
    def now(cls, kinds: Iterable[str]) -> Autocast:
        """Keep it for these types of devices."""
        found = {kind: (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds}
        return cls(found, torch.is_autocast_cache_enabled())

    @contextmanager
    def restored(self) -> Generator[None]:
        """Within this context it is as it was."""
        with ExitStack() as stack:
            for kind, (enabled, dtype) in self.kinds.items():
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=self.cached))
            yield


@dataclass(frozen=True)
class Surroundings:
    """What a forward pass finds when it begins, so that the model can run a second time as it did the first.

    Attributes:
        random: The random state.
        autocast: The precisions.
        buffers: Copies of the buffers: statistics and counters that a pass reads may move in it.
        operands: Its arguments and weights.
    """

    random: RandomState
    autocast: Autocast
    buffers: Buffers
    operands: Operands

    @classmethod
    def now(cls, model: nn.Module, parts: Sequence[nn.Module], arguments: Any) -> Surroundings:
        """Keep them for ``model``, whose modules are ``parts``: to walk through it costs a small one's forward pass."""
        random = RandomState.now(model)
        autocast = Autocast.now({"cpu", *(device.type for device, _ in random.accelerators)})
        return cls(random, autocast, _copied(_buffers_of(parts)), Operands.now(arguments, parts))

    @contextmanager
    def restored(self, model: nn.Module) -> Generator[None]:
        """Within this context a pass runs as the first one did, with a graph and without a trace in ``model``.

        Raises:
            SecondRunError: Its arguments or weights are not those of the first, or this pass has changed them.
        """
        self.operands.check(model)
        with preserved(model, within=self.buffers), torch.enable_grad(), self.autocast.restored():
            self.random.restore()
            yield
        self.operands.check(model)
