"""A network that gives colour and density at points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bpfree.lab.errors import SettingsError
from bpfree.lab.models.radiance.encoding import Waves


class NeRFNet(nn.Module):
    """Colour and density at points, seen from a direction: ``(points, 3)`` twice to ``(points, 4)``.

    The output is raw: red, green and blue before their sigmoid, and density before its ReLU. A direct rule puts
    feedback behind every non-linearity (Launay et al. 2020, appendix C): each is a module, and so a tap by default. The
    error is taken at the raw output, and each point is a row of it: all points share the feedback. The layers of
    density and colour that make the output get exact gradients.

    Args:
        depth: The number of layers of points.
        width: Their width.
        skips: Layers, counted from 0, that get the encoded point beside the output of the layer before.
        views: The colour depends on the direction: density leaves behind the last layer, a layer of features follows,
            and one of half the width that also gets the encoded direction. False has colour and density leave together.
        released: A ReLU stands behind the features, as in the net for DFA of the code released with Launay et al. 2020.
            Its net for backpropagation, that of krrish94/nerf-pytorch, has besides none behind the first layer.
        density_bias: The bias of raw density at the beginning; None for PyTorch's own, as in the papers' code. Raw
            density differs little between points at first, and where all of it is negative nothing is seen, nothing has
            a gradient, and no rule learns: with PyTorch's biases 9 of 20 such nets of 8 layers of 256 begin so. With a
            small bias direct feedback can get there in its first steps: see docs/rendering.md.
        position_frequencies: The frequencies of the encoding of points, see
            :class:`bpfree.lab.models.radiance.Waves`.
        direction_frequencies: Those of directions.

    Raises:
        SettingsError: A size is too small, or a skip is at no layer behind the first one.
    """

    def __init__(
        self,
        depth: int = 8,
        width: int = 256,
        skips: Sequence[int] = (5,),
        views: bool = True,
        released: bool = False,
        density_bias: float | None = 1.0,
        position_frequencies: int = 10,
        direction_frequencies: int = 4,
    ) -> None:
        super().__init__()
        _check(depth, width, skips, position_frequencies, direction_frequencies)
        self.skips = frozenset(skips)
        self.encode_point = Waves(position_frequencies)
        point = self.encode_point.size
        self.layers = nn.ModuleList()
        self.activations = nn.ModuleList()
        for number in range(depth):
            inputs = point if number == 0 else width + (point if number in self.skips else 0)
            self.layers.append(nn.Linear(inputs, width))
            self.activations.append(nn.ReLU(inplace=True))
        self.view: View | None = View(width, direction_frequencies, released) if views else None
        self.out = nn.Linear(width, 1 if views else 4)
        if density_bias is not None:
            nn.init.constant_(self.out.bias[-1:], density_bias)

    def forward(self, points: Tensor, directions: Tensor) -> Tensor:
        """Return raw colour and density, ``(points, 4)``."""
        encoded = self.encode_point(points)
        h = encoded
        for number, (layer, activation) in enumerate(zip(self.layers, self.activations, strict=True)):
            if number in self.skips:
                h = torch.cat([encoded, h], dim=-1)
            h = activation(layer(h))
        if self.view is None:
            return self.out(h)
        return torch.cat([self.view(h, directions), self.out(h)], dim=-1)


class View(nn.Module):
    """The colour that a point has from a direction.

    Args:
        width: The width of the last layer of points.
        frequencies: The frequencies of the encoding of directions.
        released: A ReLU stands behind the features.
    """

    def __init__(self, width: int, frequencies: int, released: bool) -> None:
        super().__init__()
        self.encode = Waves(frequencies)
        self.features = nn.Linear(width, width)
        self.features_activation = nn.ReLU(inplace=True) if released else None
        self.layer = nn.Linear(width + self.encode.size, width // 2)
        self.activation = nn.ReLU(inplace=True)
        self.colour = nn.Linear(width // 2, 3)

    def forward(self, h: Tensor, directions: Tensor) -> Tensor:
        """Return raw colours ``(points, 3)`` of the last layer's output ``(points, width)``."""
        features = self.features(h)
        if self.features_activation is not None:
            features = self.features_activation(features)
        return self.colour(self.activation(self.layer(torch.cat([features, self.encode(directions)], dim=-1))))


def _check(depth: int, width: int, skips: Sequence[int], *frequencies: int) -> None:
    if depth < 1 or width < 2:
        raise SettingsError(f"depth {depth} must be at least 1, and width {width} at least 2.")
    if wrong := [skip for skip in skips if not 0 < skip < depth]:
        raise SettingsError(f"skips {wrong}: with depth {depth} a skip leads to one of the layers 1 to {depth - 1}.")
    if min(frequencies) < 0:
        raise SettingsError("position_frequencies and direction_frequencies must not be negative.")
