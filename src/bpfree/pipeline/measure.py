"""Measure the times of a stage: the numbers that the simulator uses."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage

from bpfree.errors import OptionError
from bpfree.mechanisms.base import Rule
from bpfree.pipeline.agreement import Agreement, Survey
from bpfree.pipeline.simulate import StageTimes
from bpfree.pipeline.stage import attach_stage
from bpfree.rerun.snapshot import preserved
from bpfree.taps import TapChoice


@dataclass
class _Alone:
    """A stage without other processes."""

    submod: nn.Module
    is_last: bool
    device: torch.device
    is_first: bool = False
    stage_index: int = 0
    num_stages: int = 2
    group: None = field(default=None)


def measure_stage(
    module: nn.Module,
    inputs: Tensor | tuple[Any, ...],
    rule: Rule,
    *,
    error: Tensor | None = None,
    loss: Callable[[Tensor], Tensor] | None = None,
    taps: TapChoice = None,
    error_at: str | None = None,
    targets: Tensor | None = None,
    repeats: int = 20,
) -> StageTimes:
    """Time one micro-batch in one stage, in seconds, by backpropagation and by ``rule``, in turns.

    The stage is left as it was, with its gradients and buffers; no process group is needed.

    Args:
        module: The stage's module.
        inputs: The stage's inputs for one micro-batch. Tensors for which the stage before wants a gradient require one.
        rule: The direct rule.
        error: Anything of the error's shape and dtype, for a stage before the last.
        loss: Maps the output of the last stage to the loss.
        taps: As for :func:`attach_stage`.
        error_at: As for :func:`attach_stage`.
        targets: Those of the micro-batch, for a rule that learns from them (``DRTP``).
        repeats: The number of times that everything is timed; the medians count.

    Raises:
        OptionError: Neither or both of ``error`` and ``loss`` are given.
    """
    if (error is None) == (loss is None):
        raise OptionError("measure_stage: give error= for a stage before the last, and loss= for the last one.")
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    with preserved(module), _own_gradients([*module.parameters(), *_wanted(args)]):
        rounds = [_round(module, args, rule, error, loss, taps, error_at, targets) for _ in range(repeats + 2)][2:]
    forward, backward, carried, local = (statistics.median(times) for times in zip(*rounds, strict=True))
    return StageTimes(forward, carried, max(backward - carried, 0.0), local)


def _round(
    module: nn.Module,
    args: tuple[Any, ...],
    rule: Rule,
    error: Tensor | None,
    loss: Callable[[Tensor], Tensor] | None,
    taps: TapChoice,
    error_at: str | None,
    targets: Tensor | None,
) -> tuple[float, float, float, float]:
    def run() -> Tensor:
        output = module(*args)
        result: Tensor = output if loss is None else loss(output)
        return result

    wanted = _wanted(args)
    forward, root = _timed(run)
    gradient = torch.ones_like(root)
    backward, _ = _timed(lambda: torch.autograd.backward(root, gradient))
    carried = 0.0
    if wanted:
        again = run()
        carried, _ = _timed(lambda: torch.autograd.grad(again, wanted, gradient))
    for one in wanted:
        one.grad = None
    return forward, backward, carried, _local(module, args, rule, error, loss, taps, error_at, targets)


def _local(
    module: nn.Module,
    args: tuple[Any, ...],
    rule: Rule,
    error: Tensor | None,
    loss: Callable[[Tensor], Tensor] | None,
    taps: TapChoice,
    error_at: str | None,
    targets: Tensor | None,
) -> float:
    """Return the seconds of a stage's work after the error has come; in the last stage, after the loss."""
    stage = cast(PipelineStage, _Alone(module, loss is not None, _device(module)))
    received = tuple(one.detach() if isinstance(one, Tensor) else one for one in args)
    attachment = attach_stage(stage, rule, taps=taps, error_at=error_at)
    try:
        survey = Survey.of(attachment, received, {})
        survey.error = survey.error if error is None else (error.shape, error.dtype)
        Agreement.of([survey], attachment).settle(attachment)
        if targets is not None:
            attachment.targets(targets)
        output = module(*received)
        root = attachment.take_ticket() if loss is None else loss(output)
        return _timed(lambda: torch.autograd.backward(root, error))[0]
    finally:
        attachment.detach()


def _wanted(args: tuple[Any, ...]) -> list[Tensor]:
    return [one for one in args if isinstance(one, Tensor) and one.requires_grad]


@contextmanager
def _own_gradients(tensors: Sequence[Tensor]) -> Generator[None]:
    """Within this context they gather gradients of their own; the caller's are put back."""
    before = [one.grad for one in tensors]
    try:
        for one in tensors:
            one.grad = None
        yield
    finally:
        for one, grad in zip(tensors, before, strict=True):
            one.grad = grad


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    _wait()
    start = time.perf_counter()
    found = call()
    _wait()
    return time.perf_counter() - start, found


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _device(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
