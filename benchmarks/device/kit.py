"""The device and the networks of a run, and the cells that it measures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from common.nets import MLP, ConvNet, Net, Transformer
from common.results import Row

GPT2_SMALL = Transformer(12, batch=4, width=768, tokens=1024, classes=50257, heads=12, hidden=3072)


@dataclass(frozen=True)
class Kit:
    """The device and the sizes of a run.

    Attributes:
        device: The device.
        nets: The networks whose steps are timed.
        compiled: Those of them that are compiled too: it takes minutes.
        backend: The compiler's backend.
        deep: The networks on which memory is counted.
        wide: Networks of many equal layers, whose segments run on streams of their own.
        small: Networks on which rules are compared with the CPU.
        pairs: The smallest and the largest number of pairs that a ratio is made of.
    """

    device: torch.device
    nets: Sequence[Net]
    compiled: Sequence[Net]
    backend: str
    deep: Sequence[MLP]
    wide: Sequence[MLP]
    small: Sequence[Net]
    pairs: tuple[int, int] = (5, 60)

    @classmethod
    def full(cls, device: torch.device) -> Kit:
        """The networks of step.py, and a transformer of GPT-2 small's size."""
        wide, small = MLP(8, 1024, 256), MLP(8, 256, 64)
        others = (MLP(16, 1024, 128), MLP(16, 2048, 256), MLP(64, 256, 64), ConvNet(64), Transformer(12, 16))
        return cls(
            device,
            nets=(wide, small, GPT2_SMALL, *others),
            compiled=(wide, GPT2_SMALL),
            backend="inductor",
            deep=(MLP(8, 1024, 2048), MLP(32, 1024, 2048)),
            wide=(small, wide, MLP(8, 4096, 512)),
            small=(small, ConvNet(64)),
        )

    @classmethod
    def quick(cls, device: torch.device) -> Kit:
        """Networks of no size."""
        tiny = MLP(2, 8, 4)
        transformer = Transformer(2, batch=2, width=8, tokens=6, classes=20, heads=2, hidden=8)
        return cls(
            device,
            nets=(tiny, transformer),
            compiled=(tiny,),
            backend="aot_eager",
            deep=(MLP(2, 8, 64), MLP(6, 8, 64)),
            wide=(tiny,),
            small=(tiny,),
            pairs=(2, 2),
        )

    @property
    def is_cuda(self) -> bool:
        """True for a CUDA device."""
        return self.device.type == "cuda"

    def synchronize(self) -> None:
        """Wait until the device has finished."""
        if self.is_cuda:
            torch.cuda.synchronize(self.device)


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Attributes:
        row: What it is of.
        measure: Makes the rest of the row, in about as many seconds as it is given.
        impossible: Why it cannot be measured here; empty where it can.
    """

    row: Row
    measure: Callable[[float], dict[str, Any]]
    impossible: str = ""
