"""Plain networks, free of any learning rule."""

from bpfree.lab.models.cnn import CNN
from bpfree.lab.models.mlp import MLP

__all__ = ["CNN", "MLP"]
