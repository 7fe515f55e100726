"""Models that render rays: a coarse net that finds where something is, and a fine net that draws it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import bpfree
from bpfree.lab.errors import SettingsError
from bpfree.lab.models.radiance.net import NeRFNet
from bpfree.lab.rendering.passes import CHUNK, Passes, in_chunks, render
from bpfree.lab.rendering.rays import NUMBERS, Rays
from bpfree.mechanisms.base import Rule


class NeRF(nn.Module):
    """The model of Mildenhall et al. 2020 as their code has it: packed rays ``(n, 11)`` to colours ``(n, nets, 3)``.

    The coarse net's colours come first; the last are the picture. Each net has an error of its own, at its raw output:
    ``bpfree.attach(model, rule, error_at=("coarse", "fine"))``. The places of the fine pass are drawn from the coarse
    one without a gradient, so no signal goes from one net to the other, under backpropagation neither.

    "NeRF-XL" of Launay et al. 2020 has ``fine_width=512``, and their "NeRF-Dual" is ``render(rays, dual=True)``.

    Args:
        shape: ``(11,)``, the numbers of a packed ray, see :class:`bpfree.lab.rendering.Rays`.
        depth: The number of layers of points, in each net.
        width: Their width.
        fine_width: Their width in the fine net; by default the same.
        skips: Layers, counted from 0, that get the encoded point again.
        views: The colour depends on the direction from which a point is seen.
        released: A ReLU stands behind the features too, see :class:`NeRFNet`.
        samples: Points on a ray in the coarse pass.
        fine_samples: Further points in the fine pass; 0 leaves out the fine net.
        noise: The standard deviation of noise on raw densities in training; 1 for scenes of LLFF.
        background: The grey behind everything: 1, white, for scenes of Blender, and 0, black, for photographs.
        density_bias: The bias of raw density at the beginning, see :class:`NeRFNet`; None for PyTorch's own.

    Raises:
        SettingsError: Sizes do not fit, or the data are no rays.
    """

    @staticmethod
    def suggested_error_at(fine_samples: int = 128, **_: object) -> tuple[str, ...]:
        """Return the nets that a model with these arguments has; each one's error is taken at its raw output."""
        return ("coarse", "fine") if fine_samples else ("coarse",)

    def __init__(
        self,
        shape: Sequence[int] = (NUMBERS,),
        depth: int = 8,
        width: int = 256,
        fine_width: int | None = None,
        skips: Sequence[int] = (5,),
        views: bool = True,
        released: bool = False,
        samples: int = 64,
        fine_samples: int = 128,
        noise: float = 0.0,
        background: float = 1.0,
        density_bias: float | None = 1.0,
    ) -> None:
        super().__init__()
        if tuple(shape) != (NUMBERS,):
            raise SettingsError(f"{type(self).__name__} takes rays of shape ({NUMBERS},), not {tuple(shape)}.")
        self.passes = Passes(samples=samples, fine_samples=fine_samples, noise=noise, background=background)
        self.coarse = NeRFNet(depth, width, skips, views, released, density_bias)
        self.fine = NeRFNet(depth, fine_width or width, skips, views, released, density_bias) if fine_samples else None

    @property
    def nets(self) -> dict[str, NeRFNet]:
        """The nets by name."""
        return {"coarse": self.coarse} if self.fine is None else {"coarse": self.coarse, "fine": self.fine}

    @property
    def field(self) -> NeRFNet:
        """The net whose colours are the picture."""
        return self.coarse if self.fine is None else self.fine

    def attach(self, rule: Rule, *, seed: int = 0, **options: Any) -> dict[str, bpfree.Attachment]:
        """Attach ``rule`` to each net by itself; return the attachments by the nets' names.

        What is learned is the same as with one attachment and ``error_at``. It serves options that are for one error
        alone, such as ``streaming`` and ``window``, and runs no estimating pass through the rendering.

        Args:
            rule: The rule.
            seed: The seed of the coarse net's feedback; the fine net's is the next number.
            options: Further options of :func:`bpfree.attach`.
        """
        return {
            name: bpfree.attach(net, rule, seed=seed + number, **options)
            for number, (name, net) in enumerate(self.nets.items())
        }

    def forward(self, rays: Tensor) -> Tensor:
        """Return the colours by each net, ``(n, nets, 3)``; places on rays are drawn in training mode."""
        found = render(Rays.unpack(rays), self.coarse, self.fine, self.passes, training=self.training)
        return torch.stack([one.colours for one in found], dim=1)

    @torch.no_grad()
    def render(self, rays: Rays, *, dual: bool = False, chunk: int = CHUNK) -> dict[str, Tensor]:
        """Render any number of rays as in evaluation, in memory that depends on ``chunk`` and not on their number.

        Args:
            rays: The rays.
            dual: Average both fields in the fine pass, see :func:`bpfree.lab.rendering.render`.
            chunk: The largest number of points at which a net is asked at once; a single ray may have more.

        Returns:
            ``colours`` ``(n, 3)``, ``depth`` ``(n,)`` and ``opacity`` ``(n,)`` of the last pass.

        Raises:
            SettingsError: ``dual`` without a fine net.
        """
        shown: dict[str, list[Tensor]] = {"colours": [], "depth": [], "opacity": []}
        device = self.coarse.out.weight.device
        for part in in_chunks(rays, self.passes, chunk):
            moved = Rays(*(numbers.to(device) for numbers in part))
            last = render(moved, self.coarse, self.fine, self.passes, training=False, dual=dual)[-1]
            for name, values in shown.items():
                values.append(getattr(last, name).to(rays.origins.device))
        return {name: torch.cat(values) for name, values in shown.items()}


