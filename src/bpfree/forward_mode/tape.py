"""The layers' outputs in the rule's own forward pass, used again in the estimating pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from bpfree.forward_mode.dual_numbers import join, split
from bpfree.forward_mode.own_pass import OwnPass
from bpfree.layers.kinds import CONVOLUTIONS
from bpfree.per_thread import PerThread


@dataclass
class _Recording:
    """The outputs kept in one thread; None if nothing is recorded."""

    kept: dict[nn.Module, deque[tuple[Tensor, int]]] | None = None


class Tape:
    """The costly layers' outputs in the rule's own forward pass, so that the estimating pass need not repeat them.

    These layers are linear: their tangent is the layer applied to the input's tangent, and their output is known.
    Without this an estimating pass would cost two forward passes and not one.
    """

    def __init__(self, model: nn.Module) -> None:
        # Exactly these classes: a subclass may compute anything.
        kinds = (nn.Linear, *CONVOLUTIONS)
        self._layers = [layer for layer in model.modules() if type(layer) in kinds and "forward" not in vars(layer)]
        self._recording = PerThread(_Recording)

    def install(self) -> list[Any]:
        """Register and return hooks that keep the layers' outputs during a recording."""
        # Before all other hooks, which may exchange the output.
        return [layer.register_forward_hook(self._keep, prepend=True) for layer in self._layers]

    def record(self) -> None:
        """Begin to keep outputs."""
        self._recording().kept = {}

    def drop(self) -> None:
        """End the recording, and forget it."""
        self._recording().kept = None

    def _keep(self, layer: nn.Module, args: Any, output: Tensor) -> None:
        kept = self._recording().kept
        if kept is not None:
            kept.setdefault(layer, deque()).append((output.detach(), output._version))

    @contextmanager
    def replayed(self, own: OwnPass) -> Generator[None]:
        """Within this context the layers of the pass ``own`` take their outputs from the recording, then forgotten.

        Where nothing is recorded they compute them; values and tangents are products of their own there too. Torch's
        own forward derivative of a linear layer adds the bias's tangent, a tensor of zeros, by a decomposition in
        Python, which takes longer than small products.
        """
        recording = self._recording()
        kept, recording.kept = recording.kept or {}, None
        try:
            for layer in self._layers:
                vars(layer)["forward"] = partial(_replay, own, layer, layer.forward, kept.get(layer) or deque())
            yield
        finally:
            for layer in self._layers:
                vars(layer).pop("forward", None)  # Ctrl-C may come before it was there


def _replay(
    own: OwnPass,
    layer: Any,
    forward: Callable[[Tensor], Tensor],
    outputs: deque[tuple[Tensor, int]],
    input: Tensor,
) -> Tensor:
    if not own.is_this:
        return forward(input)
    # Taken out: it is not needed behind its layer.
    output, version = outputs.popleft() if outputs else (None, 0)
    if input.requires_grad:  # a model that differentiates within its forward needs the graph
        return forward(input)
    primal, tangent = split(input)
    if output is None or output._version != version:  # an in-place operation may have overwritten it
        output = forward(primal)
    if tangent is None:
        return output
    linear = F.linear(tangent, layer.weight) if isinstance(layer, nn.Linear) else layer._conv_forward(
        tangent, layer.weight, None
    )  # fmt: skip
    return join(output, linear.to(output.dtype))
