"""Check that a model computes a part of a batch as it computes the whole: its samples do not see each other."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from bpfree.axes.sites import Site
from bpfree.error_values import error_tensors
from bpfree.forward_mode.eager import eager
from bpfree.forward_mode.grad_mode import silent_rules
from bpfree.forward_mode.own_pass import OwnPass
from bpfree.forward_mode.sample_part import SamplePart, samples_of
from bpfree.forward_mode.tangents import run_to
from bpfree.plan import Plan
from bpfree.rerun.arguments import Call
from bpfree.rerun.snapshot import RunSnapshot
from bpfree.verification.finding import Finding
from bpfree.verification.laws import bound, relative

_REMEDY = (
    "Its samples see each other (nodes of a graph, attention over the batch), or the arguments do not have them along "
    "their first axis, or hold them in an object. Leave rows= out."
)
_EXACT = (
    "Its samples see each other (nodes of a graph, batch normalization in training), dropout draws other masks, or the "
    "arguments do not have the samples along their first axis. Leave rows= out."
)


def check_sample_part(plan: Plan, call: Call, sites: Sequence[Site], *, exact: bool) -> list[Finding]:
    """Run the model on its batch and on half of it, and compare the outputs where errors are taken.

    Args:
        plan: The model, its taps and its errors' places.
        call: The model's arguments.
        sites: The taps that it reaches.
        exact: True compares the passes as they are; False in evaluation, where neither dropout nor batch normalization
            makes a difference.
    """
    axis, count = sites[0].error.axes[0], samples_of(call, {site.error.shape[0] for site in sites})
    if count is None or count < 2:
        return []
    part = SamplePart(torch.arange(count)[count // 2 :], count)
    with nullcontext() if exact else _evaluating(plan.model):
        start = RunSnapshot.now(plan, call)  # the mode is a part of it
        whole = _outputs(plan, call, start)
        try:
            found = _outputs(plan, part.of_call(call), start)
        except (RuntimeError, IndexError, ValueError, TypeError, AssertionError) as error:
            return [_finding(plan, f"raises {type(error).__name__} there ({str(error).splitlines()[0]})", exact)]
    for expected, output in zip(whole, found, strict=True):
        if axis >= expected.dim() or not part.fits(expected.shape[axis]):  # an error of other samples
            continue
        expected = part.along(expected, axis)
        if output.shape != expected.shape:
            sizes = f"{tuple(output.shape)} for {len(part.numbers)} of {count} samples"
            return [_finding(plan, f"gives outputs of shape {sizes}, not {tuple(expected.shape)}", exact)]
        off = relative(output, expected)
        if off > bound(expected.dtype):
            return [_finding(plan, f"gives other outputs there ({off:.1e} of their size)", exact)]
    return []


def _finding(plan: Plan, what: str, exact: bool) -> Finding:
    said = f"estimates are to be made from a part of the batch (rows=), and the model {what}."
    return Finding("part of the batch", plan.error_name or "(model)", said, _EXACT if exact else _REMEDY)


def _outputs(plan: Plan, call: Call, start: RunSnapshot) -> list[Tensor]:
    with start.restored(plan.model), torch.no_grad(), silent_rules(), eager(), OwnPass(plan.model, plan.state) as own:
        outputs = run_to(plan.model, own, list(plan.errors.values()), call)
    return [tensor.detach() for output in outputs for tensor in error_tensors(output).values()]


@contextmanager
def _evaluating(model: nn.Module) -> Generator[None]:
    """Within this context the model is in evaluation mode, module by module."""
    modes = [(part, part.training) for part in model.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, mode in modes:
            part.training = mode