class NeRFReleased(NeRF):
    """The model that Launay et al. 2020 really trained: all checkpoints that they released are of this size.

    Their settings ask for 8 layers of 256, but their code does not pass these on: it builds 4 layers of 128 without a
    skip, 84,548 weights a net.

    Args:
        shape: ``(11,)``, the numbers of a packed ray.
        fine_width: The width of the fine net; by default that of the coarse one.
        samples: Points on a ray in the coarse pass.
        fine_samples: Further points in the fine pass; 0 leaves out the fine net.
        noise: The standard deviation of noise on raw densities in training.
        background: The grey behind everything, 0 for black and 1 for white.
        density_bias: The bias of raw density at the beginning, see :class:`NeRFNet`; None for PyTorch's own.
    """

    def __init__(
        self,
        shape: Sequence[int] = (NUMBERS,),
        fine_width: int | None = None,
        samples: int = 64,
        fine_samples: int = 128,
        noise: float = 0.0,
        background: float = 1.0,
        density_bias: float | None = 1.0,
    ) -> None:
        super().__init__(
            shape,
            depth=4,
            width=128,
            fine_width=fine_width,
            skips=(),
            released=True,
            samples=samples,
            fine_samples=fine_samples,
            noise=noise,
            background=background,
            density_bias=density_bias,
        )


class NeRFTiny(NeRF):
    """The small model of Launay et al. 2020, figure A.1: one net of three layers, 63 to 128 to 128 to 4, no directions.

    Args:
        shape: ``(11,)``, the numbers of a packed ray.
        width: The width of the two hidden layers.
        samples: Points on a ray.
        background: The grey behind everything, 0 for black and 1 for white.
        density_bias: The bias of raw density at the beginning, see :class:`NeRFNet`; None for PyTorch's own.
    """

    @staticmethod
    def suggested_error_at(fine_samples: int = 0, **_: object) -> tuple[str, ...]:
        """Return the only net, at whose raw output the error is taken."""
        return NeRF.suggested_error_at(fine_samples)

    def __init__(
        self,
        shape: Sequence[int] = (NUMBERS,),
        width: int = 128,
        samples: int = 32,
        background: float = 1.0,
        density_bias: float | None = 0.1,
    ) -> None:
        super().__init__(
            shape,
            depth=2,
            width=width,
            skips=(),
            views=False,
            samples=samples,
            fine_samples=0,
            background=background,
            density_bias=density_bias,
        )
