"""Ways to take a training step, made for one network at a time."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint_sequential
from torch.utils.flop_counter import FlopCounterMode

import bpfree
from bpfree.lab.time_and_memory import peak_bytes
from common.nets import MLP, Net

LEARNING_RATE = 1e-4
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Step:
    """A model and what one training step of it does.

    Attributes:
        model: What is trained.
        forward_backward: Forward, loss, backward.
        period: After how many steps the same work comes again.
        attachment: The rule on the model.
        device: Where the model is.
    """

    model: nn.Module
    forward_backward: Callable[[], object]
    period: int = 1
    attachment: bpfree.Attachment | None = None
    device: torch.device = CPU

    def feedback(self) -> list[Tensor]:
        """What the rule keeps."""
        return [] if self.attachment is None else list(self.attachment.state_dict().values())

    def __call__(self) -> None:
        """Drop the old gradients, forward, loss, backward; as often as it takes until the same work comes again."""
        for _ in range(self.period):
            self._clear()
            self.forward_backward()

    def _clear(self) -> None:
        self.model.zero_grad(set_to_none=True)

    def flops(self) -> float:
        """Operations of the matrix products and convolutions of one step."""
        with FlopCounterMode(display=False) as counter:
            self()
        return counter.get_total_flops() / self.period

    def python_calls(self) -> float:
        """The calls of Python functions in one step, on a CPU, whose backward pass runs in the same thread."""
        counted = 0

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal counted
            counted += event == "call"

        sys.setprofile(count)
        try:
            self()
        finally:
            sys.setprofile(None)
        return counted / self.period

    def peak_bytes(self) -> int:
        """The most memory that a step takes, gradients included; those of the step before are gone by then."""
        return max(self._peak_bytes() for _ in range(self.period))

    def _peak_bytes(self) -> int:
        self._clear()
        return peak_bytes(self.forward_backward, self.device)

    def gradient_bytes(self) -> int:
        """The most that parameters' gradients take at one time."""
        held: list[int] = []
        parameters = list(self.model.parameters())

        def arrives(gradient: Tensor) -> None:
            others = sum(one.grad.nbytes for one in parameters if one.grad is not None)
            held.append(others + gradient.nbytes)

        self._clear()
        # Before it is accumulated: an optimizer in the backward pass drops it right behind.
        with _hooked(self.model, lambda parameter: parameter.register_hook(arrives)):
            self.forward_backward()
        return max(held)

    def activation_bytes(self) -> int:
        """The most memory that a step takes beside the gradients that it leaves: they are dropped as they come."""
        with _hooked(self.model, lambda parameter: parameter.register_post_accumulate_grad_hook(_drop)):
            return self.peak_bytes()


@contextmanager
def _hooked(model: nn.Module, hook: Callable[[nn.Parameter], torch.utils.hooks.RemovableHandle]) -> Iterator[None]:
    handles = [hook(parameter) for parameter in model.parameters()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


@dataclass(frozen=True)
class Subject:
    """One way to train.

    Attributes:
        rule: The learning rule.
        window: See :func:`bpfree.attach`.
        alternate: See :func:`bpfree.attach`. A step ends with a weight that is written to, and keeps its number.
        streaming: See :func:`bpfree.attach`.
        targets_first: Give the targets before the forward pass.
        compiled: Run the model through torch.compile.
        backend: The compiler's backend.
        bf16: Run the forward pass under autocast to bfloat16.
        in_backward: Let the optimizer (SGD) step in the backward pass and drop each gradient behind it.
        segments: For backpropagation: the number of checkpointed segments; 0 keeps all activations.
        verify: See :func:`bpfree.attach`.
        begins_late: Leave what a first step does once (checks, the drawing of feedback) to the first step.
        reference: The name of the subject that it is timed against.
    """

    rule: bpfree.Rule
    window: int = 1
    alternate: int = 1
    streaming: bool = False
    targets_first: bool = False
    compiled: bool = False
    backend: str = "inductor"
    bf16: bool = False
    in_backward: bool = False
    segments: int = 0
    verify: bool = True
    begins_late: bool = False
    reference: str = "BP"

    def on(self, net: Net, device: torch.device = CPU) -> Step:
        """The step of this subject on one network, which is made on ``device``."""
        with device:
            model, (x, y) = net.build(), net.data()
        attachment = bpfree.attach(
            model,
            self.rule,
            window=self.window,
            alternate=self.alternate,
            streaming=self.streaming,
            verify=self.verify,
            example_inputs=None if self.begins_late else x,
            **net.places,
        )
        if self.in_backward:
            _step_in_backward(model)
        forward = self._forward(model)

        def forward_backward() -> None:
            if self.targets_first:
                attachment.targets(y)
            with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
                loss = F.cross_entropy(forward(x).flatten(0, -2), y.flatten())
            if not self.targets_first:
                attachment.targets(y)
            loss.backward()
            if self.alternate > 1:
                with torch.no_grad():
                    last.add_(0.0)

        last = list(model.parameters())[-1]
        return Step(
            model, forward_backward, math.lcm(getattr(self.rule, "every", 1), self.alternate), attachment, device
        )

    def _forward(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        if self.segments:
            return lambda x: checkpoint_sequential(model, self.segments, x, use_reentrant=False)
        return _compiled(model, self.backend) if self.compiled else model


def _compiled(model: nn.Module, backend: str) -> Callable[[Tensor], Tensor]:
    import torch._dynamo  # takes seconds to load

    # Unless told not to, torch.compile takes two models of one class for the same whatever hooks they have: a compiled
    # model with a rule would run the code of its compiled twin that has none.
    torch._dynamo.config.skip_nnmodule_hook_guards = False
    return torch.compile(model, backend=backend)


def _step_in_backward(model: nn.Module) -> None:
    """PyTorch's own pattern: an optimizer for every parameter, called when its gradient is complete."""

    def step(optimizer: torch.optim.Optimizer, parameter: Tensor) -> None:
        optimizer.step()
        optimizer.zero_grad()

    for parameter in model.parameters():
        optimizer = torch.optim.SGD([parameter], lr=LEARNING_RATE, foreach=False)
        parameter.register_post_accumulate_grad_hook(partial(step, optimizer))


def best_segments(net: MLP) -> int:
    """The number of checkpointed segments with which a step of backpropagation takes the least memory.

    It is looked for on a network of a sixteenth of the width and batch: activations and gradients shrink alike.
    """
    small = replace(net, width=max(1, net.width // 16), batch=max(1, net.batch // 16))
    counts = range(2, max(2, net.depth // 2) + 1)
    return min(counts, key=lambda count: Subject(bpfree.BP(), segments=count).on(small).peak_bytes())
