"""The code that ``torch.compile`` must leave to Python."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

_P = ParamSpec("_P")
_T = TypeVar("_T")


def outside_compiled_code(function: Callable[_P, _T]) -> Callable[_P, _T]:
    """Return ``function`` as code that ``torch.compile`` does not trace, as :func:`torch.compiler.disable` does.

    That one imports the compiler at once, which doubles the two seconds that ``import bpfree`` takes. This one imports
    it at the first call.
    """
    return torch._disable_dynamo(function)  # type: ignore[attr-defined]
