"""Plain networks, free of any learning rule."""

from bpfree.lab.models.bottleneck import BottleneckMLP
from bpfree.lab.models.cnn import CNN
from bpfree.lab.models.deep import VGG16, AlexNet
from bpfree.lab.models.lenet import LeNet4
from bpfree.lab.models.mlp import MLP
from bpfree.lab.models.transformer import CausalTransformer

__all__ = ["CNN", "MLP", "VGG16", "AlexNet", "BottleneckMLP", "CausalTransformer", "LeNet4"]
