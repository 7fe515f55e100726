"""Hooks on saved tensors that an interrupt takes off as well."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def forbids_hooks(error: RuntimeError) -> bool:
    """Return whether a run has failed because transforms of torch.func take no hooks on saved tensors."""
    return "saved tensor hooks" in str(error)


@contextmanager
def hooked_saved_tensors(pack: Callable[[Tensor], Any], unpack: Callable[[Any], Tensor]) -> Generator[None]:
    """Return torch's context of the same arguments, whose hooks an interrupt within its end does not leave on.

    torch takes them off in a function of Python. Ctrl-C at its beginning would leave them on for the whole process.
    ``own_graphs`` takes torch's own context all the same: it is recognized by its functions.

    Args:
        pack: Called with every tensor that a graph saves; what it returns is kept instead.
        unpack: Called with what is kept, when it is needed.
    """
    own = partial(pack)  # a context around this one may have the same function
    try:
        with saved_tensors_hooks(own, unpack):
            yield
    finally:
        top = torch._C._autograd._top_saved_tensors_default_hooks(True)
        if top is not None and top[0] is own:
            torch._C._autograd._pop_saved_tensors_default_hooks()
