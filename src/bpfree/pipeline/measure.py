"""Measure the times of a stage: the numbers that the simulator uses."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage

from bpfree.errors import OptionError
from bpfree.forward_mode.estimate import itself
from bpfree.mechanisms.base import Rule
from bpfree.mechanisms.learned.from_forward import ForwardLearnedMechanism
from bpfree.pipeline.agreement import Agreement, StageSurvey
from bpfree.pipeline.estimates import zero_tangents
from bpfree.pipeline.simulate import StageTimes
from bpfree.pipeline.stage import StageAttachment, attach_stage, mechanism_of
from bpfree.rerun.snapshot import preserved


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
    targets: Tensor | None = None,
    repeats: int = 20,
    **options: Any,
) -> StageTimes:
    """Time one micro-batch in one stage, in seconds, by backpropagation and by ``rule``, in turns.

    The stage is left as it was, with its gradients and buffers; no process group is needed. With alternating cuts the
    local time is the mean over their steps; with ``every`` an estimating pass counts by its share.

    Args:
        module: The stage's module.
        inputs: The stage's inputs for one micro-batch. Tensors for which the stage before wants a gradient require one;
            in an estimating pass they have a tangent.
        rule: The direct rule.
        error: Anything of the error's shape and dtype, for a stage before the last.
        loss: Maps the output of the last stage to the loss.
        targets: Those of the micro-batch, for a rule that learns from them (``DRTP``).
        repeats: The number of times that everything is timed; the medians count.
        options: ``taps``, ``error_at``, ``window``, ``alternate`` and ``within``, as for :func:`attach_stage`.

    Raises:
        OptionError: Neither or both of ``error`` and ``loss`` are given.
    """
    if (error is None) == (loss is None):
        raise OptionError("measure_stage: give error= for a stage before the last, and loss= for the last one.")
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    subject = _Subject(module, args, rule, error, loss, targets, options)
    steps = range(options.get("alternate", 1))
    with preserved(module), _own_gradients([*module.parameters(), *_wanted(args)]):
        rounds = [(subject.backpropagate(), [subject.learn(step) for step in steps]) for _ in range(repeats + 2)][2:]
    forward, backward, carried = _medians([of_round for of_round, _ in rounds])
    of_steps = [_medians([learned[step] for _, learned in rounds]) for step in steps]
    local, estimate = (statistics.mean(times) for times in zip(*of_steps, strict=True))
    return StageTimes(forward, carried, max(backward - carried, 0.0), local, estimate / getattr(rule, "every", 1))


@dataclass
class _Subject:
    """The stage that is timed; its attributes are the arguments of :func:`measure_stage`."""

    module: nn.Module
    args: tuple[Any, ...]
    rule: Rule
    error: Tensor | None
    loss: Callable[[Tensor], Tensor] | None
    targets: Tensor | None
    options: dict[str, Any]

    def backpropagate(self) -> tuple[float, float, float]:
        """Return the seconds of a forward pass, of its backward pass, and of the inputs' gradients alone."""

        def run() -> Tensor:
            output = self.module(*self.args)
            result: Tensor = output if self.loss is None else self.loss(output)
            return result

        wanted = _wanted(self.args)
        forward, root = _timed(run)
        gradient = torch.ones_like(root)
        backward, _ = _timed(lambda: torch.autograd.backward(root, gradient))
        carried = 0.0
        if wanted:
            again = run()
            carried, _ = _timed(lambda: torch.autograd.grad(again, wanted, gradient))
        for one in wanted:
            one.grad = None
        return forward, backward, carried

    def learn(self, step: int) -> tuple[float, float]:
        """Return the seconds of the work after the error has come, or after the loss, and of the estimating pass.

        Args:
            step: The step of alternating cuts.
        """
        stage = cast(PipelineStage, _Alone(self.module, self.loss is not None, _device(self.module)))
        received = tuple(one.detach() if isinstance(one, Tensor) else one for one in self.args)
        attachment = attach_stage(stage, self.rule, **self.options)
        try:
            survey = StageSurvey.of(attachment, received, {})
            survey.error = survey.error if self.error is None else (self.error.shape, self.error.dtype)
            agreement = Agreement.of([survey], attachment)
            agreement.settle(attachment)
            if self.targets is not None:
                attachment.targets(self.targets)
            alternation = mechanism_of(attachment).alternation
            with nullcontext() if alternation is None else alternation.held(alternation.ahead(step)):
                output = self.module(*received)
            estimate, complete = self._estimate(attachment, agreement, received)
            root = attachment.take_ticket() if self.loss is None else self.loss(output)

            def learn() -> None:
                complete()
                torch.autograd.backward(root, self.error)

            return _timed(learn)[0], estimate
        finally:
            attachment.detach()

    def _estimate(
        self, attachment: StageAttachment, agreement: Agreement, received: tuple[Any, ...]
    ) -> tuple[float, Callable[[], None]]:
        """Return the seconds of an estimating pass, and what is left of it when the output's tangent has come."""
        mechanism = attachment.mechanism
        if not isinstance(mechanism, ForwardLearnedMechanism):
            return 0.0, lambda: None
        samples = agreement.rows.shape[0]
        entering = zero_tangents(mechanism, received, samples) if _wanted(self.args) else []
        seconds, found = _timed(lambda: mechanism.observe_stage(samples, entering))
        if self.loss is not None:
            (change,) = found.leaving
        else:
            part, whole = (
                found.response.part,
                torch.zeros(agreement.shape, dtype=agreement.dtype, device=_device(self.module)),
            )
            change = whole if part is None else part.along(whole, agreement.rows.axes[0])
        return seconds, lambda: found.complete(change, itself)


def _medians(rounds: Sequence[tuple[float, ...]]) -> list[float]:
    return [statistics.median(times) for times in zip(*rounds, strict=True)]


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
