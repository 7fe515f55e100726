"""Plain networks, free of any learning rule."""

from __future__ import annotations

import importlib
from typing import Any

from bpfree.lab.errors import SettingsError
from bpfree.lab.models.bottleneck import BottleneckMLP
from bpfree.lab.models.clicks import AFN, FM, AutoInt, DeepCross, DeepFM
from bpfree.lab.models.cnn import CNN
from bpfree.lab.models.deep import VGG16, AlexNet
from bpfree.lab.models.lenet import LeNet4
from bpfree.lab.models.mlp import MLP
from bpfree.lab.models.radiance import NeRF, NeRFReleased, NeRFTiny
from bpfree.lab.models.resnet import ResNet
from bpfree.lab.models.transformer import CausalTransformer

GRAPHS = ("ChebNet", "DNA", "GAT", "GCN", "GraphEncoder", "SplineNet")
"""Networks on graphs, which need the extra ``graphs``; loaded when they are asked for."""
__all__ = [
    "AFN", "CNN", "FM", "MLP", "VGG16", "AlexNet", "AutoInt", "BottleneckMLP", "CausalTransformer", "DeepCross",
    "DeepFM", "LeNet4", "NeRF", "NeRFReleased", "NeRFTiny", "ResNet", *GRAPHS,
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in GRAPHS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"{__name__}.graphs.nets"), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torch_geometric":
            raise
        raise SettingsError(f"{name} needs torch_geometric: pip install 'bpfree[graphs]'.") from error
