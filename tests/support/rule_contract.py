"""What must hold for every rule on every model, and gradients of a direct rule by another way than the library's.

A :class:`Subject` is a model with a fixed small batch. Nothing here hooks into a model: where a graph has to be cut,
:func:`cut` puts a module of its own into a copy.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import bpfree

STEPS, RATE = 20, 0.02
FALL = 0.8
"""After 20 steps of Adam the loss is at most this fraction of the first one.

Every subject begins near chance, log(c), where a rule whose signals reach nothing stays. Its classes can be told apart
by what the top layer sees, at random weights below as well, and 20 steps of .02 move each of the top's weights by up
to .4, more than it begins with. So whatever trains the top alone passes. Over three or four initializations a subject,
backpropagation ended at .28 of the first loss or less and the other rules at .73 or less.
"""


@dataclass
class Subject:
    """A model, and how its fixed batch goes through it.

    Attributes:
        build: Makes the model, the same one at every call.
        output: Runs the model and returns its output, where the loss is taken.
        loss: Runs the model and returns the loss.
        targets: What rules that need targets get.
        options: Passed to ``bpfree.attach``.
    """

    build: Callable[[], nn.Module]
    output: Callable[[nn.Module], Tensor]
    loss: Callable[[nn.Module], Tensor]
    targets: Tensor
    options: dict[str, Any] = field(default_factory=dict)

    def attach(self, model: nn.Module, rule: bpfree.Rule, **options: Any) -> bpfree.Attachment:
        return bpfree.attach(model, rule, seed=3, **{**self.options, **options})

    def gradients(self, model: nn.Module, attachment: bpfree.Attachment | None = None) -> list[Tensor | None]:
        """The gradients of one step, under the same random numbers at every call."""
        if attachment is not None:
            attachment.targets(self.targets)
        model.zero_grad()
        torch.manual_seed(11)
        self.loss(model).backward()
        return [parameter.grad for parameter in model.parameters()]


def train(subject: Subject, model: nn.Module, attachment: bpfree.Attachment, steps: int = STEPS) -> list[float]:
    """The losses of ``steps`` steps of Adam on the fixed batch, and one after them."""
    optimizer = torch.optim.Adam([*model.parameters(), *attachment.parameters()], lr=RATE)
    losses = []
    for _ in range(steps + 1):
        attachment.targets(subject.targets)
        optimizer.zero_grad()
        loss = subject.loss(model)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def hooks(model: nn.Module) -> int:
    """The number of hooks of any kind in the model."""
    kinds = [kind for kind in vars(nn.Module()) if kind.endswith("_hooks")]
    assert len(kinds) >= 6
    return sum(len(getattr(module, kind)) for module in model.modules() for kind in kinds)


def assert_rule_serves(subject: Subject, rule: bpfree.Rule) -> None:
    """Attach, train, evaluate, detach: the loss falls, and nothing of the rule is left in the model."""
    model = subject.build()
    stranger = copy.deepcopy(model)
    keys, kind, before = list(model.state_dict()), type(model), hooks(model)
    attachment = subject.attach(model, rule)
    losses = train(subject, model.train(), attachment)
    assert losses[-1] < FALL * losses[0], f"{rule} went from {losses[0]:.3f} to {losses[-1]:.3f}"
    assert (list(model.state_dict()), type(model)) == (keys, kind)

    model.eval()
    statistics = [buffer.clone() for buffer in model.buffers()]
    assert any(gradient is not None for gradient in subject.gradients(model, attachment))
    assert_equal(model.buffers(), statistics)
    with torch.no_grad():
        attached = subject.output(model)
    attachment.detach()
    assert hooks(model) == before
    assert (list(model.state_dict()), type(model)) == (keys, kind)
    stranger.load_state_dict(model.state_dict())
    stranger.eval()
    with torch.no_grad():
        assert torch.equal(subject.output(model), subject.output(stranger))
        assert torch.equal(attached, subject.output(stranger))
    assert_equal(subject.gradients(model.train()), subject.gradients(stranger.train()))


class Cut(nn.Module):
    """A module in another's place: keeps what that one returns, and hands it on without its graph."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.kept: list[Tensor] = []

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        self.kept.append(self.inner(*args, **kwargs))
        return self.kept[-1].detach()


def cut(model: nn.Module, names: list[str]) -> list[Cut]:
    """Put a :class:`Cut` where each of the named modules is."""
    cuts = []
    for name in names:
        above, _, last = name.rpartition(".")
        cuts.append(Cut(model.get_submodule(name)))
        setattr(model.get_submodule(above), last, cuts[-1])
    return cuts


def matrices(attachment: bpfree.Attachment) -> list[Tensor]:
    """B_l of every tap of the last forward pass."""
    feedback: Any = attachment.feedback
    mechanism: Any = attachment.mechanism
    return [feedback.matrix(site) for site in mechanism.sites]


def project(error: Tensor, B: Tensor, h: Tensor) -> Tensor:
    """The signal e B_l in the shape of h; ``error`` has one row a sample (token, node)."""
    return (error @ B).reshape(h.shape)


def softmax_error(output: Tensor, targets: Tensor, rows: Tensor | None = None) -> Tensor:
    """dL/do of the cross-entropy's mean over ``rows`` (None: all): (softmax(o) - onehot) / N there, 0 elsewhere."""
    if rows is None:
        rows = torch.ones(len(output), dtype=torch.bool)
    onehot = torch.zeros_like(output)
    onehot[rows, targets[rows]] = 1
    return (output.detach().softmax(1) - onehot) * rows[:, None] / rows.sum()


def assert_equal(found: Any, expected: Any) -> None:
    """The same numbers, or None, one by one: bit for bit."""
    for index, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert (ours is None) == (theirs is None), f"tensor {index}: one is None"
        if ours is not None:
            assert torch.equal(ours, theirs), f"tensor {index}: off by {float((ours - theirs).abs().max()):.2e}"
