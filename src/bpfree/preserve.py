"""Running a model without leaving a trace: what forward passes change is put back."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bpfree.state import LateBuffers


@contextmanager
def preserved(*modules: nn.Module) -> Generator[None]:
    """Put back, on leaving, the buffers and counters of ``modules`` and the global random state.

    Copies of the buffers stand in for them, so that graphs which hold the originals stay valid.
    """
    places = [(owner, name, buffer) for owner in _each(modules) for name, buffer in owner.named_buffers(recurse=False)]
    counters = [(owner, dict(owner.numbers)) for owner in _each(modules) if isinstance(owner, LateBuffers)]
    random = RandomState.now(*modules)
    try:
        for owner, name, buffer in places:
            setattr(owner, name, buffer.clone())
        yield
    finally:
        for owner, name, buffer in places:
            setattr(owner, name, buffer)
        for owner, numbers in counters:
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
    devices = {tensor.device for module in modules for tensor in (*module.parameters(), *module.buffers())}
    return [device for device in devices if device.type not in ("cpu", "meta")]
