"""The checks of ``attach()``: it refuses options that mean nothing, and modules that do not exist."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from bpfree.distributed import is_sharded
from bpfree.errors import AlreadyShardedError, ErrorPlacementError, OptionError, choice, nearest
from bpfree.mechanisms.base import Mechanism, Rule
from bpfree.mechanisms.direct.mechanism import DirectMechanism
from bpfree.mechanisms.direct.rule import DirectRule
from bpfree.mechanisms.layerwise.rule import LayerwiseRule
from bpfree.plan import SampleAxes
from bpfree.taps import known_names


def check_options(rule: Rule, window: int, streaming: bool, threads: int | None) -> None:
    """Raise OptionError for what is no rule, and for ways of running it that it does not have."""
    check_rule(rule)
    _check_window(rule, window)
    _check_streaming(rule, window, streaming)
    _check_threads(rule, threads, alone=window == 1 and not streaming)


def check_rule(rule: Rule) -> None:
    """Raise OptionError for what is no rule."""
    if not isinstance(rule, Rule):  # callers are not type-checked
        hint = f"bpfree.{rule.__name__}()" if isinstance(rule, type) else "bpfree.DFA()"
        raise OptionError(f"rule={rule!r} is not a rule. Pass an instance, for example {hint}.")


def _check_window(rule: Rule, window: int) -> None:
    direct = isinstance(rule, DirectRule)
    if not isinstance(window, int) or window < 1 or (window > 1 and not direct):  # callers are not type-checked
        raise OptionError(
            f"window={window!r}: a whole number, at least 1, and more than 1 for direct rules only; the rule is {rule}."
        )


def check_alternate(rule: Rule, alternate: int, order: str, window: int) -> None:
    """Raise OptionError for alternating cuts that mean nothing, or that the rule or a window leaves no room for."""
    choice("alternate_order", order, ("cyclic", "random"))
    if not isinstance(alternate, int) or alternate < 1:  # callers are not type-checked
        raise OptionError(f"alternate={alternate!r}: a whole number, at least 1; 1 cuts every tap in every step.")
    if alternate == 1:
        return
    if not isinstance(rule, DirectRule):
        raise OptionError(f"alternate={alternate} is for direct rules such as bpfree.FDFA(); the rule is {rule}.")
    if not rule.sends_signals:
        raise OptionError(
            f"alternate={alternate}: {rule} sends no signal to the taps that are cut, so that layers would stop "
            "learning in turns. Leave it out; to train only the upper layers, name only their taps."
        )
    if window > 1:
        raise OptionError(
            f"alternate={alternate} and window={window} both make the backward pass deeper than one segment: leave one "
            "of them out."
        )


def _check_streaming(rule: Rule, window: int, streaming: bool) -> None:
    if streaming and not isinstance(rule, DirectRule):
        raise OptionError(
            f"streaming=True: {rule} needs the whole graph, or stores none anyway. Streaming is for direct rules such "
            "as bpfree.DFA(); for backpropagation take torch.utils.checkpoint."
        )
    if streaming and window > 1:
        raise OptionError(
            f"window={window} keeps the graphs of several segments: it cannot stream. Leave one of them out."
        )


def _check_threads(rule: Rule, threads: int | None, *, alone: bool) -> None:
    if threads == 1:
        return
    if threads is not None and (not isinstance(threads, int) or threads < 1):  # callers are not type-checked
        raise OptionError(f"threads={threads!r}: a whole number, at least one; None finds out what is faster.")
    if not isinstance(rule, DirectRule) or not alone:
        raise OptionError(
            f"threads={threads}: only the plain segments of direct rules such as bpfree.DFA() can run at once, not "
            "those of a layerwise rule, a window or a stream."
        )


def check_attachable(model: nn.Module, seed: int, batch_dims: int | None) -> None:
    """Raise what ``attach()`` raises for a seed or dimensions that mean nothing, and a model that is sharded."""
    # Callers are not type-checked.
    if not isinstance(model, nn.Module):
        raise OptionError(f"the model is of type {type(model).__name__}, and must be a torch.nn.Module.")
    if not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise OptionError(f"seed={seed!r} must be a whole number (int) between 0 and 2^63 - 1.")
    if batch_dims is not None and (not isinstance(batch_dims, int) or batch_dims < 1):
        raise OptionError(f"batch_dims={batch_dims!r}: a whole number; at least the first dimension is the batch.")
    if is_sharded(model):
        raise AlreadyShardedError(
            "the model is sharded (fully_shard): attach the rule first and shard then, so that its hooks see whole "
            "weights."
        )


def check_sample_axes(said: SampleAxes, batch_dims: int | None, taps: Mapping[str, nn.Module]) -> None:
    """Raise OptionError for axes that mean nothing, are of no tap, or are said twice."""
    if said is None:
        return
    if batch_dims is not None:
        raise OptionError(
            f"batch_dims={batch_dims} and sample_axes={said!r} say the same thing: leave one of them out."
        )
    of_places = said if isinstance(said, Mapping) else {"*": said}
    for name, axes in of_places.items():
        several = axes if isinstance(axes, tuple) else (axes,)
        if not several or not all(type(axis) is int for axis in several):  # callers are not type-checked
            raise OptionError(
                f"sample_axes={said!r}: an axis (int) or several (tuple), or a mapping from the names of taps, glob "
                "patterns of them or 'error' to these: {'*': 1, 'error': 0}."
            )
        named = name in ("error", "*") or name in taps
        if not named and not (isinstance(name, str) and any(fnmatch.fnmatchcase(tap, name) for tap in taps)):
            raise OptionError(f"sample_axes= names {name!r}, which is no tap. {nearest(str(name), ['error', *taps])}")


def check_within(rule: Rule, mechanism: Mechanism, within: LayerwiseRule | None) -> None:
    """Raise OptionError where no layerwise rule can carry signals inside the segments."""
    # A direct rule need not have segments: forward gradients of weights have none.
    if within is not None and not (isinstance(mechanism, DirectMechanism) and isinstance(within, LayerwiseRule)):
        raise OptionError(
            f"within={within!r}: a layerwise rule (bpfree.KolenPollack(), bpfree.FA()) inside the segments of a direct "
            f"one; the rule is {rule}."
        )


def error_modules(model: nn.Module, names: str | Sequence[str] | None) -> dict[str, nn.Module]:
    """Return the modules that ``error_at=names`` means, by name; None is the model.

    Raises:
        ErrorPlacementError: There is none of one of these names, or one is there twice.
    """
    modules = dict(model.named_modules())
    asked: list[Any] = ["" if names is None else names]
    if isinstance(names, Iterable) and not isinstance(names, str):  # callers are not type-checked
        asked = list(names)
    if any(name not in modules for name in asked):
        known = known_names(model)
        asked = [known.get(name, name) for name in asked]
    if not asked or len(set(asked)) < len(asked):
        raise ErrorPlacementError(f"error_at={names!r}: name one module, or several different ones.")
    for name in asked:
        if name not in modules:
            raise ErrorPlacementError(f"error_at={name!r}: the model has no such module. {nearest(str(name), modules)}")
    return {name: modules[name] for name in asked}
