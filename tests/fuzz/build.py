"""From a description to a model, its batch and its loss."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import singledispatch
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fuzz import modules as made
from fuzz.descriptions import (
    Activation,
    Attention,
    Bend,
    Branch,
    Checkpoint,
    Dense,
    Extra,
    Force,
    Hooked,
    Model,
    Noise,
    Norm,
    Offset,
    Part,
    Recurrent,
    Residual,
    Shared,
    State,
    Tied,
)
from fuzz.modules import Shape, channels, is_image

CLASSES, WIDTH, VOCABULARY = 3, 4, 6


@contextmanager
def doubles() -> Iterator[None]:
    """Within this context new tensors are in double precision."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def seed_everything(seed: int) -> None:
    """Begin all global random numbers anew."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed also prepares devices, which takes as long as a pass
    numpy.random.seed(seed)
    random.seed(seed)


# -- parts -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Place:
    """What a part is put behind: the shape there, and which axis is time (None: there is none)."""

    shape: Shape
    time: int | None

    @property
    def width(self) -> int:
        return channels(self.shape)

    def of(self, width: int) -> Place:
        shape = (width, *self.shape[1:]) if is_image(self.shape) else (*self.shape[:-1], width)
        return Place(shape, self.time)


Built = tuple[nn.Module, Place]


@singledispatch
def build(part: Part, place: Place) -> Built:
    """The module of ``part`` behind ``place``, and what is there behind it."""
    raise TypeError(part)


@build.register
def _(part: Dense, place: Place) -> Built:
    table = made.CONVOLUTION if is_image(place.shape) else made.LINEAR
    return table.get(part.kind, table["plain"])(place.width, part.width), place.of(part.width)


@build.register
def _(part: Activation, place: Place) -> Built:
    if part.function == "spike":
        module: nn.Module = made.Swish(made.Spike.apply)
        return (nn.Sequential(module, made.tap()) if part.form == "tap" else module), place
    function = made.FUNCTIONS[part.function]
    if part.form == "function":
        return made.Applied(function), place
    if part.form == "own":
        return made.Swish(function), place
    if part.form == "tap":
        return nn.Sequential(made.Applied(function), made.tap()), place
    table = made.IN_PLACE if part.form == "in_place" else made.MODULES
    return table.get(part.function, made.MODULES[part.function])(), place


@build.register
def _(part: Norm, place: Place) -> Built:
    if is_image(place.shape):
        kinds = {"batch": nn.BatchNorm2d(place.width), "instance": nn.InstanceNorm2d(place.width, affine=True)}
        return kinds.get(part.kind, nn.GroupNorm(1, place.width)), place
    if part.kind == "batch" and place.time is None:
        return nn.BatchNorm1d(place.width), place
    return (nn.RMSNorm(place.width) if part.kind == "rms" else nn.LayerNorm(place.width)), place


@build.register
def _(part: Noise, place: Place) -> Built:
    return (nn.Dropout(0.3) if part.kind == "dropout" else made.NoiseOf(part.kind)), place


@build.register
def _(part: State, place: Place) -> Built:
    return made.StateOf(part.kind), place


@build.register
def _(part: Bend, place: Place) -> Built:
    return made.BendOf(part.kind), place


@build.register
def _(part: Extra, place: Place) -> Built:
    kind = "penalty" if is_image(place.shape) and part.kind in ("side_head", "router") else part.kind
    return made.ExtraOf(kind, place.width), place


@build.register
def _(part: Offset, place: Place) -> Built:
    return made.OffsetOf(part.kind, place.width, is_image(place.shape)), place


@build.register
def _(part: Force, place: Place) -> Built:
    return (nn.Tanh() if is_image(place.shape) else made.ForceOf(place.width)), place


@build.register
def _(part: Tied, place: Place) -> Built:
    return (nn.Tanh() if is_image(place.shape) else made.TiedOf(part.kind, place.width)), place


@build.register
def _(part: Recurrent, place: Place) -> Built:
    if is_image(place.shape):
        return nn.Conv2d(place.width, place.width, 1), place
    if part.kind == "loop":
        return made.Loop(place.width, place.time), place
    if part.kind == "cells" or place.time is None:
        return made.Cells(place.width, place.time), place
    layer = {"gru": nn.GRU, "rnn": nn.RNN, "lstm": nn.LSTM}[part.kind]
    return made.First(layer(place.width, place.width, batch_first=place.time == 1)), place


@build.register
def _(part: Attention, place: Place) -> Built:
    if place.time is None:
        return made.ResidualOf(nn.Linear(place.shape[-1], place.shape[-1])), place
    if part.kind == "encoder":
        layer = nn.TransformerEncoderLayer(place.width, 1, 5, dropout=0.0, batch_first=place.time == 1)
        return layer, place
    return made.Heads(part.kind, place.width, place.time), place


def _sequence(parts: Sequence[Part], place: Place) -> tuple[nn.Sequential, Place]:
    found = []
    for part in parts:
        module, place = build(part, place)
        found.append(module)
    return made.Straight(*found), place


def _back_to(inner: nn.Sequential, now: Place, width: int) -> nn.Sequential:
    """``inner``, followed by a layer where it has changed the width."""
    if now.width == width:
        return inner
    layer = nn.Conv2d(now.width, width, 1) if is_image(now.shape) else nn.Linear(now.width, width)
    return made.Straight(*inner, layer)


@build.register
def _(part: Residual, place: Place) -> Built:
    inner, behind = _sequence(part.parts, place)
    return made.ResidualOf(_back_to(inner, behind, place.width)), place


@build.register
def _(part: Branch, place: Place) -> Built:
    (left, one), (right, two) = _sequence(part.left, place), _sequence(part.right, place)
    if part.join == "cat":
        axis = 1 if is_image(place.shape) else -1
        return made.BranchOf(left, right, "cat", axis), place.of(one.width + two.width)
    return made.BranchOf(left, _back_to(right, two, one.width), part.join, 0), one


@build.register
def _(part: Shared, place: Place) -> Built:
    inner, behind = _sequence(part.parts, place)
    return made.SharedOf(_back_to(inner, behind, place.width), part.times), place


@build.register
def _(part: Checkpoint, place: Place) -> Built:
    inner, behind = _sequence(part.parts, place)
    return made.CheckpointOf(inner), behind


@build.register
def _(part: Hooked, place: Place) -> Built:
    inner, behind = _sequence(part.parts, place)
    if part.kind in ("keyword", "forward"):
        return made.KeywordOf(inner, part.kind), behind
    return made.hooked(inner, part.kind), behind


# -- the whole ---------------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    """What a model returns that returns objects."""

    logits: Tensor
    hidden: Tensor


class Net(nn.Module):
    """The model of a description."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self._output, self._read = model.output, model.read
        self._time = {"tokens": 1, "integers": 1, "time": 0}.get(model.input)
        if model.input == "integers":
            self.embed = nn.Embedding(VOCABULARY, WIDTH)
        place = Place(_sample_shape(model), self._time)
        self.parts, behind = _sequence(model.parts, place)
        self.head = nn.Linear(behind.width, CLASSES)
        if model.output == "two":
            self.value = nn.Linear(behind.width, 1)

    def forward(self, x: Any, gain: Any = None, targets: Tensor | None = None) -> Any:
        if isinstance(x, dict):
            x, gain = x["x"], x["gain"]
        h = self.embed(x) if hasattr(self, "embed") else x
        if gain is not None:
            h = h * gain
        h = self._pooled(self.parts(h))
        return self._answer(h, self.head(h), targets)

    def predict(self, x: Tensor, targets: Tensor | None = None) -> Any:
        """The same by another method, which users call in place of the model."""
        h = self._pooled(self.parts(self.embed(x) if hasattr(self, "embed") else x))
        return self._answer(h, self.head(h), targets)

    def _pooled(self, h: Tensor) -> Tensor:
        if self._time is None:
            return h.mean((2, 3)) if h.dim() == 4 else h
        if self._read == "each":
            return h
        return h.mean(self._time) if self._read == "mean" else h.select(self._time, -1)

    def _answer(self, h: Tensor, logits: Tensor, targets: Tensor | None) -> Any:
        match self._output:
            case "log_softmax":
                return logits.log_softmax(-1)
            case "softmax":
                return logits.softmax(-1)
            case "sigmoid":
                return logits.sigmoid()
            case "tuple":
                return logits, h
            case "dict":
                return {"logits": logits, "hidden": h}
            case "object":
                return Answer(logits, h)
            case "two":
                return logits, self.value(h)
            case "loss":
                assert targets is not None
                return {"loss": F.cross_entropy(logits.reshape(-1, CLASSES), targets.reshape(-1)), "logits": logits}
        return logits


