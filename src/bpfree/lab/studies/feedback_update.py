"""GrAPE's update of one matrix (GrAPE, figure 4)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import bpfree


class AsPrinted(bpfree.GrAPE):
    """GrAPE with its equation 6 as printed, B <- B - eta (1 - c) B: with the rescaling, B keeps its direction."""

    def direction(self, matrix: Tensor, evidence: Tensor) -> Tensor:
        """Return (1 - c) B, shape ``(c, m)``."""
        cosine: Tensor = (evidence / evidence.norm() * (matrix / matrix.norm())).sum()
        return matrix * (1 - cosine)


def cosine_after(
    steps: int, seed: int, literal: bool = False, noise: float = 0.0, step: float = 0.01, size: int = 4
) -> dict[str, float]:
    """Return the cosine of a feedback matrix and a fixed gradient after some updates, each followed by the rescaling.

    Args:
        steps: The number of updates.
        seed: Of both matrices and the noise.
        literal: The update of equation 6 as printed; False takes the gradient step on the cosine.
        noise: The norm of the random matrix that is added at every update, relative to that of the matrix.
        step: eta of the equation.
        size: Rows and columns of both matrices.

    Returns:
        ``cosine``.
    """
    generator = torch.Generator().manual_seed(seed)
    matrix, gradient = torch.randn(2, size, size, generator=generator, dtype=torch.float64)
    rule, norm = (AsPrinted if literal else bpfree.GrAPE)(step=step), matrix.norm()
    for _ in range(steps):
        matrix = matrix - step * rule.direction(matrix, gradient)
        if noise:
            random = torch.randn(size, size, generator=generator, dtype=torch.float64)
            matrix = matrix + noise * norm * random / random.norm()
        matrix = matrix * (norm / matrix.norm())
    return {"cosine": float(F.cosine_similarity(matrix.flatten(), gradient.flatten(), dim=0))}
