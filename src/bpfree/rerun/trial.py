"""Runs of a model before its own pass that leave no trace in it."""

from __future__ import annotations

from collections.abc import Generator, Hashable, Mapping
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bpfree.distributed import ranks
from bpfree.plan import Plan
from bpfree.rerun.arguments import Arguments, Call
from bpfree.rerun.find_holders import objects_among
from bpfree.rerun.module_state import State
from bpfree.rerun.random_state import RandomState
from bpfree.rerun.snapshot import hooks_put_back, put_back
from bpfree.rerun.weights import weights_put_back


@contextmanager
def without_trace(plan: Plan, call: Any) -> Generator[TorchDispatchMode]:
    """Within this context the model of ``plan`` may run on ``call``, (args, kwargs), and leaves no trace.

    The random state, the weights, and everything that the model, its hooks and its arguments keep are put back.

    Yields:
        A context for the calls of the model, which sees the weights that they write to.
    """
    model, states = plan.model, [plan.state]
    if objects := objects_among(*call):
        states.append(State(objects))
    with ExitStack() as stack:
        watched = stack.enter_context(weights_put_back(model))
        stack.callback(RandomState.now(model).restore)
        stack.enter_context(hooks_put_back(list(model.modules())))
        for state in states:
            stack.enter_context(put_back(state, state.now(copies=True)))
        stack.enter_context(_without_backward_hooks(model))
        stack.enter_context(torch.enable_grad())
        yield watched


@contextmanager
def _without_backward_hooks(model: nn.Module) -> Generator[None]:
    """Within this context no backward hook of the user's runs, neither on a module nor on a parameter."""
    of_modules = [hooks for module in model.modules() for hooks in (module._backward_hooks, module._backward_pre_hooks)]
    of_parameters = [hooks for parameter in model.parameters() if (hooks := parameter._backward_hooks)]
    # The dictionaries themselves are known to autograd: they are emptied and filled again.
    kept = [(hooks, dict(hooks)) for hooks in (*of_modules, *of_parameters) if hooks]
    try:
        for hooks, _ in kept:
            hooks.clear()
        yield
    finally:
        for hooks, entries in kept:
            hooks.update(entries)


def copied(call: Call) -> Call:
    """Return the arguments of a pass with copies of their tensors, for a run that may write to them."""
    given = Arguments.of(*call)
    flat = [_copy(entry) if isinstance(entry, Tensor) else entry for entry in given.flat]
    given.lend(flat)
    return given.put_together(flat)


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_(tensor.requires_grad)


def kind_of_call(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Hashable:
    """Return a key for calls of one kind: the model's mode, and the pattern of equal sizes among the arguments.

    With several processes it is the mode alone: all processes must look at a pass at the same time.
    """
    if ranks() > 1:
        return model.training
    shapes = [tuple(entry.shape) for entry in (*args, *kwargs.values()) if isinstance(entry, Tensor)]
    return model.training, tuple(kwargs), _pattern(tuple(shapes))


@lru_cache(maxsize=1024)
def _pattern(shapes: tuple[tuple[int, ...], ...]) -> Hashable:
    """Return the shapes with a number in place of each size: equal sizes get equal numbers, and 1 becomes -1."""
    known: dict[int, int] = {}
    return tuple(tuple(known.setdefault(size, len(known)) if size > 1 else -size for size in shape) for shape in shapes)
