"""The layers' outputs in the rule's own forward pass, used again in the estimating pass."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Hashable
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bpfree.forward_mode.dual_numbers import join, split
from bpfree.forward_mode.own_pass import OwnPass
from bpfree.forward_mode.sample_part import SamplePart
from bpfree.layers.kinds import linear_part
from bpfree.per_thread import PerThread

_CLOSE = {torch.float64: 1e-8, torch.float32: 1e-4}
"""The largest difference of two outputs that count as the same, relative to their largest number, by precision."""


class _Kept(NamedTuple):
    """One output of a layer; None where it cannot be told which samples it is of."""

    output: Tensor | None
    version: int = 0


@dataclass
class _Recording:
    """The outputs kept in one thread; None if nothing is recorded. Where ``part`` is given, these samples' alone."""

    kept: dict[nn.Module, deque[_Kept]] | None = None
    part: SamplePart | None = None


class Tape:
    """The costly layers' outputs in the rule's own forward pass, so that the estimating pass need not repeat them.

    These layers are linear: their tangent is the layer applied to the input's tangent, and their output is known.
    Without this an estimating pass would cost two forward passes and not one.

    An estimating pass of some samples takes these samples' outputs, of layers for which they are the same: the first
    such pass looks whether they are. Behind normalization over the batch they are not.
    """

    def __init__(self, model: nn.Module) -> None:
        found = {layer: type(layer) for layer in model.modules() if "forward" not in vars(layer)}
        self._layers = {layer: kind for layer, kind in found.items() if linear_part(layer, kind)}
        self._recording = PerThread(_Recording)
        # Kind of pass -> the layers whose outputs for some samples are those in the whole batch.
        self._alike: dict[Hashable, dict[nn.Module, bool]] = {}

    def install(self) -> list[Any]:
        """Register and return hooks that keep the layers' outputs during a recording."""
        # Before all other hooks, which may exchange the output.
        return [layer.register_forward_hook(self._keep, prepend=True) for layer in self._layers]

    def record(self, part: SamplePart | None = None) -> None:
        """Begin to keep outputs, of ``part`` of the samples or of all."""
        recording = self._recording()
        recording.kept, recording.part = {}, part

    def drop(self) -> None:
        """End the recording, and forget it."""
        recording = self._recording()
        recording.kept = recording.part = None

    def _keep(self, layer: nn.Module, args: Any, output: Tensor) -> None:
        recording = self._recording()
        if recording.kept is None:
            return
        found = output.detach() if recording.part is None else recording.part.of_output(output.detach())
        recording.kept.setdefault(layer, deque()).append(_Kept(found, 0 if found is None else found._version))

    @contextmanager
    def replayed(self, own: OwnPass, part: SamplePart | None, kind: Hashable, *, drawn: bool) -> Generator[None]:
        """Within this context the layers of the pass ``own`` take their outputs from the recording, then forgotten.

        Where nothing is recorded they compute them; values and tangents are products of their own there too. Torch's
        own forward derivative of a linear layer adds the bias's tangent, a tensor of zeros, by a decomposition in
        Python, which takes longer than small products.

        Args:
            own: The pass.
            part: The samples of the pass; None for all.
            kind: The kind of the pass.
            drawn: True if the recorded pass has drawn random numbers: some samples alone would draw others.
        """
        recording = self._recording()
        kept, recorded = recording.kept or {}, recording.part
        self.drop()
        alike = None if part is None else self._alike.setdefault(kind, {})
        usable = part is recorded and not drawn
        try:
            for layer, made_as in self._layers.items():
                linear, outputs = linear_part(layer, made_as), (usable and kept.get(layer)) or deque()
                assert linear is not None, "it was chosen for that"
                vars(layer)["forward"] = partial(_replay, own, layer, layer.forward, linear, outputs, alike)
            yield
        finally:
            for layer in self._layers:
                vars(layer).pop("forward", None)  # Ctrl-C may come before it was there


def _replay(
    own: OwnPass,
    layer: nn.Module,
    forward: Callable[[Tensor], Tensor],
    linear: Callable[[Tensor], Tensor],
    outputs: deque[_Kept],
    alike: dict[nn.Module, bool] | None,
    input: Tensor,
) -> Tensor:
    if not own.is_this:
        return forward(input)
    # Taken out: it is not needed behind its layer.
    output, version = outputs.popleft() if outputs else _Kept(None)
    if input.requires_grad:  # a model that differentiates within its forward needs the graph
        return forward(input)
    primal, tangent = split(input)
    if output is not None and output._version != version:  # an in-place operation may have overwritten it
        output = None
    if output is not None and alike is not None and not alike.get(layer, False):
        fresh = forward(primal)
        if layer not in alike:  # the first look
            alike[layer] = _are_same(fresh, output)
        output = fresh
    if output is None:
        output = forward(primal)
    if tangent is None:
        return output
    return join(output, linear(tangent).to(output.dtype))


def _are_same(one: Tensor, other: Tensor) -> bool:
    """Return whether two outputs of a layer are the same but for rounding."""
    if one.shape != other.shape:
        return False
    return not one.numel() or bool((one - other).abs().amax() <= _CLOSE.get(one.dtype, 0.03) * one.abs().amax())
