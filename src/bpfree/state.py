"""State that exists only after the first forward pass, and still saves and loads like any other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from bpfree.errors import StateError


class LateBuffers(nn.Module):
    """Named tensors that are drawn when their shapes are known.

    They are buffers: they move with ``.to()``, are saved by ``state_dict()``, and loading them before the first
    forward pass creates them. Names may hold dots, as modules' names do. ``numbers`` are integers saved beside
    them (seeds, counters), read without asking a device.
    """

    def __init__(self, **numbers: int) -> None:
        super().__init__()
        self.numbers = numbers

    def __contains__(self, name: str) -> bool:
        return _key(name) in self._buffers

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._buffers.get(_key(name))
        if tensor is None:
            raise KeyError(f"nothing is stored for {name!r}; there are: {', '.join(self) or 'none yet'}")
        return tensor

    def __setitem__(self, name: str, tensor: Tensor) -> None:
        self.register_buffer(_key(name), tensor)

    def __iter__(self) -> Iterator[str]:
        return (key.replace("/", ".") for key in self._buffers)

    def __len__(self) -> int:
        return len(self._buffers)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: torch.tensor(value) for name, value in self.numbers.items()})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for name in self.numbers.keys() & {key.removeprefix(prefix) for key in state_dict}:
            self.numbers[name] = int(state_dict.pop(prefix + name))
        for name in self._buffers:
            if prefix + name not in state_dict:
                raise StateError(f"the state has nothing for {prefix + name!r}: it is that of another model or rule.")
        for key, value in state_dict.items():
            name = key.removeprefix(prefix)
            if not key.startswith(prefix) or "." in name:
                continue
            present = self._buffers.get(name)
            if present is None:
                self.register_buffer(name, torch.empty_like(value))
            elif present.shape != value.shape:
                raise StateError(
                    f"the saved {key!r} has shape {tuple(value.shape)}, this attachment's {tuple(present.shape)}: "
                    "the state is that of another model, other taps or another output size."
                )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _key(name: str) -> str:
    return name.replace(".", "/")
