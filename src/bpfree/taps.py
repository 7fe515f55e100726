"""The choice of taps: the modules whose outputs receive a signal."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn

from bpfree.blocks import pattern_text, patterns_for, warn_of_left_out_blocks
from bpfree.errors import TapSelectionError, nearest
from bpfree.nonlinearities import is_nonlinearity
from bpfree.repeated_blocks import blocks_below_the_error
from bpfree.tabulate import fold_names
from bpfree.tap_values import Key

TapPart: TypeAlias = "type[nn.Module] | str"
"""A module type, a name or a glob pattern."""

TapChoice: TypeAlias = "TapPart | Callable[[str, nn.Module], bool] | Sequence[TapPart] | Mapping[TapPart, Key] | None"
"""The type of ``taps=``: a module type, a name or glob pattern, several of these, a predicate, "blocks", or None.

A mapping also says which tensor of the modules' outputs is meant: ``{"rnn": (1, 0), nn.Tanh: None}``.
"""


class Tap(nn.Module):
    """An identity that marks a place for feedback in a model whose non-linearities are functions.

    Example::

        self.tap = bpfree.Tap()
        ...
        h = self.tap(torch.tanh(self.fc1(x)))

    Args:
        output: Where the tensor is in a tuple, list, dictionary or object that the tap is given: an index, a key, a
            field's name, or a path of these. None: the first floating point tensor.
    """

    def __init__(self, output: Key = None) -> None:
        super().__init__()
        self.output = output

    def forward(self, input: Any) -> Any:
        """Return ``input`` as it is."""
        return input

    def extra_repr(self) -> str:
        """Return the place of the tensor, if one was named."""
        return "" if self.output is None else f"output={self.output!r}"


class Cut(nn.Module):
    """An identity at which direct rules end the gradient and send no signal.

    What lies below learns along other paths, or not at all: embeddings that also enter the output by a product of
    their own, and get no signal from the network behind the cut. It is no tap. Backpropagation and layerwise rules
    pass it, and so does a pass within ``attachment.paused()``. Put it below the taps: of a tap from which nothing but
    a cut leads up, the error does not depend.

    Example::

        self.cut = bpfree.Cut()
        ...
        return pairs(embeddings) + self.network(self.cut(embeddings))
    """

    def forward(self, input: Tensor) -> Tensor:
        """Return ``input`` as it is."""
        return input


def select_taps(model: nn.Module, taps: TapChoice, prefix: str = "") -> dict[str, nn.Module]:
    """Find the modules of ``model`` that ``taps`` means, by name, in the order of registration.

    Names begin with ``prefix``, the name of ``model`` in a larger one.

    Raises:
        TapSelectionError: A name, pattern or type matches nothing. None (every non-linearity) may match nothing.
    """
    modules = {name: module for name, module in model.named_modules(prefix=prefix) if name != prefix}
    if taps is None:
        return _nonlinearities(modules)
    if callable(taps) and not isinstance(taps, type | nn.Module):
        chosen = {name for name, module in modules.items() if taps(name, module)}
        if not chosen:
            raise TapSelectionError("taps=: the predicate is false for every module of the model.")
    else:
        parts: Iterable[Any] = [taps]
        if isinstance(taps, Iterable) and not isinstance(taps, type | str):  # callers are not type-checked
            parts = taps
        found = {part: _matches(part, modules, model, prefix) for part in parts}
        if not found:
            raise TapSelectionError("taps= is empty: name at least one module, or leave it out.")
        chosen = {name for names in found.values() for name in names}
        warn_of_left_out_blocks(found, modules)
    return {name: module for name, module in modules.items() if name in chosen}


def known_names(model: nn.Module, prefix: str = "") -> dict[str, str]:
    """Return, for every name by which ``model`` can be asked for a module, the one that ``named_modules()`` gives.

    A module that is registered in several places has several names, and is known by the first one alone.
    """
    first = {module: name for name, module in model.named_modules(prefix=prefix)}
    return {name: first[module] for name, module in model.named_modules(prefix=prefix, remove_duplicate=False)}


def tensor_keys(taps: TapChoice, chosen: Mapping[str, nn.Module], model: nn.Module, prefix: str = "") -> dict[str, Key]:
    """Return the place of the tap's tensor in the outputs of the ``chosen`` modules, for those where it was given.

    ``chosen`` are modules of ``model``, named as :func:`select_taps` does. If several entries of a mapping match one
    module, the last one counts.

    Raises:
        TapSelectionError: A place is not a valid one.
    """
    keys = {name: module.output for name, module in chosen.items() if isinstance(module, Tap)}
    if isinstance(taps, Mapping):
        for part, key in taps.items():
            keys.update(dict.fromkeys(_matches(part, chosen, model, prefix), key))
    for name, key in keys.items():
        steps = key if isinstance(key, tuple) else (key,)
        if key is not None and not all(isinstance(step, int | str) for step in steps):  # callers are not type-checked
            raise TapSelectionError(
                f"taps=: {key!r} says nowhere in the output of {name!r} where its tensor is: an index, a key or a "
                "field's name, a path of these such as (1, 0), or None for the first floating point tensor."
            )
    return {name: key for name, key in keys.items() if key is not None}


def _nonlinearities(modules: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return taps and non-linearities, but none inside another: a spiking cell's surrogate is a part of the cell."""
    chosen: dict[str, nn.Module] = {}
    for name, module in modules.items():
        above = (name[:end] for end, letter in enumerate(name) if letter == ".")
        if (isinstance(module, Tap) or is_nonlinearity(module)) and chosen.keys().isdisjoint(above):
            chosen[name] = module
    return chosen


def nothing_to_tap(model: nn.Module) -> TapSelectionError:
    """Make the error for a rule that needs taps if none are named and the model has no non-linearity modules."""
    place = _place(model)
    kinds = fold_names(f"{name} ({type(module).__name__})" for name, module in model.named_children())
    what = f"It has {_listed(kinds)}." if kinds else "It has no submodules at all."
    named = "" if place is None else f" Name the modules behind which feedback is to enter: {place}."
    return TapSelectionError(
        "taps=: no module of the model is a non-linearity of torch, or is named and built like one, so feedback has no "
        f"place to enter. {what}{named} Non-linearities that are functions (torch.relu, F.gelu) are not seen: put a "
        "bpfree.Tap() behind them."
    )


def _place(model: nn.Module) -> str | None:
    """Return the option text that names repeated blocks or recurrent layers; None if there are none."""
    blocks = blocks_below_the_error(model)
    if blocks:
        patterns = patterns_for(blocks, [name for name, _ in model.named_modules()])
        short = f"taps={pattern_text(patterns)}. Or " if len(patterns) < 4 else ""
        return f"{short}taps='blocks', which means {_listed(fold_names(blocks))}"
    recurrent = (name for name, module in model.named_modules() if name and isinstance(module, nn.RNNBase))
    return next((f"taps={name!r}" for name in recurrent), None)


def _listed(names: Sequence[str], most: int = 12) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _named(pattern: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name == pattern or fnmatch.fnmatchcase(name, pattern)]


def _matches(part: TapPart, modules: Mapping[str, nn.Module], model: nn.Module, prefix: str) -> list[str]:
    if isinstance(part, str):
        found = _named(part, modules)
        if not found:  # the other names of modules that have several
            known = known_names(model, prefix)
            found = list(dict.fromkeys(known[name] for name in _named(part, known) if known[name] in modules))
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
