"""Stepping the feedback that an optimizer learns (Kolen-Pollack's B), where a training loop makes the optimizer."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from bpfree.attachment import Attachment
from bpfree.errors import LoopError
from bpfree.feedback.lazy_buffers import name_of
from bpfree.mechanisms.layerwise.kolen_pollack import KolenPollackMechanism


def add_to_optimizers(attachment: Attachment, optimizers: Sequence[Optimizer]) -> None:
    """Give the parameters of ``attachment`` that no optimizer has to those that step the model.

    Kolen-Pollack's B goes into the group of its W, so that both take the same steps: rate, decay and schedule.
    """
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    known = {id(parameter) for group in groups for parameter in group["params"]}
    for parameter, group in _in_groups(attachment, groups):
        if id(parameter) not in known:
            group["params"].append(parameter)


class FeedbackOptimizer:
    """Steps the parameters of an attachment as another optimizer steps the model: for loops whose own is closed.

    Every parameter has the options of one group there, of Kolen-Pollack's W for its B, as they are at each step. For
    optimizers that treat each parameter by itself (SGD, Adam, AdamW, Adafactor ...): two of them are one of both.

    Args:
        attachment: The attachment; it has parameters.
        optimizer: The model's optimizer.

    Raises:
        LoopError: A second optimizer of this kind cannot be made.
    """

    def __init__(self, attachment: Attachment, optimizer: Optimizer) -> None:
        self._attachment, self._groups = attachment, optimizer.param_groups
        self._sources = list(_in_groups(attachment, self._groups))
        kind = type(optimizer)
        taken = inspect.signature(kind).parameters
        options = {name: value for name, value in optimizer.defaults.items() if name in taken}
        try:
            self.optimizer: Optimizer = kind([{"params": [parameter]} for parameter, _ in self._sources], **options)
        except Exception as error:
            raise LoopError(
                f"{attachment.rule} learns its feedback by an optimizer, and no second {kind.__name__} can be made for "
                f"it ({error}). Take an optimizer of torch.optim for the model."
            ) from error

    def step(self) -> None:
        """Step the feedback. Call it when the model has been stepped, and before its gradients are gone.

        Kolen-Pollack's B gets the gradient of W as it is now, clipped or unscaled.
        """
        for part in self._attachment.parts():
            if isinstance(part, KolenPollackMechanism):
                part.copy_gradients()
        for own, (_, group) in zip(self.optimizer.param_groups, self._sources, strict=True):
            own.update({name: value for name, value in group.items() if name != "params"})
        self.optimizer.step()
        self.optimizer.zero_grad()


def _in_groups(
    attachment: Attachment, groups: Sequence[dict[str, Any]]
) -> Iterator[tuple[nn.Parameter, dict[str, Any]]]:
    """Every parameter of an attachment, with the group whose options it takes."""
    usual = next((group for group in groups if not group.get("weight_decay")), groups[0])
    for part in attachment.parts():
        for key, parameter in part.feedback.named_parameters():
            weight = _weight(attachment, part, name_of(key.rpartition(".")[2]))
            of_weight = (group for group in groups if any(weight is other for other in group["params"]))
            yield parameter, next(of_weight, usual)


def _weight(attachment: Attachment, part: nn.Module, name: str) -> Tensor | None:
    """The W of Kolen-Pollack's B of this name; None for other feedback."""
    layer = attachment.model.get_submodule(name) if isinstance(part, KolenPollackMechanism) else None
    return None if layer is None else layer.weight  # type: ignore[return-value]
