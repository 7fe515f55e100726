"""Feedback matrices: how B is drawn, shared, scaled and stored.

Index conventions: ``c`` numbers of error, ``n_l`` features of tap l. A feedback matrix B_l has the shape ``(c, n_l)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from bpfree.axes.sites import Site
from bpfree.errors import OptionError, choice, fraction
from bpfree.feedback.random import derived_seed, draw
from bpfree.feedback.spatial import Form

Normalization: TypeAlias = Literal["launay2019", "launay2020", "launay2020-code", "none"]
Distribution: TypeAlias = Literal["normal", "uniform"]

_SCALES: dict[str, Callable[[int, int, int], float]] = {
    "launay2019": lambda width, widest, c: 1 / math.sqrt(width * c),
    "launay2020": lambda width, widest, c: 1 / math.sqrt(width),
    "launay2020-code": lambda width, widest, c: 1 / math.sqrt(widest),
    "none": lambda width, widest, c: 1.0,
}
BLOCK = 4096
"""Columns drawn at a time: bounds the memory of a regenerated matrix and makes any prefix of U the same."""


LATER: Mapping[str, bool] = {"later": True}
"""Marks an option that came later: at its default it is in no text by which saved states are told apart."""


def is_unused(option: Field[Any], of: object) -> bool:
    """Return whether an option of a dataclass came later and is at its default."""
    return bool(option.metadata.get("later")) and is_default(getattr(of, option.name), option.default)


def is_default(value: object, default: object) -> bool:
    """Return whether an option has its default value: ``rows=1`` is one sample, and ``rows=1.0`` are all."""
    return type(value) is type(default) and value == default


@dataclass(frozen=True)
class Feedback:
    """The options by which the feedback matrices B_l, of shape ``(c, n_l)``, are drawn and kept.

    Args:
        normalization: The scale of B_l = scale x U[:, :n_l].
            ``"launay2020"``: 1/sqrt(n_l) (Launay et al. 2020, appendix C), with U uniform on (-1, 1).
            ``"launay2020-code"``: 1/sqrt(n_max) for every tap, as that paper's released code does.
            ``"launay2019"``: 1/sqrt(n_l c), with U standard normal (Launay et al. 2019, equations 7 and 8, where
            it is written U/sqrt(n_max c) x sqrt(n_max/n_l)).
            ``"none"``: 1, with U standard normal ("no norm" in that paper's table 2).
        distribution: ``"normal"`` N(0, 1) or ``"uniform"`` on (-1, 1); None takes the normalization's own.
        shared: One matrix U of shape ``(c, n_max)``, whose leading columns serve every tap: c n_max numbers in
            place of c sum(n_l) (Launay et al. 2019, section 3). False draws one matrix for each tap.
        density: The fraction of entries of U that are not zero, in (0, 1]; those left are divided by
            sqrt(density), which keeps the signal's variance (sparse feedback: Crafton et al. 2019).
        stored: False keeps no matrix and draws it again from the seed, ``4096`` columns at a time, in every
            backward pass. On a CPU the numbers are those of the stored matrix; another device draws its own.
        modes: The number of spatial modes in each channel's feedback, for taps with positions (images and tokens,
            channels first or last): None gives every position of an image numbers of its own (c x C x H x W) and all
            positions of a sequence the same ones (c x C), 1 one number a channel (c x C, for nets that end in a global
            pool), k the k lowest cosine modes (c x C x k, low rank in space). n_l above is then C k.
        rank: For wide errors (vocabularies, thousands of classes): B_l = R A_l. R, of shape ``(c, rank)``, is one fixed
            matrix for all taps, normal with variance 1/``rank``, so that the error is reduced once; A_l, of shape
            ``(rank, n_l)``, has the normalization of B_l and is what learns. An error of at most ``rank`` numbers, and
            None, have B_l itself. The signals are those of full matrices on average, and noisier the smaller the rank.
        spread: For the nodes of a graph: the number of steps k by which the error is spread over the edges before it is
            projected, d_l = (S^k e) B_l, so that nodes without a target of their own get a signal too (DFA-GNN, Zhao et
            al. 2024). S is given to ``attachment.adjacency(S)``. 0 projects the error as it is.
        max_bytes: The largest memory for all stored matrices together, including the running averages of learned ones.
            If they need more, an error is raised before anything is allocated. 4 GiB by default; None for no limit.
    """

    normalization: Normalization = "launay2020"
    distribution: Distribution | None = None
    shared: bool = True
    density: float = 1.0
    stored: bool = True
    modes: int | None = None
    rank: int | None = field(default=None, metadata=LATER)
    spread: int = 0
    max_bytes: int | None = field(default=4 * 2**30, repr=False)

    def __repr__(self) -> str:
        shown = [option for option in fields(self) if option.repr and not is_unused(option, self)]
        return f"{type(self).__name__}({', '.join(f'{one.name}={getattr(self, one.name)!r}' for one in shown)})"

    def __post_init__(self) -> None:
        choice("normalization", self.normalization, _SCALES)
        if self.distribution is not None:
            choice("distribution", self.distribution, ("normal", "uniform"))
        fraction("density", self.density)
        # Callers are not type-checked.
        if self.modes is not None and (not isinstance(self.modes, int) or self.modes < 1):
            raise OptionError(f"modes={self.modes!r}: a whole number, at least 1; None takes every position.")
        if self.rank is not None and (not isinstance(self.rank, int) or self.rank < 1):
            raise OptionError(f"rank={self.rank!r}: a whole number, at least 1; None keeps whole matrices.")
        if not isinstance(self.spread, int) or self.spread < 0:
            raise OptionError(f"spread={self.spread!r}: a number of steps over the edges of a graph, 0 for none.")
        if self.max_bytes is not None and (not isinstance(self.max_bytes, int) or self.max_bytes < 1):
            raise OptionError(f"max_bytes={self.max_bytes!r}: a whole number of bytes, at least 1; None for no limit.")

    @property
    def depends_on_widest(self) -> bool:
        """True if a tap's matrix depends on the widest tap of all."""
        return self.shared or self.normalization == "launay2020-code"

    def form(self, site: Site) -> Form:
        """Return the form of one row of B_l for this tap."""
        return Form.of(site.features, self.modes, site.channel, share=site.positions_share)

    def scale(self, width: int, widest: int, c: int) -> float:
        """Return the scale for a tap of ``width`` features, ``widest`` of all taps, and an error of ``c`` numbers."""
        return _SCALES[self.normalization](width, widest, c)

    def draw(self, out: Tensor, seed: int, first: int = 0) -> Tensor:
        """Fill ``out``, of shape ``(c, k)``, with the columns ``first`` to ``first + k`` of U; return it.

        ``first`` is a multiple of the block of 4096 columns.
        """
        natural = "uniform" if "2020" in self.normalization else "normal"
        generator = torch.Generator(out.device)
        for start in range(0, out.shape[1], BLOCK):
            columns = out[:, start : start + BLOCK]
            block = (first + start) // BLOCK
            # Column by column, so that a narrower matrix is a prefix of a wider one.
            drawn = draw(
                columns.T.shape, self.distribution or natural, generator.manual_seed(derived_seed(seed, block))
            )
            if self.density < 1:
                generator.manual_seed(derived_seed(seed, block, "mask"))
                chance = (draw(columns.T.shape, "uniform", generator) + 1) / 2
                drawn *= (chance < self.density) / math.sqrt(self.density)
            columns.copy_(drawn.T)
        return out
