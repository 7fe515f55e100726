"""Plain networks, free of any learning rule."""

from bpfree.lab.models.cnn import CNN
from bpfree.lab.models.mlp import MLP
from bpfree.lab.models.transformer import CausalTransformer

__all__ = ["CNN", "MLP", "CausalTransformer"]
