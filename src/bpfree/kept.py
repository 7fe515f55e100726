"""Tensors that a model keeps on itself: placeholder until the walk over modules' state is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

_OWN = frozenset(vars(nn.Module()))


@dataclass(frozen=True)
class Holder:
    """A dictionary or list that may hold tensors."""

    place: Any

    def _entries(self) -> list[tuple[Any, Any]]:
        return list(self.place.items() if isinstance(self.place, dict) else enumerate(self.place))

    def tensors(self) -> Iterator[Tensor]:
        """Those with a graph."""
        for key, value in self._entries():
            if key not in _OWN and isinstance(value, Tensor) and value.requires_grad and not value.is_leaf:
                yield value

    def replace_tensors(self, replaced: Callable[[Tensor], Tensor | None]) -> None:
        """Exchange those for which there is a replacement."""
        for key, value in self._entries():
            if key not in _OWN and isinstance(value, Tensor) and value.requires_grad and not value.is_leaf:
                found = replaced(value)
                if found is not None:
                    self.place[key] = found


def kept_by(model: nn.Module) -> list[Holder]:
    """The holders of a model."""
    found = []
    for module in model.modules():
        found.append(Holder(vars(module)))
        found += [
            Holder(value) for key, value in vars(module).items() if key not in _OWN and type(value) in (list, dict)
        ]
    return found
