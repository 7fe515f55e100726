"""The photographs in ../shared/data, which are kept as sheets of 1,000 small pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

DATA = Path(__file__).parents[3] / "shared" / "data"
IMAGES = 1000
"""Pictures on a sheet."""


def pictures(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The pictures of a sheet as CIFAR's files have them: ``(1000, 3072)``, red before green before blue."""
    with Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    return pixels.reshape(25, 32, 40, 32, 3).transpose(0, 2, 4, 1, 3).reshape(IMAGES, -1)


def assert_normalized(x: Tensor) -> None:
    """Mean 0 and deviation 1 in each channel of 5,000 pictures ``(5000, 3, 32, 32)``.

    Their mean strays by about 1/sqrt(5000) of a picture's own deviation, which is below 0.7.
    """
    assert len(x) == 5 * IMAGES
    torch.testing.assert_close(x.mean((0, 2, 3)), torch.zeros(3), atol=0.04, rtol=0)
    torch.testing.assert_close(x.std((0, 2, 3)), torch.ones(3), atol=0.04, rtol=0)
