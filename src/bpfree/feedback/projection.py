"""The projection of errors to signals: the matrices of one attachment, and the products d_l = e B_l.

Index conventions: ``N`` rows (samples; for sequences and graphs also tokens and nodes), ``c`` numbers of error,
``n_l`` features of tap l. An error has the shape ``(N, c)``, a feedback matrix B_l ``(c, n_l)``, a signal ``(N, n_l)``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from bpfree.axes.memory_format import as_images, channels_last
from bpfree.axes.sites import Pairing, Site
from bpfree.errors import OptionError, StateError, TapShapeError, shape_of
from bpfree.feedback.lazy_buffers import LazyBuffers
from bpfree.feedback.options import BLOCK, Feedback
from bpfree.feedback.random import derived_seed
from bpfree.feedback.reduction import Reduction
from bpfree.feedback.signals import SignalKeys, Signals
from bpfree.feedback.size import require_room
from bpfree.feedback.spatial import Form

_LAYOUTS = 64
"""The largest number of lists of sites whose keys are kept."""


class Matrix(Protocol):
    """A matrix ``(N, N)``, dense or sparse: whatever can be multiplied with a tensor."""

    def __matmul__(self, other: Tensor, /) -> Tensor:
        """Return the product with ``(N, c)``."""


class Projection(LazyBuffers):
    """The matrices of one attachment, and the products d_l = e B_l.

    ``projection["shared"]``, or with one matrix a tap ``projection["TAP:WIDTH"]`` (``"TAP:CHANNELSxMODES"`` with
    modes), is U: unscaled, of shape ``(c, m)`` with the coefficients of :class:`bpfree.feedback.spatial.Form`,
    by default the features; writing into it changes the feedback. ``projection.matrix(site)`` is B_l. With
    ``Feedback(rank=r)`` U and ``(c, m)`` above are A and ``(r, m)``; ``projection.reduction["R"]`` is R.
    """

    def __init__(self, feedback: Feedback, seed: int) -> None:
        super().__init__(seed=seed)
        self.feedback = feedback
        self._sizes: tuple[int, int] | None = None  # c and the coefficients of the widest tap
        self._place: tuple[torch.dtype, torch.device] | None = None  # where and in which precision signals are made
        self._known: dict[int, tuple[Sequence[Site], SignalKeys]] = {}
        self._prepared: tuple[Any, ...] = ()
        self.adjacency: Matrix | None = None
        self.reduction = None if feedback.rank is None else Reduction(feedback.rank, seed)

    def expect(self, widest: int, c: int) -> None:
        """Fix the coefficients of the widest tap, where another process has it, and the numbers of an error."""
        self._sizes = (c, widest)

    def prepare(self, sites: Sequence[Site], c: int, like: Tensor) -> None:
        """Draw what is not there yet for these taps and an error of ``c`` numbers, in ``like``'s precision.

        Raises:
            TapShapeError: A tap is wider than the feedback drawn for it, or the error's size changed.
            StateError: A loaded state does not fit the taps.
        """
        place = like.dtype, like.device
        if self._is_prepared(sites, c, place):
            return
        self._place = place
        widest = max([form.size for _, form, _ in self._keys(sites).different])
        if self._sizes is None:
            self._sizes = (c, widest)
        elif c != self._sizes[0] or (self.feedback.depends_on_widest and widest > self._sizes[1]):
            raise TapShapeError(
                f"the feedback was drawn for an error of {self._sizes[0]} numbers and taps of at most "
                f"{self._sizes[1]} features; this forward pass has {c} and {widest}. Sizes may change only in the "
                "batch dimensions: attach again for a model of another shape. Where passes take different ways, give "
                f"every tap a matrix of its own: bpfree.Feedback(shared=False).{self._advice_for_maps(sites, c)}"
            )
        if self.reduction is not None:
            self.reduction.prepare(c, like)
        if self.feedback.stored:
            owners, size = self._owners(sites), self._length(c)
            self._require_room(owners, size, like)
            for name, site, width in owners:
                self._provide(name, site, size, width, like)
        if not torch.compiler.is_compiling():
            self._prepared = sites, c, place, self.changes

    def _advice_for_maps(self, sites: Sequence[Site], c: int) -> str:
        """Return what an error about sizes adds where taps are maps: with one number a channel any size is right."""
        are_maps = any(len(site.features) > 1 and not self.feedback.form(site).positions for site in sites)
        if not are_maps or self._sizes is None or c != self._sizes[0]:
            return ""
        return " Where images of several sizes are trained on: bpfree.Feedback(modes=1) serves every size."

    def _length(self, c: int) -> int:
        """Return the number of rows that matrices have for an error of ``c`` numbers."""
        return c if self.reduction is None else self.reduction.size(c)

    def reduced(self, rows: Tensor) -> Tensor:
        """Return rows ``(N, c)`` of an error as the taps' matrices take them: ``(N, r)`` with a rank."""
        return rows if self.reduction is None else self.reduction(rows)

    def _is_prepared(self, sites: Sequence[Site], c: int, place: tuple[torch.dtype, torch.device]) -> bool:
        """Return whether the last pass had the very same sites, and nothing has changed since."""
        if torch.compiler.is_compiling() or not self._prepared or sites is not self._prepared[0]:
            return False
        return self._prepared[1:] == (c, place, self.changes)

    def _require_room(self, owners: Sequence[tuple[str, Site, int]], c: int, like: Tensor) -> None:
        new = {name: (site.name, width) for name, site, width in owners if name not in self}
        if new and not torch.compiler.is_compiling():
            there = sum(self[name].numel() for name in self)
            sizes = {
                "all" if self.feedback.shared else tap: (c * width, f"{c} x {width}") for tap, width in new.values()
            }
            require_room(self.feedback, sizes, self.copies * like.element_size(), there)

    @property
    def copies(self) -> int:
        """The number of tensors of its size that are kept for one matrix."""
        return 1

    def _owners(self, sites: Sequence[Site]) -> list[tuple[str, Site, int]]:
        assert self._sizes is not None
        if self.feedback.shared:
            return [("shared", site, self._sizes[1]) for site in sites[:1]]
        return [(self.name(site), site, self.feedback.form(site).size) for site in sites]

    def _provide(self, name: str, site: Site, c: int, width: int, like: Tensor) -> None:
        if name not in self:
            self[name] = self._drawn(name, torch.empty(c, width, dtype=like.dtype)).to(like.device)
        elif self[name].shape != (c, width):
            raise StateError(
                f"the loaded feedback {name!r} has shape {tuple(self[name].shape)}; tap {site.name!r} and the "
                f"error need {(c, width)}. The state is that of another model, other taps or another output size."
            )

    def _drawn(self, name: str, matrix: Tensor) -> Tensor:
        return self.feedback.draw(matrix, self._seed(name))

    def _seed(self, name: str) -> int:
        return derived_seed(self.numbers["seed"], name)

    def name(self, site: Site) -> str:
        """Return the name under which a tap's matrix is kept."""
        if self.feedback.shared:
            return "shared"
        # One module may be reached with several widths, and each has a matrix of its own; modes serve all resolutions.
        form = self.feedback.form(site)
        # A sequence has the matrix of its tokens, whether they have errors of their own in this pass or not.
        by_mode = form.modes and self.feedback.modes is not None
        return f"{site.module}:{form.channels}x{form.modes}" if by_mode else f"{site.module}:{form.size}"

    def matrix(self, site: Site) -> Tensor:
        """Return B_l of one tap, shape ``(c, n_l)``. A regenerated matrix is drawn in full.

        Raises:
            TapShapeError: No forward pass has shown the shapes yet.
        """
        if self._sizes is None:
            raise TapShapeError("feedback exists after the first forward pass, or with attach(..., example_inputs=).")
        form, name = self.feedback.form(site), self.name(site)
        if self.feedback.stored:
            matrix = self[name][:, : form.size]
        else:  # a device draws numbers of its own
            dtype, device = self._place or (None, None)
            out = torch.empty(self._length(self._sizes[0]), form.size, dtype=dtype, device=device)
            matrix = self._drawn(name, out)
        matrix = form.expand(matrix * self._scale(form))
        return matrix if self.reduction is None else self.reduction.widened(matrix)

    def _scale(self, form: Form) -> float:
        assert self._sizes is not None
        c, widest = self._sizes
        return self.feedback.scale(form.size, widest, c)

    def kinds(self, sites: Sequence[Site]) -> int:
        """Return the number of different signals for these taps: taps with the same matrix and form share one."""
        return len(self._keys(sites).different)

    def _keys(self, sites: Sequence[Site]) -> SignalKeys:
        if torch.compiler.is_compiling():
            return self._found_keys(sites)
        # Passes of one layout have the very same sites: in nets of many small layers the keys would take longer than
        # the product.
        known = self._known.get(id(sites))
        if known is None or known[0] is not sites:
            if len(self._known) >= _LAYOUTS:
                self._known.clear()
            known = self._known[id(sites)] = (sites, self._found_keys(sites))
        return known[1]

    def _found_keys(self, sites: Sequence[Site]) -> SignalKeys:
        return SignalKeys([(self.name(site), self.feedback.form(site), site.pairing) for site in sites])

    def forward(self, error: Tensor, sites: Sequence[Site]) -> Signals:
        """Return one signal ``(N, n_l)`` per tap from the error ``(N, c)``, each made when it is asked for.

        A tap with fewer rows than the error gets the rows that its :class:`bpfree.axes.sites.Pairing` makes of them.

        Raises:
            OptionError: The error is to be spread over a graph that was not given, or over another one.
            TapShapeError: This is no matrix, or the feedback was drawn for rows of another length.
        """
        if not isinstance(error, Tensor) or error.dim() != 2:  # a rule of the user's makes it
            raise TapShapeError(f"the rule's vector is {shape_of(error)}; a matrix is needed, one row a sample.")
        if self._sizes is not None and error.shape[1] != self._sizes[0]:
            raise TapShapeError(
                f"the rule's vector has {error.shape[1]} numbers a row, and is projected by feedback for the error's "
                f"{self._sizes[0]}."
            )
        error = self.reduced(self._spread(error))
        return Signals(partial(self._product, error), self._keys(sites), partial(self._images, error))

    def _spread(self, error: Tensor) -> Tensor:
        steps = self.feedback.spread
        if steps and self.adjacency is None:
            raise OptionError(
                f"Feedback(spread={steps}) spreads errors over a graph: give its matrix, attachment.adjacency(S)."
            )
        for _ in range(steps):
            error = self._neighbours(error)
        return error

    def _neighbours(self, error: Tensor) -> Tensor:
        matrix = self.adjacency
        assert matrix is not None
        shape = getattr(matrix, "shape", None)
        if shape is not None and tuple(shape) != (len(error), len(error)):
            raise OptionError(
                f"the errors of {len(error)} nodes cannot be spread by a matrix of shape {tuple(shape)}: give "
                "attachment.adjacency(S) that of this graph."
            )
        return (matrix.to(error) if isinstance(matrix, Tensor) else matrix) @ error

    def _product(self, error: Tensor, name: str, form: Form, pairing: Pairing | None) -> Tensor:
        if pairing is not None:
            error = pairing.gather(error)
        if not self.feedback.stored:
            return form.expand(self._regenerated(error * self._scale(form), name, form))
        error, B = self._factors(error, name, form)
        return form.expand(error @ B)

    def _factors(self, error: Tensor, name: str, form: Form) -> tuple[Tensor, Tensor]:
        # The scale goes onto the error, by far the smaller factor.
        scale, B = self._scale(form), self[name]
        if B.shape[1] != form.size:
            B = B[:, : form.size]
        if B.dtype != error.dtype or B.device != error.device:
            B = B.to(error)
        return error if scale == 1.0 else error * scale, B

    def _regenerated(self, error: Tensor, name: str, form: Form) -> Tensor:
        signal = error.new_empty(len(error), form.size)
        for start in range(0, form.size, BLOCK):
            stop = min(start + BLOCK, form.size)
            block = torch.empty(error.shape[1], stop - start, dtype=error.dtype, device=error.device)
            signal[:, start:stop] = error @ self.feedback.draw(block, self._seed(name), start)
        return signal

    def _images(
        self, error: Tensor, shape: tuple[int, ...], name: str, form: Form, pairing: Pairing | None
    ) -> Tensor | None:
        # Channels last: a few rows of B are put in that order in place of the many of the signal.
        samples, channels, *_ = shape
        if pairing is not None:
            error = pairing.gather(error)
        rows = len(error)
        if not self.feedback.stored or samples != rows or (rows < error.shape[1] and not form.positions):
            return None
        if not form.channels_first:
            return None
        error, B = self._factors(error, name, form)
        if form.positions:
            return as_images(form.expand_channels_last(error @ B), shape)
        return as_images(error @ channels_last(B.reshape(len(B), channels, -1)), shape)

    def describe(self, site: Site) -> str:
        """Return the form of a tap's feedback, for the attachment's table."""
        form = self.feedback.form(site)
        c = self._sizes[0] if self._sizes else "?"
        kind = "shared" if self.feedback.shared else "own"
        by_mode = form.modes and self.feedback.modes is not None
        size = f"{form.channels} x {form.modes} modes" if by_mode else str(form.size)
        rank = "" if self.reduction is None or c == "?" else f" of rank {self._length(int(c))}"
        return f"{c} x {size} {kind if self.feedback.stored else 'regenerated'}{rank}"