def _sample_shape(model: Model) -> Shape:
    return {
        "flat": (WIDTH,),
        "tokens": (model.steps, WIDTH),
        "integers": (model.steps, WIDTH),
        "time": (model.steps, WIDTH),
        "image": (2, 4, 4),
    }[model.input]


@dataclass
class Batch:
    """One batch: the model's arguments and the targets of the loss."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    classes: Tensor
    outside: nn.Module | None

    def given(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments; of a model that is fed by another one, that one runs now."""
        if self.outside is None:
            return self.args, self.kwargs
        return (self.outside(self.args[0]), *self.args[1:]), self.kwargs


@dataclass
class Subject:
    """A model and two batches for it; all made anew, and the same, by every :func:`make`."""

    description: Model
    net: Net
    batches: list[Batch]

    @property
    def options(self) -> dict[str, Any]:
        """What ``bpfree.attach`` is given besides the rule."""
        found: dict[str, Any] = {"error_at": "head"} if self.description.error_at else {}
        taps = self.description.taps
        if taps == "linear":
            found["taps"] = nn.Linear
        elif taps == "leaves":
            found["taps"] = lambda name, module: not list(module.children())
        elif taps is not None:
            places = {int(place) % len(self.net.parts) for place in taps}
            found["taps"] = [f"parts.{place}" for place in sorted(places)]
        return found

    def parameters(self) -> dict[str, nn.Parameter]:
        """All parameters, those outside the model too."""
        found = dict(self.net.named_parameters())
        outside = self.batches[0].outside
        if outside is not None:
            found |= {f"outside.{name}": parameter for name, parameter in outside.named_parameters()}
        return found

    def run(self, number: int) -> tuple[Any, Tensor]:
        """A forward pass on a batch: what the model returns, and the loss."""
        batch = self.batches[number % len(self.batches)]
        args, kwargs = batch.given()
        way = {"forward": self.net.forward, "method": self.net.predict}.get(self.description.call, self.net)
        result = way(*args, **kwargs)
        first, *others = self.losses(result, number)
        return result, sum(others, first)

    def losses(self, result: Any, number: int) -> list[Tensor]:
        """The terms of the loss: of what the model returns, and of what it keeps on itself."""
        kept = [getattr(module, "penalty", None) for module in self.net.modules()]
        returned = losses_of(self.description, result, self.batches[number % len(self.batches)].classes)
        return returned + [0.5 * penalty for penalty in kept if isinstance(penalty, Tensor)]


