"""Weights that a model writes to in its own forward pass: they are copied when that happens, and put back."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass


@contextmanager
def weights_put_back(model: nn.Module) -> Generator[TorchDispatchMode]:
    """Put back, at the end of this context, the parameters of the modules of ``model`` and the numbers in them.

    Yields:
        A context for the forward passes within this one, which sees the tensors that they write to.
    """
    owners = [(owner, dict(owner._parameters)) for owner in model.modules() if owner._parameters]
    parameters = [p for p in model.parameters() if not p.is_inference() and not is_lazy(p)]
    guard = _WriteGuard(parameters)
    held = [(p, p.data) for p in parameters if _has_own_memory(p)]
    try:
        yield guard
    finally:
        for owner, before in owners:
            owner._parameters.update(before)
        for parameter, data in held:
            if parameter.data_ptr() != data.data_ptr():  # parameter.data = something else
                parameter.data = data
        guard.put_back()


class _WriteGuard(TorchDispatchMode):
    """Copies a parameter before the first operation that writes to its memory.

    Copies of all parameters would take as much memory as the gradients, and few models write to any.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._copies: dict[nn.Parameter, Tensor] = {}
        self._by_storage: dict[int, list[nn.Parameter]] = {}
        for parameter in parameters:
            if not _has_own_memory(parameter):
                self._copies[parameter] = parameter.detach().clone()
            else:
                self._by_storage.setdefault(parameter.untyped_storage().data_ptr(), []).append(parameter)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func._schema.is_mutable:
            for tensor in _written(func, args, kwargs or {}):
                self._copy(tensor)
        return func(*args, **(kwargs or {}))

    def _copy(self, tensor: Tensor) -> None:
        if not _has_own_memory(tensor):
            return
        for parameter in self._by_storage.get(tensor.untyped_storage().data_ptr(), ()):
            if parameter not in self._copies:
                self._copies[parameter] = parameter.detach().clone()

    def put_back(self) -> None:
        """Write the old numbers into the parameters that were written to."""
        with torch.no_grad():
            for parameter, copy in self._copies.items():
                if not torch.equal(parameter, copy):
                    parameter.copy_(copy)


def _has_own_memory(tensor: Tensor) -> bool:
    """Return whether a tensor has one storage of its own. Sparse, sharded and quantized tensors have not."""
    return tensor.layout is torch.strided and not is_traceable_wrapper_subclass(tensor)


def _written(func: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    """Yield the tensors that an operation writes to."""
    schema: Any = func._schema  # type: ignore[attr-defined]
    for number, argument in enumerate(schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        given = args[number] if number < len(args) else kwargs.get(argument.name)
        for entry in given if isinstance(given, list | tuple) else (given,):
            if isinstance(entry, Tensor):
                yield entry
