"""The arguments and weights of a forward pass, noted so that a second run with other ones is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import is_
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from bpfree.distributed import is_sharded
from bpfree.errors import SecondRunError


@dataclass(frozen=True)
class InputVersions:
    """The tensors that a pass computes with, noted but not copied, so that a second run with others is refused.

    Attributes:
        arguments: The tensors among the model's arguments, each with its version (how often it had been written to).
        owners: The modules with parameters.
        weights: The parameters of each, by name.
        versions: The version of every parameter; None for parameters that learn. Those may change: an optimizer can
            step them while the error arrives.
    """

    arguments: Sequence[tuple[Tensor, int]]
    owners: Sequence[nn.Module]
    weights: Sequence[Mapping[str, Tensor | None]]
    versions: Sequence[int | None]

    @classmethod
    def now(cls, arguments: Any, parts: Sequence[nn.Module]) -> InputVersions:
        """Note the arguments and the weights of a model whose modules are ``parts``."""
        given = [(entry, _version(entry)) for entry in tree_leaves(arguments) if isinstance(entry, Tensor)]
        owners = [owner for owner in parts if owner._parameters]
        weights = [owner._parameters.copy() for owner in owners]
        return cls(given, owners, weights, _versions(weights))

    def check(self, model: nn.Module) -> None:
        """Raise SecondRunError unless ``model`` has the same arguments and weights now."""
        if any(_version(tensor) != version for tensor, version in self.arguments):
            raise SecondRunError(
                "an argument of the model was overwritten in its forward pass or since, and this way of learning runs "
                "the model on it once more. Write the operation without '_' or inplace=True, or let the model "
                "copy the argument first."
            )
        there = all(
            all(map(is_, owner._parameters.values(), known.values()))
            for owner, known in zip(self.owners, self.weights, strict=True)
        )
        # FSDP2 exchanges a layer's weights for as long as it runs.
        if (there and _versions(self.weights) == self.versions) or is_sharded(model):
            return
        changed = self._changed(model)
        if changed is None:  # the model has registered them anew, in another order
            return
        raise SecondRunError(
            f"parameter {changed!r} is not what it was when the forward pass began, and "
            "this way of learning runs the model once more. Weights that torch.func.functional_call lends are gone by "
            "then: put them into the model. What the model itself moves in its forward pass would move twice: make it "
            "a buffer, or move it in the training loop. Freeze and unfreeze parameters before the forward pass, or "
            "after loss.backward()."
        )

    def _changed(self, model: nn.Module) -> str | None:
        """Return the name of the first parameter that is another one, was written to or learns otherwise than before.

        None if there is none.
        """
        paths = {module: f"{path}." if path else "" for path, module in model.named_modules()}
        versions = zip(self.versions, _versions(self.weights), strict=True)
        for owner, known in zip(self.owners, self.weights, strict=True):
            for name, weight in known.items():
                before, now = next(versions)
                if before != now or owner._parameters.get(name) is not weight:
                    return paths.get(owner, "") + name
        return None


def _versions(weights: Sequence[Mapping[str, Tensor | None]]) -> list[int | None]:
    return [
        None if weight is None or weight.requires_grad else _version(weight)
        for known in weights
        for weight in known.values()
    ]


def _version(tensor: Tensor) -> int:
    # Tensors of inference mode have no version, and cannot be written to outside it.
    return 0 if tensor.is_inference() else tensor._version
