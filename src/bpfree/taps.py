"""Where feedback enters: choosing the modules whose outputs receive a teaching signal."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from bpfree.errors import TapSelectionError, nearest
from bpfree.tap_values import Key

TapChoice: TypeAlias = (
    "type[nn.Module] | str | Callable[[str, nn.Module], bool] | Sequence[type[nn.Module] | str] | None"
)
"""What ``taps=`` accepts: a module type, a name or glob pattern, several of these, a predicate, or None."""


class Tap(nn.Module):
    """An identity that marks a place for feedback in a model whose non-linearities are functions.

    Example::

        self.tap = bpfree.Tap()
        ...
        h = self.tap(torch.tanh(self.fc1(x)))
    """

    def __init__(self, output: Key = None) -> None:
        super().__init__()
        self.output = output

    def forward(self, input: Any) -> Any:
        """Return ``input`` as it is."""
        return input


NON_LINEARITIES: tuple[type[nn.Module], ...] = (
    Tap,
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.GLU,
    nn.Hardshrink,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.PReLU,
    nn.ReLU,
    nn.RReLU,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
    nn.Threshold,
)
"""Modules after which feedback enters by default. Softmax is left out: it ends a network or weighs attention."""


@dataclass(frozen=True)
class Site:
    """One place that feedback reaches in one forward pass.

    Attributes:
        name: The tap module's name in the model; from its second call on with ``#2``, ``#3``, ... behind it.
        module: The tap module's name alone: calls of one module have one feedback.
        batch: The leading shape that is shared with the error: ``(N,)`` or, for sequences, ``(N, T)``.
        features: What is left, n_l numbers for each of the ``prod(batch)`` rows.
    """

    name: str
    module: str
    batch: tuple[int, ...]
    features: tuple[int, ...]

    @property
    def width(self) -> int:
        """n_l, the number of features of one row."""
        return product(self.features)


def product(shape: Iterable[int]) -> int:
    """The product of the sizes in ``shape``; 1 if there are none."""
    result = 1
    for size in shape:
        result *= size
    return result


def select_taps(model: nn.Module, taps: TapChoice, prefix: str = "") -> dict[str, nn.Module]:
    """Find the modules of ``model`` that ``taps`` means, by name, in the order of registration.

    Names begin with ``prefix``, the name of ``model`` in a larger one.

    Raises:
        TapSelectionError: A name, pattern or type matches nothing. None (every non-linearity) may match nothing.
    """
    modules = {name: module for name, module in model.named_modules(prefix=prefix) if name != prefix}
    if taps is None:
        return {name: module for name, module in modules.items() if isinstance(module, NON_LINEARITIES)}
    if callable(taps) and not isinstance(taps, type):
        chosen = {name for name, module in modules.items() if taps(name, module)}
        if not chosen:
            raise TapSelectionError("taps=: the predicate is false for every module of the model.")
    else:
        parts: Sequence[type[nn.Module] | str] = [taps] if isinstance(taps, type | str) else taps
        if not parts:
            raise TapSelectionError("taps= is empty: name at least one module, or leave it out.")
        chosen = {name for part in parts for name in _matches(part, modules)}
    return {name: module for name, module in modules.items() if name in chosen}


def _matches(part: type[nn.Module] | str, modules: dict[str, nn.Module]) -> list[str]:
    if isinstance(part, str):
        found = [name for name in modules if name == part or fnmatch.fnmatchcase(name, part)]
        hint = nearest(part, modules) if modules else "The model has no submodules."
    elif isinstance(part, type):  # callers are not type-checked
        found = [name for name, module in modules.items() if isinstance(module, part)]
        hint = f"The model has {', '.join(sorted({type(m).__name__ for m in modules.values()}))}."
        part = part.__name__
    else:
        raise TapSelectionError(f"taps=: {part!r} is neither a module type, a name, nor a pattern.")
    if not found:
        raise TapSelectionError(f"taps=: nothing in the model matches {part!r}. {hint}")
    return found
