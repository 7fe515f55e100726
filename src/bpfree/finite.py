"""The one place that looks for NaN and infinity, for every rule, before any weight learns from them.

On a CPU the numbers are looked at where they arrive, before any parameter below gets a gradient. On an accelerator that
question would stall the queue of kernels. There the largest number travels to the host while the backward pass goes on,
and is looked at when that ends: gradients are there by then, and no optimizer has used them.

float16 is left alone: errors overflow in it by design, and GradScaler looks for that and skips the step.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.autograd import Variable

from bpfree.errors import NonFiniteError

ERROR = "the error dL/do"
"""The name, in messages, of the gradient at the place where the error is taken."""

_LATE = ("cuda", "xpu")
"""Accelerators that copy to pinned memory while they compute."""


def may_overflow(error: Tensor) -> bool:
    """Return whether dL/do may hold NaN or infinity when a rule gets it.

    It may in float16, which is left alone, and on an accelerator, where it is looked at when the backward pass ends.
    """
    return error.dtype == torch.float16 or not _is_at_hand(error)


def require_finite(numbers: Tensor, what: str = ERROR) -> None:
    """Raise :class:`NonFiniteError`, naming ``what``, if ``numbers`` hold NaN or infinity.

    Call it where they are about to be learned from: in a backward pass, or on a CPU anywhere.
    """
    if torch.compiler.is_compiling() or stands_for_many(numbers):
        return
    if _is_at_hand(numbers):
        if not _is_finite(numbers) and numbers.dtype != torch.float16:
            raise _not_finite(what, "None has.")
    elif numbers.dtype == torch.float16 or not numbers.numel():
        return
    elif torch._C._current_graph_task_id() != -1 and not _is_captured():
        at_end: Callable[[Callable[[], None]], None] = Variable._execution_engine.queue_callback
        at_end(partial(_look, what, *_sent_to_host(numbers)))


def stands_for_many(numbers: Tensor) -> bool:
    """Return whether these are several tensors in one, whose numbers have no values: in transforms of torch.func.

    And in a backward pass of several errors at once (``is_grads_batched=True``), which has a transform of its own.
    """
    return torch._C._are_functorch_transforms_active() or torch._C._functorch.is_legacy_batchedtensor(numbers)


class Watch:
    """Looks at gradients when they arrive, before anything below gets one.

    Args:
        what: Their name in messages.
    """

    def __init__(self, what: str) -> None:
        self._look = partial(require_finite, what=what)  # made once: a step has tens of microseconds for all of this

    def __call__(self, output: Tensor) -> None:
        """Look at the gradient of ``output``."""
        # In torch.func's transforms numbers have no values.
        if output.requires_grad and torch._C._functorch.peek_interpreter_stack() is None:
            output.register_hook(self._look)  # type: ignore[no-untyped-call]


def _is_at_hand(numbers: Tensor) -> bool:
    return numbers.is_cpu


def _is_finite(numbers: Tensor) -> bool:
    if numbers.requires_grad:  # in a backward pass they never do, and a detach() would take as long as the sum
        numbers = numbers.detach()
    total = numbers.sum().item()
    # NaN and infinity less themselves are NaN, of complex numbers too. A sum may overflow where no number is infinite.
    return total - total == 0 or bool(numbers.isfinite().all())


def _is_captured() -> bool:
    """Return whether kernels are being recorded for a CUDA graph, so that none of them runs."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()


def _sent_to_host(numbers: Tensor) -> tuple[Tensor, torch.Event | None]:
    """Start to copy the largest magnitude to the host; return it, and the event of its arrival."""
    largest = torch.linalg.vector_norm(numbers.detach(), math.inf)
    if largest.device.type not in _LATE:
        return largest, None
    host = torch.empty((), dtype=largest.dtype, pin_memory=True)
    host.copy_(largest, non_blocking=True)
    arrived = torch.Event(largest.device)
    arrived.record()
    return host, arrived


def _look(what: str, largest: Tensor, arrived: torch.Event | None) -> None:
    if arrived is not None:
        arrived.synchronize()
    if not math.isfinite(largest.item()):
        raise _not_finite(what, "Gradients were made of it: drop them with optimizer.zero_grad().")


def _not_finite(what: str, state: str) -> NonFiniteError:
    return NonFiniteError(
        f"{what} holds NaN or infinity, and weights would learn from that. {state} Look for a diverging learning rate, "
        "a logarithm of zero, or bad input data."
    )
