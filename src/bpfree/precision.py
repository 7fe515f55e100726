"""Keep autocast out of the library's own arithmetic."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor


def in_own_precision(tensor: Tensor) -> AbstractContextManager[object]:
    """Return a context in which products keep their factors' precision, also if the model runs under autocast.

    :class:`torch.autocast` counts how deep it is. Ctrl-C within it can leave that count too high: it then keeps the
    weights that it has converted for good, and models train with old ones. So it is entered only by compiled code.
    """
    kind = tensor.device.type
    if torch.compiler.is_compiling():
        return torch.autocast(kind, enabled=False)
    return _without_autocast(kind) if torch.is_autocast_enabled(kind) else nullcontext()


@contextmanager
def _without_autocast(kind: str) -> Generator[None]:
    torch.set_autocast_enabled(kind, False)
    try:
        yield
    finally:
        torch.set_autocast_enabled(kind, True)
