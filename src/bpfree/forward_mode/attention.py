"""Attention and its forward derivative: fused kernels have none."""

from __future__ import annotations

import inspect
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bpfree.forward_mode.dual_numbers import join, split
from bpfree.precision import in_own_precision

_PARAMETERS = inspect.signature(F.multi_head_attention_forward)


def scaled_dot_product(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """Return softmax(q k^T s + mask) v with its tangent; arguments are those of ``F.scaled_dot_product_attention``.

    NotImplemented if nothing here has a tangent.
    """
    if enable_gqa:
        groups = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(groups, -3), value.repeat_interleave(groups, -3)
    parts = [split(part) for part in (query, key, value)]
    mask, d_mask = (None, None) if attn_mask is None else split(attn_mask)
    if d_mask is None and all(tangent is None for _, tangent in parts):
        return NotImplemented
    wide = torch.promote_types(query.dtype, torch.float32)  # a row of many small weights loses in bfloat16
    with in_own_precision(query):
        (q, dq), (k, dk), (v, dv) = [(x.to(wide), None if t is None else t.to(wide)) for x, t in parts]
        s = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
        q, dq = q * s, None if dq is None else dq * s
        logits, d_logits = q @ k.mT, _sum(_scores(q, dq, k, dk), d_mask)
        weights, d_weights = _softmax(logits, d_logits, mask, is_causal)
        if dropout_p > 0:
            kept = F.dropout(torch.ones_like(weights), dropout_p)
            weights, d_weights = weights * kept, None if d_weights is None else d_weights * kept
        output = weights @ v
        d_output = _sum(None if d_weights is None else d_weights @ v, None if dv is None else weights @ dv)
    assert d_output is not None
    return join(output.to(query.dtype), d_output.to(query.dtype))


def _scores(q: Tensor, dq: Tensor | None, k: Tensor, dk: Tensor | None) -> Tensor | None:
    """Return the tangent of q k^T: one product, where both have a tangent."""
    if dq is None:
        return None if dk is None else q @ dk.mT
    return dq @ k.mT if dk is None else torch.cat([dq, q], -1) @ torch.cat([k, dk], -1).mT


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _softmax(logits: Tensor, tangent: Tensor | None, mask: Tensor | None, causal: bool) -> tuple[Tensor, Tensor | None]:
    if causal:
        later = torch.ones(logits.shape[-2:], dtype=torch.bool, device=logits.device).triu(1)
        weights = logits.masked_fill(later, -torch.inf).softmax(-1)
    elif mask is None:
        weights = logits.softmax(-1)
    else:
        masked = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
        weights = torch._safe_softmax(masked, -1)  # zeros for a token that may look at nothing
    if tangent is None:
        return weights, None
    along = weights * tangent
    return weights, torch.addcmul(along, weights, along.sum(-1, keepdim=True), value=-1)


def multi_head(*args: Any, **kwargs: Any) -> Any:
    """Run attention without a fused kernel: torch uses none if the attention weights are asked for.

    NotImplemented if nothing here has a tangent.
    """
    given = _PARAMETERS.bind(*args, **kwargs).arguments
    if all(split(part)[1] is None for part in given.values() if isinstance(part, Tensor)):
        return NotImplemented
    wanted = given.get("need_weights", True)
    output, weights = F.multi_head_attention_forward(**given | {"need_weights": True})
    return output, weights if wanted else None
