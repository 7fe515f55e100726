"""Parts of a model that ``torch.utils.checkpoint`` runs by re-entrant autograd: a rule that cannot follow refuses them.

With ``use_reentrant=True`` a part runs without a graph first, and again in a backward pass of its own. A tap in it has
no graph to cut then, and a part behind a tap, whose input requires no gradient, is never run again: its weights would
learn nothing. Torch tells nobody of such a part. So while a rule is attached, torch's function asks it before it runs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn
from torch.utils.checkpoint import CheckpointFunction

from bpfree.errors import SecondRunError
from bpfree.registry import MECHANISMS

_TORCHS: Any = CheckpointFunction


def watch_reentrant_parts() -> None:
    """Let every rule in a pass hear of the re-entrant checkpoints that it runs, before they run."""
    if "apply" not in vars(_TORCHS):
        _TORCHS.apply = classmethod(_ask_and_apply)


def forget_reentrant_parts() -> None:
    """Give torch's function back as it was, if no rule is attached any more."""
    is_ours = getattr(_TORCHS.apply, "__func__", None) is _ask_and_apply
    if is_ours and not any(mechanism.is_installed for mechanism in MECHANISMS):
        del _TORCHS.apply


def _ask_and_apply(kind: Any, function: Callable[..., Any], *given: Any) -> Any:
    for mechanism in MECHANISMS:
        if mechanism.is_installed:  # another thread may be making one
            mechanism.on_reentrant_part(function)
    return super(_TORCHS, kind).apply(function, *given)


def reentrant_part(function: Callable[..., Any], model: nn.Module, where: str, rule: object) -> SecondRunError:
    """Make the error for a part that runs by re-entrant autograd in a pass of ``rule``.

    Args:
        function: The function that the checkpoint runs.
        model: The model.
        where: Where in the pass the part runs, in words.
        rule: The rule.
    """
    held = _held_by(function)
    name = next((name for name, part in model.named_modules() if any(part is one for one in held)), "")
    return SecondRunError(
        f"{where} the model runs {repr(name) if name else 'a part of itself'} by torch.utils.checkpoint with "
        f"use_reentrant=True: that part has no graph in this pass, and {rule} cannot teach it. Say use_reentrant=False "
        'there; with transformers, model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": '
        "False})."
    )


def _held_by(function: Callable[..., Any]) -> list[Any]:
    """Return the objects that a function shows to belong to: itself, that of a method, and arguments given before."""
    if isinstance(function, partial):
        return [*_held_by(function.func), *function.args]
    return [function, getattr(function, "__self__", None)]
