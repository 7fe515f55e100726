"""What a forward pass computes with, so that a second run with other arguments or weights is noticed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bpfree.errors import SecondRunError
from bpfree.ranks import is_sharded


@dataclass(frozen=True)
class _Weight:
    """A parameter, in its place, with how often it had been written to; None where it learns.

    Those that learn may change: an optimizer can step them while the error arrives.
    """

    owner: nn.Module
    name: str
    tensor: Tensor
    version: int | None

    def is_there(self) -> bool:
        """Whether it is in its place, as it was."""
        there = self.owner._parameters.get(self.name) is self.tensor
        return there and self.version in (None, _version(self.tensor))


@dataclass(frozen=True)
class Operands:
    """The tensors that a pass computes with and that nobody copies, so that a second run with others is noticed.

    Attributes:
        arguments: The model's arguments, each with how often it had been written to.
        weights: Its parameters.
    """

    arguments: Sequence[tuple[Tensor, int]]
    weights: Sequence[_Weight]

    @classmethod
    def now(cls, arguments: Any, parts: Sequence[nn.Module]) -> Operands:
        """Note them, of a model whose modules are ``parts``."""
        given = [(entry, _version(entry)) for entry in tree_leaves(arguments) if isinstance(entry, Tensor)]
        weights = [
            _Weight(owner, name, weight, None if weight.requires_grad else _version(weight))
            for owner in parts
            for name, weight in owner._parameters.items()
            if weight is not None
        ]
        return cls(given, weights)

    def check(self, model: nn.Module) -> None:
        """Raise SecondRunError unless ``model`` has the same ones now."""
        if any(_version(tensor) != version for tensor, version in self.arguments):
            raise SecondRunError(
                "an argument of the model was overwritten in its forward pass or since, and this way of learning runs "
                "the model on it once more. Write the operation without '_' or inplace=True, or let the model "
                "copy the argument first."
            )
        changed = next((weight for weight in self.weights if not weight.is_there()), None)
        # FSDP2 exchanges a layer's weights for as long as it runs.
        if changed is None or is_sharded(model):
            return
        path = next((path for path, module in model.named_modules() if module is changed.owner), "")
        raise SecondRunError(
            f"parameter {f'{path}.{changed.name}'.lstrip('.')!r} is not what it was when the forward pass began, and "
            "this way of learning runs the model once more. Weights that torch.func.functional_call lends are gone by "
            "then: put them into the model. What the model itself moves in its forward pass would move twice: make it "
            "a buffer, or move it in the training loop."
        )


def _version(tensor: Tensor) -> int:
    # Those of inference mode have none, and cannot be written to outside it.
    return 0 if tensor.is_inference() else tensor._version
