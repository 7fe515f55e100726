"""Running a model without leaving a trace: what forward passes change is put back."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from bpfree.state import LateBuffers


@contextmanager
def preserved(*modules: nn.Module) -> Generator[None]:
    """Put back, on leaving, the buffers and counters of ``modules`` and the global random state.

    Copies of the buffers stand in for them, so that graphs which hold the originals stay valid.
    """
    places = [(owner, name, buffer) for owner in _each(modules) for name, buffer in owner.named_buffers(recurse=False)]
    counters = [(owner, dict(owner.numbers)) for owner in _each(modules) if isinstance(owner, LateBuffers)]
    with _random_state(modules):
        try:
            for owner, name, buffer in places:
                setattr(owner, name, buffer.clone())
            yield
        finally:
            for owner, name, buffer in places:
                setattr(owner, name, buffer)
            for owner, numbers in counters:
                owner.numbers.update(numbers)


def _each(modules: tuple[nn.Module, ...]) -> Iterator[nn.Module]:
    return (owner for module in modules for owner in module.modules())


@contextmanager
def _random_state(modules: tuple[nn.Module, ...]) -> Generator[None]:
    devices = {tensor.device for module in modules for tensor in (*module.parameters(), *module.buffers())}
    accelerators = [device for device in devices if device.type not in ("cpu", "meta")]
    kind = accelerators[0].type if accelerators else "cuda"
    with torch.random.fork_rng([device.index for device in accelerators], device_type=kind):
        yield