def losses_of(model: Model, result: Any, classes: Tensor) -> list[Tensor]:
    """The losses of what the model returns, without what is kept inside it."""
    if model.output == "loss":
        return [result["loss"]]
    if model.output == "two":
        logits, value = result
        return [_loss_of(model, logits, classes), value.square().mean()]
    if isinstance(result, tuple):
        result = result[0]
    elif isinstance(result, dict):
        result = result["logits"]
    elif isinstance(result, Answer):
        result = result.logits
    return [_loss_of(model, result, classes)]


def _loss_of(model: Model, output: Tensor, classes: Tensor) -> Tensor:
    rows, flat = output.reshape(-1, CLASSES), classes.reshape(-1)
    if model.output == "log_softmax":
        return F.nll_loss(rows, flat)
    onehot = F.one_hot(flat.clamp_min(0), CLASSES).to(rows)
    if model.output == "sigmoid":
        return F.binary_cross_entropy(rows, onehot)
    if model.output == "softmax" or model.loss == "mse":
        return F.mse_loss(rows, onehot)
    return F.cross_entropy(rows, flat)


def make(description: Model, *, seed: int = 0) -> Subject:
    """Build the model and its batches."""
    with doubles():
        seed_everything(1000 + seed)
        net = Net(description)
        outside = nn.Linear(WIDTH, WIDTH) if description.call == "outside" else None
        batches = [_batch(description, outside) for _ in range(2)]
    parameters = list(net.parameters())
    if description.frozen is not None:
        parameters[description.frozen % len(parameters)].requires_grad_(False)
    return Subject(description, net.train(), batches)


def _batch(model: Model, outside: nn.Module | None) -> Batch:
    n, shape = model.samples, _sample_shape(model)
    x = torch.randn(n, *shape)
    if model.input == "integers":
        x = torch.randint(0, VOCABULARY, (n, model.steps))
    if model.input == "time":
        x = x.transpose(0, 1).contiguous()
    lead: tuple[int, ...] = (n,)
    if model.input in ("tokens", "integers", "time") and model.read == "each":
        lead = (model.steps, n) if model.input == "time" else (n, model.steps)
    classes = torch.randint(0, CLASSES, lead)
    if model.loss == "masked" and model.output in ("tensor", "tuple", "dict", "object", "two", "log_softmax"):
        classes[0] = -100
    kwargs: dict[str, Any] = {"targets": classes} if model.output == "loss" else {}
    gain = torch.rand(()) + 0.5
    match model.call:
        case "keyword":
            return Batch((), {"x": x, **kwargs}, classes, None)
        case "reversed":
            return Batch((), {"gain": gain, **kwargs, "x": x}, classes, None)
        case "ordered":
            return Batch((x, gain), kwargs, classes, None)
        case "nested":
            return Batch(({"x": x, "gain": gain},), kwargs, classes, None)
        case "outside":
            return Batch((x,), kwargs, classes, outside if x.is_floating_point() and x.shape[-1] == WIDTH else None)
    return Batch((x,), kwargs, classes, None)
