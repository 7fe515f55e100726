"""The initialization of a transformer's weights."""

from __future__ import annotations

from typing import Literal, TypeAlias

from torch import nn

from bpfree.lab.models.transformer.attention import CausalAttention
from bpfree.lab.models.transformer.positions import EMBEDDING_STD

Initialization: TypeAlias = Literal["default", "launay2020"]

_BOUND = 0.1


def initialize(tokens: nn.Embedding, blocks: nn.Module, head: nn.Linear, initialization: Initialization) -> None:
    """Draw weights that PyTorch's layers have not drawn as they should be, from the global random state.

    Args:
        tokens: The embedding of the tokens.
        blocks: Holds the modules of attention.
        head: The vocabulary head.
        initialization: ``default``: the embedding is normal, of deviation 0.02. ``launay2020``: the embedding and the
            head's weights are uniform on (-0.1, 0.1), the head's bias is 0, and attention is drawn as
            ``nn.MultiheadAttention`` draws it.
    """
    if initialization == "default":
        nn.init.normal_(tokens.weight, std=EMBEDDING_STD)
        return
    nn.init.uniform_(tokens.weight, -_BOUND, _BOUND)
    nn.init.uniform_(head.weight, -_BOUND, _BOUND)
    nn.init.zeros_(head.bias)
    for module in blocks.modules():
        if isinstance(module, CausalAttention):
            nn.init.xavier_uniform_(module.into.weight)
            nn.init.zeros_(module.into.bias)
            nn.init.zeros_(module.out.bias)
