"""torchfm's models beside ours, with the same weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torchfm.model import afi, afn, dcn, dfm, fm

_NAMES = (
    (r"^embedding\.embedding\.", "embedding."),
    (r"^linear\.fc\.", "linear."),
    (r"^cn\.w\.(\d+)\.", r"cross.layers.\1.weight."),
    (r"^cn\.b\.(\d+)", r"cross.layers.\1.bias"),
    (r"^LNN\.", "logarithmic."),
    (r"^atten_embedding", "into_attention"),
    (r"^self_attns\.(\d+)\.in_proj_", r"attention.\1.into."),
    (r"^self_attns\.(\d+)\.out_proj", r"attention.\1.out"),
    (r"^attn_fc", "attention_out"),
    (r"^V_res_embedding", "residual"),
)


def theirs(
    name: str,
    shape: Sequence[int],
    width: int,
    hidden: Sequence[int] = (),
    layers: int = 3,
    neurons: int = 0,
    attention_width: int = 0,
    heads: int = 0,
    dropout: float = 0.0,
    attention_dropout: float = 0.0,
) -> nn.Module:
    """Make torchfm's model of our name and arguments."""
    if name == "FM":
        return fm.FactorizationMachineModel(shape, width)
    if name == "DeepFM":
        return dfm.DeepFactorizationMachineModel(shape, width, hidden, dropout)
    if name == "DeepCross":
        return dcn.DeepCrossNetworkModel(shape, width, layers, hidden, dropout)
    if name == "AFN":
        return afn.AdaptiveFactorizationNetwork(shape, width, neurons, hidden, (dropout, dropout))
    return afi.AutomaticFeatureInteractionModel(
        shape, width, attention_width, heads, layers, hidden, (attention_dropout, dropout)
    )


def converted(model: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors of torchfm's ``model``, its state or gradients, by our names and in our order."""
    found = {}
    for key, tensor in tensors.items():
        name = _our_name(model, key)
        if name == "linear.bias":
            tensor = tensor.squeeze()
        if name == "perceptron.0.linear.weight" and hasattr(model, "LNN"):  # we have the neurons last
            tensor = tensor.unflatten(1, (model.LNN_dim, -1)).mT.flatten(1)
        found[name] = tensor
    return found


def _our_name(model: Any, key: str) -> str:
    if key.startswith("linear.") and isinstance(model, dcn.DeepCrossNetworkModel):
        return key.replace("linear.", "out.")
    part = re.match(r"mlp\.mlp\.(\d+)\.(.*)", key)
    if part:
        block, layer = divmod(int(part[1]), 4)
        last = int(part[1]) == len(model.mlp.mlp) - 1 and not isinstance(model, dcn.DeepCrossNetworkModel)
        return f"out.{part[2]}" if last else f"perceptron.{block}.{('linear', 'norm')[layer]}.{part[2]}"
    for pattern, ours in _NAMES:
        key = re.sub(pattern, ours, key)
    return key
