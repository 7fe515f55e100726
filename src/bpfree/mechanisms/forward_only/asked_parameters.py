"""A module's parameters, while a pass gives each reader something of its own in their place."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from torch import Tensor, nn


class AskedParameters(dict[str, Any]):
    """A module's parameters: whoever asks for one by name gets what ``number`` makes of it.

    So a parameter that a forward pass does not use is not perturbed, and gets no noise for a gradient.
    """

    def __init__(self, parameters: dict[str, Any], number: Callable[[str, Tensor], Tensor]) -> None:
        super().__init__(parameters)
        self._number = number

    def __reduce__(self) -> tuple[Any, ...]:
        # Another thread may copy or save the model in the middle of a pass.
        return dict, (dict(self),)

    def __getitem__(self, name: str) -> Any:
        parameter = super().__getitem__(name)
        return None if parameter is None else self._number(name, parameter)


@lru_cache(maxsize=64)
def asking_class(kind: Any) -> type[nn.RNNBase]:
    """A recurrent module's class whose list of parameters is made anew, by asking for each, whenever it is read.

    A class, and not an attribute that comes and goes: another thread finds one list or the other at every moment.
    """

    def weights(module: nn.RNNBase) -> list[Tensor]:
        return [getattr(module, name) for name in module._flat_weights_names]

    def keep(module: nn.RNNBase, weights: list[Tensor]) -> None:
        vars(module)["_flat_weights"] = weights

    def nothing(module: nn.RNNBase) -> None:
        """The list is never out of date."""

    def plain(module: nn.RNNBase, protocol: Any) -> Any:
        return object.__new__, (kind,), *object.__reduce_ex__(module, protocol)[2:]

    own = {"_flat_weights": property(weights, keep), "_update_flat_weights": nothing, "__reduce_ex__": plain}
    return type(kind.__name__, (kind,), own | {"__module__": kind.__module__, "__qualname__": kind.__qualname__})
