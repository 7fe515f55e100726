"""A pass that the library runs, told from others on the same model: of other threads, or inside the pass itself."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from bpfree.forward_mode.dual_numbers import has_tangent
from bpfree.forward_mode.grad_mode import pass_modes_off
from bpfree.rerun.module_state import State


def aside(args: Any, kwargs: Any) -> ExitStack | None:
    """Take the modes of the passes around a call off, if it is none of theirs; what is returned puts them back.

    A hook that evaluates its own model in the middle of a pass is to get what it gets elsewhere, to the last bit.
    """
    if not torch._C._len_torch_function_stack() or any(map(has_tangent, tree_leaves((args, kwargs)))):
        return None
    stack = ExitStack()
    stack.enter_context(pass_modes_off())
    return stack


class OwnPass:
    """One run of a model's ``forward()``; a context manager.

    Hooks that are put on a model for one pass are met by every thread that runs the model meanwhile, and by hooks of
    the user's that call it again. Hooks that :meth:`hooked` puts there act in this pass alone.

    Args:
        model: The model.
        state: Its state as far as it is known: these hooks keep nothing, and need not be looked into.
        called: True if the pass calls the model itself, and not its ``forward()`` behind the model's hooks.
    """

    def __init__(self, model: nn.Module, state: State | None = None, *, called: bool = False) -> None:
        self._model, self._own = model, int(called)
        self._registering: Callable[[], AbstractContextManager[Any]] = (
            nullcontext if state is None else state.expecting_hooks
        )
        self._thread = threading.get_ident()
        # Of the model, under way in this thread; of those that are not the pass's: what puts back its modes.
        self._calls: list[ExitStack | None] = []
        self._handles: list[RemovableHandle] = []
        self._is_open = False  # hooks that Ctrl-C has left behind do nothing

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy of the model, made in the middle of the pass, is not in it.
        return OwnPass, (nn.Identity(),)

    def __enter__(self) -> OwnPass:
        model = self._model
        try:
            with self._registering():
                self._handles.append(model.register_forward_pre_hook(self._begin, prepend=True, with_kwargs=True))
                self._handles.append(model.register_forward_hook(self._end, always_call=True))
            self._is_open = True
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._is_open = False
        for handle in self._handles:
            handle.remove()
        while self._calls:  # that were interrupted: torch calls no hook then
            _close(self._calls.pop())

    def _begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._is_open and threading.get_ident() == self._thread:
            self._calls.append(aside(args, kwargs) if len(self._calls) >= self._own else None)

    def _end(self, *_: Any) -> None:
        if threading.get_ident() == self._thread and self._calls:
            _close(self._calls.pop())

    @property
    def is_this(self) -> bool:
        """True if the caller is in this pass."""
        return self._is_open and threading.get_ident() == self._thread and len(self._calls) <= self._own

    @contextmanager
    def hooked(
        self, hooks: Mapping[nn.Module, Callable[..., Any]], *, before: bool = False, prepend: bool = False
    ) -> Generator[None]:
        """Within this context modules have forward hooks that act in this pass alone.

        Args:
            hooks: Module -> hook. One behind the model itself must be prepended.
            before: True if they are pre-hooks, which get (module, args, kwargs).
            prepend: True if they come before the hooks that are there.
        """
        handles: list[RemovableHandle] = []
        try:
            with self._registering():
                for module, hook in hooks.items():
                    own = _Hook(self, hook)
                    handles.append(
                        module.register_forward_pre_hook(own, prepend=prepend, with_kwargs=True)
                        if before
                        else module.register_forward_hook(own, prepend=prepend)
                    )
            yield
        finally:
            for handle in handles:
                handle.remove()


class _Hook:
    """A hook that acts in one pass. A copy of it, in a copy of the model, does nothing."""

    def __init__(self, own: OwnPass | None = None, hook: Callable[..., Any] | None = None) -> None:
        self._own, self._hook = own, hook

    def __call__(self, *given: Any) -> Any:
        return self._hook(*given) if self._own is not None and self._hook is not None and self._own.is_this else None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, ()


def _close(stack: ExitStack | None) -> None:
    if stack is not None:
        stack.close()
