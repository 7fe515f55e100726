"""Served layers against autograd: with B := W a layerwise rule is backpropagation, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bpfree.forward_mode.own_pass import OwnPass
from bpfree.layers.first_argument import first_argument, with_first
from bpfree.layers.function import precision
from bpfree.mechanisms.layerwise.mechanism import LayerwiseMechanism
from bpfree.rerun.arguments import Call
from bpfree.rerun.snapshot import preserved
from bpfree.verification.finding import Finding

if TYPE_CHECKING:
    from bpfree.attachment import Attachment


def check_layers(attachment: Attachment, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Finding]:
    """Compare every served layer with autograd, at its first call in one pass of the model on these arguments.

    With the rule and without it, a layer must give the same output, and with B := W its input the same gradient. Costs
    a forward pass without a graph, and two forward and backward passes of each layer; no number of the model, of the
    attachment or of the global random state moves.
    """
    mechanism = next((part for part in attachment.parts() if isinstance(part, LayerwiseMechanism)), None)
    if mechanism is None:
        return []
    check, model = _LayersCheck(mechanism), attachment.model
    hooks = {layer: partial(check.compare, name) for name, layer in mechanism.layers.items()}
    with (
        preserved(model, attachment),
        torch.no_grad(),
        OwnPass(model, called=True) as own,
        own.hooked(hooks, before=True, prepend=True),
    ):
        model(*args, **kwargs)
    return check.findings


class _LayersCheck:
    def __init__(self, mechanism: LayerwiseMechanism) -> None:
        self._mechanism = mechanism
        self._checked: set[str] = set()
        self._busy = False
        self.findings: list[Finding] = []

    def compare(self, name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Compare a layer that is about to be called."""
        if self._busy or name in self._checked:
            return
        self._checked.add(name)
        given = first_argument(layer, args, kwargs)[1]
        if not isinstance(given, Tensor) or not given.is_floating_point():
            return
        try:
            self._busy = True
            with preserved(layer), self._mechanism.transporting():
                ours = _run(layer, (args, kwargs))
            if name not in self._mechanism.served():
                return
            with preserved(layer), self._mechanism.paused():
                theirs = _run(layer, (args, kwargs))
        finally:
            self._busy = False
        for what, found, expected in zip(("output", "gradient of its input"), ours, theirs, strict=True):
            self._judge(name, what, found, expected)

    def _judge(self, name: str, what: str, found: Tensor, expected: Tensor) -> None:
        bound = precision(expected.dtype, expected.device)
        off = float((found - expected).norm() / expected.norm().clamp(min=torch.finfo(expected.dtype).tiny))
        if not off <= bound:
            self.findings.append(
                Finding(
                    "layers",
                    name,
                    f"with B := W the {what} is off by {off:.1e} of autograd's (bound {bound:.0e}).",
                    "Its forward, or a hook on its gradients, does what a layerwise rule cannot follow: take the hook "
                    "off, or use a direct rule (bpfree.DFA), which leaves layers as they are.",
                )
            )


def _run(layer: nn.Module, call: Call) -> tuple[Tensor, Tensor]:
    """Return a layer's output, and its input's gradient for numbers at the output that are the same at each call."""
    name, given = first_argument(layer, *call)
    leaf = given.detach().clone().requires_grad_()
    with torch.enable_grad():
        # A tensor that nobody calls a leaf: an in-place operation may follow.
        args, kwargs = with_first(call, name, leaf.view_as(leaf))
        output = layer(*args, **kwargs)
        if not isinstance(output, Tensor):
            return given, given
        generator = torch.Generator(output.device).manual_seed(0)
        sent = torch.randn(output.shape, generator=generator, device=output.device).to(output)
        (found,) = torch.autograd.grad(output, leaf, sent, allow_unused=True)
    return output.detach(), torch.zeros_like(leaf) if found is None else found
