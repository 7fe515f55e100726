"""Models as plain values: they print as the Python that makes them, shrink, and can be built again from their text."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Part:
    """Something that maps one tensor to another."""

    def __repr__(self) -> str:
        """The call that makes it, without arguments at their defaults."""
        told = [(option, getattr(self, option.name)) for option in fields(self)]
        return f"{type(self).__name__}({', '.join(f'{o.name}={v!r}' for o, v in told if v != o.default)})"


Parts: TypeAlias = tuple[Part, ...]


@dataclass(frozen=True, repr=False)
class Dense(Part):
    """A layer of weights: on images a convolution. ``kind`` says how it is written."""

    width: int = 4
    kind: str = "plain"


@dataclass(frozen=True, repr=False)
class Activation(Part):
    """A non-linearity; ``form``: a module, a function inside a module of its own, in place, with a Tap behind it."""

    function: str = "tanh"
    form: str = "module"


@dataclass(frozen=True, repr=False)
class Norm(Part):
    """A normalization layer."""

    kind: str = "layer"


@dataclass(frozen=True, repr=False)
class Noise(Part):
    """Random numbers from one of many places."""

    kind: str = "dropout"


@dataclass(frozen=True, repr=False)
class State(Part):
    """Something that one pass leaves for the next."""

    kind: str = "counter"


@dataclass(frozen=True, repr=False)
class Bend(Part):
    """A place where the way back is not the derivative of the way forward."""

    kind: str = "detached"


@dataclass(frozen=True, repr=False)
class Extra(Part):
    """A loss term that is kept on the module."""

    kind: str = "penalty"


@dataclass(frozen=True, repr=False)
class Offset(Part):
    """A parameter of its own that is added or multiplied."""

    kind: str = "added"


@dataclass(frozen=True, repr=False)
class Tied(Part):
    """Two layers with one weight."""

    kind: str = "transposed"


@dataclass(frozen=True, repr=False)
class Recurrent(Part):
    """A recurrence over time, or over a few steps where there is no time."""

    kind: str = "loop"


@dataclass(frozen=True, repr=False)
class Attention(Part):
    """Attention over tokens."""

    kind: str = "softmax"


@dataclass(frozen=True, repr=False)
class Force(Part):
    """The gradient of an energy, taken inside the model's own forward pass."""


@dataclass(frozen=True, repr=False)
class Residual(Part):
    """x + parts(x)."""

    parts: Parts = ()


@dataclass(frozen=True, repr=False)
class Branch(Part):
    """Two ways that are joined again."""

    left: Parts = ()
    right: Parts = ()
    join: str = "add"


@dataclass(frozen=True, repr=False)
class Shared(Part):
    """The same modules, called several times."""

    parts: Parts = ()
    times: int = 2


@dataclass(frozen=True, repr=False)
class Checkpoint(Part):
    """Activation checkpointing."""

    parts: Parts = ()


@dataclass(frozen=True, repr=False)
class Hooked(Part):
    """Parts with a hook of the user's, or called in an unusual way."""

    parts: Parts = ()
    kind: str = "output"


@dataclass(frozen=True, repr=False)
class Model(Part):
    """A whole model with its batch and its loss.

    Attributes:
        parts: What lies below the head.
        input: ``"flat"`` (N, d), ``"tokens"`` (N, T, d), ``"integers"`` (N, T) with an embedding, ``"image"``
            (N, C, H, W), ``"time"`` (T, N, d).
        samples: N.
        steps: T.
        read: How a sequence is read: its ``"mean"``, its ``"last"`` step, or ``"each"``.
        output: What the model returns.
        loss: ``"ce"``, ``"mse"``, ``"masked"`` (the first row has no target).
        call: How it is called.
        taps: Places of ``parts`` that are tapped, ``"linear"`` layers, or all ``"leaves"``; None is the default.
        error_at: Whether the error is taken at the head by name.
        frozen: The number of the parameter that is not to learn; None for none.
    """

    parts: Parts = ()
    input: str = "flat"
    samples: int = 5
    steps: int = 3
    read: str = "mean"
    output: str = "tensor"
    loss: str = "ce"
    call: str = "positional"
    taps: tuple[int, ...] | str | None = None
    error_at: bool = False
    frozen: int | None = None


def walk(part: Any) -> Iterator[Part]:
    """``part`` and all parts inside it."""
    yield part
    for option in fields(part):
        value = getattr(part, option.name)
        if isinstance(value, tuple):
            for inner in value:
                if isinstance(inner, Part):
                    yield from walk(inner)


def reductions(model: Model) -> Iterator[Model]:
    """Smaller models, one change each: the most promising first."""
    for parts in _fewer(model.parts):
        if parts:
            yield replace(model, parts=parts)
    yield from _plainer(model)


def _fewer(parts: Parts) -> Iterator[Parts]:
    for at, part in enumerate(parts):
        yield parts[:at] + parts[at + 1 :]
        for inner in _inside(part):
            yield parts[:at] + inner + parts[at + 1 :]
    for at, part in enumerate(parts):
        for smaller in _smaller(part):
            yield (*parts[:at], smaller, *parts[at + 1 :])


def _inside(part: Part) -> Iterator[Parts]:
    for option in fields(part):
        value = getattr(part, option.name)
        if isinstance(value, tuple):
            yield value


def _smaller(part: Part) -> Iterator[Part]:
    for option in fields(part):
        value = getattr(part, option.name)
        if isinstance(value, tuple):
            for parts in _fewer(value):
                yield replace(part, **{option.name: parts})
    yield from _plainer(part)


def _plainer(part: Any) -> Iterator[Any]:
    """The same with one option at its default."""
    for option in fields(part):
        if option.name not in ("parts", "left", "right") and getattr(part, option.name) != option.default:
            yield replace(part, **{option.name: option.default})


def is_sound(model: Model) -> bool:
    """Whether the model is one without a rule: what a checkpoint runs twice must give the same twice."""
    inside = [part for held in walk(model) if isinstance(held, Checkpoint) for part in walk(held)]
    return not any(_is_different_twice(part) for part in inside)


def _is_different_twice(part: Part) -> bool:
    kind = getattr(part, "kind", "")
    noisy = isinstance(part, Noise) and kind in ("numpy", "python", "generator")
    norm = isinstance(part, Norm) and kind in ("batch", "instance")
    return noisy or norm or isinstance(part, State | Extra) or kind in ("count", "spectral")


def read(text: str) -> Model:
    """The description that prints as ``text``."""
    names = {kind.__name__: kind for kind in _kinds(Part)}
    found = eval(text, {"__builtins__": {}}, names)
    assert isinstance(found, Model)
    return found


def _kinds(base: type) -> Iterator[type]:
    for kind in base.__subclasses__():
        yield kind
        yield from _kinds(kind)
