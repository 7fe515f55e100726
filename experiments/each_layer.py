"""The network of Launay et al. 2019, table 2, with alignment behind each layer: the published code hooks all."""

from __future__ import annotations

from typing import Any

from torch import nn

from bpfree.lab.models.mlp import MLP


class EachLayer(MLP):
    """An :class:`MLP` in which alignment is measured behind every layer from the first linear one to the last tap."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        layers = dict(self.named_children())
        linear = [number for number, layer in enumerate(layers.values()) if isinstance(layer, nn.Linear)]
        self.aligned_layers = tuple(layers)[linear[0] : linear[-1]]
