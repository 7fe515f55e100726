"""What a forward pass computes with, so that a second run with other arguments or weights is noticed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bpfree.errors import SecondRunError
from bpfree.ranks import is_sharded


@dataclass(frozen=True)
class Operands:
    """The tensors that a pass computes with and that nobody copies, so that a second run with others is noticed.

    Attributes:
        arguments: The model's arguments, each with how often it had been written to.
        weights: The parameters by the module that owns them and their names there, those that do not learn with how
            often they had been written to. Those that learn may: an optimizer can step them while the error arrives.
    """

    arguments: Sequence[tuple[Tensor, int]]
    weights: Mapping[tuple[nn.Module, str], tuple[Tensor, int]]

    @classmethod
    def now(cls, arguments: Any, parts: Sequence[nn.Module]) -> Operands:
        """Note them."""
        given = [(entry, _version(entry)) for entry in tree_leaves(arguments) if isinstance(entry, Tensor)]
        return cls(given, _weights_of(parts))

    def check(self, model: nn.Module) -> None:
        """Raise SecondRunError unless ``model`` has the same ones now."""
        if any(_version(tensor) != version for tensor, version in self.arguments):
            raise SecondRunError(
                "an argument of the model was overwritten in its forward pass or since, and this way of learning runs "
                "the model on it once more. Write the operation without '_' or inplace=True, or let the model "
                "copy the argument first."
            )
        now = _weights_of({owner for owner, _ in self.weights})
        changed = [
            place for place, (weight, version) in self.weights.items() if not _same(now.get(place), weight, version)
        ]
        # FSDP2 exchanges a layer's weights for as long as it runs.
        if not changed or is_sharded(model):
            return
        owner, name = changed[0]
        path = next((path for path, module in model.named_modules() if module is owner), "")
        raise SecondRunError(
            f"parameter {f'{path}.{name}'.lstrip('.')!r} is not what it was when the forward pass began, and this way "
            "of learning runs the model once more. Weights that torch.func.functional_call lends are gone by then: put "
            "them into the model. What the model itself moves in its forward pass would move twice: make it a buffer, "
            "or move it in the training loop."
        )


def _weights_of(owners: Iterable[nn.Module]) -> Mapping[tuple[nn.Module, str], tuple[Tensor, int]]:
    return {
        (owner, name): (weight, 0 if weight.requires_grad else _version(weight))
        for owner in owners
        for name, weight in owner._parameters.items()
        if weight is not None
    }


def _same(now: tuple[Tensor, int] | None, weight: Tensor, version: int) -> bool:
    return now is not None and now[0] is weight and now[1] == version


def _version(tensor: Tensor) -> int:
    # Those of inference mode have none, and cannot be written to outside it.
    return 0 if tensor.is_inference() else tensor._version
