"""Passes of a made-up model, and everything that can be seen of them."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from weakref import ref

import numpy
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import bpfree
from fuzz.build import Answer, Subject, doubles, make, seed_everything
from fuzz.descriptions import Model
from fuzz.variants import Variant

BOUND = 1e-9
"""How far numbers may lie apart, relative to the largest: sums are formed in another order."""


@dataclass
class Seen:
    """What one training pass gave and left.

    Attributes:
        outputs: The tensors that the model returned, and the loss.
        gradients: By the parameters' names; None where there is none.
        left: Buffers, attributes, and the state of random numbers behind the pass.
    """

    outputs: list[Tensor]
    gradients: dict[str, Tensor | None]
    left: dict[str, Any]


@dataclass
class Told:
    """The warnings of the library while a law was tried."""

    messages: list[str] = field(default_factory=list)


@contextmanager
def listening() -> Iterator[Told]:
    """Within this context nothing is printed, and what the library warns of is kept."""
    told = Told()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            yield told
        finally:
            told.messages += [str(w.message) for w in caught if isinstance(w.message, bpfree.BpfreeWarning)]


@dataclass
class Learner:
    """A model with a rule on it, or a twin without one."""

    subject: Subject
    attachment: bpfree.Attachment | None = None
    numbered: bool = False

    @property
    def net(self) -> nn.Module:
        return self.subject.net

    def forward(self, number: int = 0) -> tuple[Any, Tensor]:
        """A pass under the random numbers of its number."""
        seed_everything(50 + number)
        if self.attachment is not None:
            self.attachment.targets(self.subject.batches[number % 2].classes)
        with doubles():
            return self.subject.run(number)

    def step(self, number: int = 0, *, keep: bool = False) -> Seen:
        """A training pass; ``keep`` adds to the gradients that are there."""
        if not keep:
            for parameter in self.subject.parameters().values():
                parameter.grad = None
        result, loss = self.forward(number)
        with doubles():
            loss.backward()
        found = self.look(result, loss)
        self._give_numbers()
        return found

    def step_apart(self, number: int) -> Seen:
        """A training pass whose losses are sent back one after another."""
        for parameter in self.subject.parameters().values():
            parameter.grad = None
        result, loss = self.forward(number)
        first, *others = self.subject.losses(result, number)
        with doubles():
            for other in others:
                if other.requires_grad:  # a term that lost its graph is another law's matter
                    other.backward(retain_graph=True)
            first.backward()
        return self.look(result, loss)

    def _give_numbers(self) -> None:
        """Put numbers into feedback that an optimizer steps, once: where it begins at zero, no signal would be seen."""
        if self.attachment is None or self.numbered:
            return
        generator = torch.Generator().manual_seed(9)
        for parameter in self.attachment.parameters():
            parameter.data.normal_(generator=generator)
        self.numbered = True

    def look(self, result: Any, loss: Tensor) -> Seen:
        """What can be seen now."""
        return Seen([*tensors(result), loss.detach().clone()], self.gradients(), left(self.net))

    def gradients(self) -> dict[str, Tensor | None]:
        """Copies of the present gradients."""
        found = self.subject.parameters()
        return {n: None if p.grad is None else p.grad.to_dense().clone() for n, p in found.items()}


def twin(model: Model, draw: int = 0) -> Learner:
    """The model without a rule; ``draw`` says which weights and batches it has."""
    return Learner(make(model, seed=draw))


@lru_cache(maxsize=1000)
def plainly(model: Model, draw: int = 0) -> tuple[Seen, Seen]:
    """Two training passes of a twin without a rule."""
    theirs = twin(model, draw)
    return theirs.step(0), theirs.step(1)


def runs(model: Model) -> bool:
    """Whether the model trains without a rule."""
    with listening():
        try:
            plainly(model)
        except RuntimeError:  # an in-place operation that autograd refuses, for example
            return False
    return True


def learner(model: Model, variant: Variant, draw: int = 0, **options: Any) -> Learner:
    """The model with a rule on it."""
    subject = make(model, seed=draw)
    with doubles():
        attachment = bpfree.attach(
            subject.net, variant.rule, seed=3, **{**subject.options, **variant.options, **options}
        )
    note_attached(attachment)
    return Learner(subject, attachment)


_ATTACHED: list[ref[bpfree.Attachment]] = []


def note_attached(attachment: bpfree.Attachment) -> None:
    """Let :func:`detach_learners` take this rule off too, as that of a copy."""
    _ATTACHED.append(ref(attachment))


def detach_learners() -> None:
    """Take all rules off: what lives on until it is collected would be looked at by each later ``bpfree.attach``."""
    while _ATTACHED:
        attachment = _ATTACHED.pop()()
        if attachment is not None:
            attachment.detach()


def tensors(result: Any) -> list[Tensor]:
    """Copies of the tensors in what a model returns."""
    if isinstance(result, Answer):
        result = [result.logits, result.hidden]
    return [entry.detach().clone() for entry in tree_leaves(result) if isinstance(entry, Tensor)]


def left(net: nn.Module) -> dict[str, Any]:
    """Buffers, plain attributes and random states, by name."""
    found: dict[str, Any] = {name: buffer.detach().clone() for name, buffer in net.named_buffers()}
    for name, module in net.named_modules():
        for key, value in vars(module).items():
            if not _is_torchs(key):
                found[f"{name}.{key}"] = _plain(value)
                if isinstance(value, Tensor) and key == "penalty":
                    found[f"{name}.{key} has a graph"] = value.requires_grad
    found["torch's random numbers"] = torch.get_rng_state()
    found["numpy's random numbers"] = int(numpy.random.get_state()[2]), float(numpy.random.get_state()[1].sum())
    found["Python's random numbers"] = hash(random.getstate())
    return found


def _is_torchs(key: str) -> bool:
    return key in ("training", "_parameters", "_buffers", "_modules", "_call_impl") or key.endswith(
        ("_hooks", "_with_kwargs", "_called", "_hook")
    )


def _plain(value: Any) -> Any:
    match value:
        case Tensor():
            return value.detach().clone()
        case torch.Generator():
            return value.get_state()
        case list() | tuple():
            return [_plain(entry) for entry in value]
        case dict():
            return {key: _plain(entry) for key, entry in value.items()}
        case int() | float() | str() | bool() | None:
            return value
    return type(value).__name__


# -- comparing ---------------------------------------------------------------------------------------------------------


def off(found: Tensor, expected: Tensor) -> float:
    """How far ``found`` lies off, relative to the largest number of ``expected``."""
    if found.shape != expected.shape:
        return float("inf")
    if not found.numel():
        return 0.0
    found, expected = found.double() if not found.is_complex() else found, expected
    size = max(float(expected.abs().max()), 1e-30)
    return float((found - expected).abs().max()) / size


def assert_gradients(found: dict[str, Tensor | None], expected: dict[str, Tensor | None], what: str = "") -> None:
    """The same gradients, or none where there is none; zeros and None are alike."""
    largest = max([float(g.abs().max()) for g in expected.values() if g is not None and g.numel()] or [1.0])
    wrong = []
    for name, theirs in expected.items():
        ours = found[name]
        if _is_nothing(ours) and _is_nothing(theirs):
            continue
        if _is_nothing(ours) and theirs is not None and float(theirs.abs().max()) > 1e-12 * largest:
            wrong.append(f"{name} has no gradient, expected up to {float(theirs.abs().max()):.1e}")
        elif theirs is None and ours is not None:
            wrong.append(f"{name} has a gradient up to {float(ours.abs().max()):.1e}, expected none")
        elif ours is not None and theirs is not None:
            by = float((ours - theirs).abs().max()) / max(float(theirs.abs().max()), 1e-6 * largest)
            if by > BOUND:
                wrong.append(f"{name} is off by {by:.1e}")
    assert not wrong, f"{what}gradients: {'; '.join(wrong)}"


def _is_nothing(gradient: Tensor | None) -> bool:
    return gradient is None or not bool(gradient.any())


def assert_outputs(found: list[Tensor], expected: list[Tensor]) -> None:
    """The same outputs."""
    assert len(found) == len(expected), f"outputs: {len(found)} tensors, expected {len(expected)}"
    worst = max(off(ours, theirs) for ours, theirs in zip(found, expected, strict=True))
    assert worst <= BOUND, f"outputs: off by {worst:.1e}"


def assert_left(found: dict[str, Any], expected: dict[str, Any], what: str = "") -> None:
    """The same buffers, attributes and random states."""
    wrong = [name for name in {**expected, **found} if name not in found or name not in expected]
    assert not wrong, f"{what}state: only on one side: {', '.join(sorted(wrong))}"
    wrong = [name for name in expected if not _same(found[name], expected[name])]
    assert not wrong, f"{what}state: {', '.join(f'{n} ({_short(found[n])}, not {_short(expected[n])})' for n in wrong)}"


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(theirs, Tensor):
        return isinstance(ours, Tensor) and ours.dtype == theirs.dtype and off(ours, theirs) <= BOUND
    if isinstance(theirs, list | tuple):
        return isinstance(ours, list | tuple) and len(ours) == len(theirs) and all(map(_same, ours, theirs))
    if isinstance(theirs, dict):
        return (
            isinstance(ours, dict) and ours.keys() == theirs.keys() and all(_same(ours[k], theirs[k]) for k in theirs)
        )
    return bool(ours == theirs)


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.flatten()[:1].tolist()}..."
    if isinstance(value, list):
        return f"{len(value)} entries"
    return str(value)[:40]
