"""Compiled code drops tangents: passes with tangents run without it."""

from __future__ import annotations

from contextlib import ExitStack

import torch

from bpfree.errors import ForwardDerivativeError
from bpfree.forward_mode.dual_level import Shared


def compiled() -> ForwardDerivativeError:
    """Make the error for a pass with tangents that compiled code runs."""
    return ForwardDerivativeError(
        "the model is run by torch.compile(), and compiled code drops the tangents that this rule sends through the "
        "model's own forward pass. Run the model uncompiled, or use bpfree.ForwardGradient(), whose estimating pass "
        "runs beside the compiled one."
    )


_stance = ExitStack()


def _set_stance() -> None:
    if torch.compiler.is_compiling():
        raise compiled()
    try:
        _stance.enter_context(torch.compiler.set_stance("force_eager"))
    except RuntimeError as error:  # a graph break within compiled code
        raise compiled() from error


eager = Shared(_set_stance, _stance.close)
"""Within this context compiled functions and modules run as they were written: compiled code drops tangents.

Raises:
    ForwardDerivativeError: Compiled code is under way, around this pass.
"""
