"""One size for all micro-batches: the receive buffers have this size, and a backend does not report another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.utils._pytree import keystr, tree_flatten_with_path

from bpfree.errors import StageError


class Sizes:
    """The sizes of the first micro-batch, which all others must have.

    Args:
        count: M, into how many micro-batches a batch is split.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._first: dict[str, str] = {}

    def check(self, arguments: Sequence[Any], targets: Sequence[Tensor] | None) -> None:
        """Compare the micro-batches of one batch, as far as this process is given them.

        Raises:
            StageError: One has another size.
        """
        for one in arguments:
            for path, leaf in tree_flatten_with_path(one)[0]:
                if isinstance(leaf, Tensor):
                    self._compare(keystr(path), f"an input of shape {tuple(leaf.shape)}")
        # Of targets the number alone: class numbers and probabilities may come in turns.
        for target in targets or ():
            self._compare("target", f"{len(target)} targets")

    def _compare(self, place: str, size: str) -> None:
        first = self._first.setdefault(place, size)
        if size != first:
            raise StageError(
                f"split into {self._count} micro-batches, this batch gives {size} where the first micro-batch had "
                f"{first}: stages make room for one size. Give batches of one size, a multiple of {self._count} "
                "(DataLoader(..., drop_last=True), or fill the last one up)."
            )
