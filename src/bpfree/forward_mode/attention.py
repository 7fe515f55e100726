"""Attention in a pass with tangents: fused kernels and torch's fast paths have no forward-mode derivative.

torch's own switches (``sdpa_kernel``, ``torch.backends.mha``) are the process's: a thread that evaluates a model
meanwhile would get other roundings. What is called in this thread alone is exchanged here.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bpfree.forward_mode.grad_mode import PassMode

_WITH_FAST_PATH = (nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerEncoder)
_PARAMETERS = inspect.signature(F.multi_head_attention_forward)


def differentiable_attention(parts: Iterable[nn.Module], *, fused: bool) -> AbstractContextManager[Any]:
    """Within this context, and this thread, attention goes by ways that have a forward-mode derivative.

    Args:
        parts: The modules of the model that is run.
        fused: True if fused kernels stay allowed: attention does not always take one. torch's fast paths never are.
    """
    if fused and not any(isinstance(module, _WITH_FAST_PATH) for module in parts):
        return nullcontext()
    return DifferentiableAttention(fused=fused)


class DifferentiableAttention(PassMode):
    """Attention without fast paths, which torch does not take where there is such a mode; and without fused kernels.

    Args:
        fused: True if fused kernels stay.
    """

    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        self._fused = fused

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``func``, or what stands for it."""
        kwargs = kwargs or {}
        if not self._fused and func is F.scaled_dot_product_attention:
            return _scaled_dot_product(*args, **kwargs)
        if not self._fused and func is F.multi_head_attention_forward:
            return _multi_head(*args, **kwargs)
        return func(*args, **kwargs)


def _scaled_dot_product(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *rest: Any, **options: Any
) -> Tensor:
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(~attn_mask, -torch.inf)
    # Behind dropout and is_causal it takes a mask of dropout.
    dropout, causal, scale, grouped = _options(*rest, **options)
    found: Tensor = torch.ops.aten._scaled_dot_product_attention_math(
        query, key, value, attn_mask, dropout, causal, None, scale=scale, enable_gqa=grouped
    )[0]
    return found


def _options(
    dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False
) -> tuple[float, bool, float | None, bool]:
    return dropout_p, is_causal, scale, enable_gqa


def _multi_head(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """Run attention without a fused kernel: torch uses none if the attention weights are asked for."""
    given = _PARAMETERS.bind(*args, **kwargs).arguments
    wanted = given.get("need_weights", True)
    output, weights = F.multi_head_attention_forward(**given | {"need_weights": True})
    return output, weights if wanted else None
