"""The signals of one backward pass, each made when its tap asks for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from bpfree.axes.sites import Arrangement

Images: TypeAlias = Callable[..., "Tensor | None"]
"""(shape, *key) -> a signal of that shape whose numbers lie channels last; None where its rows had better be copied."""


class Signals(Sequence["Tensor | None"]):
    """One signal ``(N, n_l)`` per tap, made when it is asked for.

    Taps with the same key (the same matrix and form, for example) get the same tensor. It is dropped when the last of
    these taps has got it: a tensor for each tap, or all widths at once, would need more memory than backpropagation.

    Args:
        make: Makes a signal from its key.
        keys: One key per tap.
        images: Makes a signal in the memory format channels last.
    """

    def __init__(
        self, make: Callable[..., Tensor | None], keys: Sequence[tuple[Any, ...]], images: Images | None = None
    ) -> None:
        self._make, self._keys, self._images = make, keys, images
        self._made: dict[tuple[Any, ...], Tensor | None] = {}
        self._left = Counter(keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: Any) -> Any:
        """Return the signal of tap ``index``."""
        key = self._keys[index]
        signal = self._made[key] if key in self._made else self._made.setdefault(key, self._make(*key))
        self._left[key] -= 1
        if not self._left[key]:
            del self._made[key]
        return signal

    def shaped(self, forms: Sequence[tuple[Arrangement, torch.memory_format]]) -> Signals:
        """Return the same signals in the shapes and memory formats of their taps' outputs."""
        keys = [key + form for key, form in zip(self._keys, forms, strict=True)]
        return Signals(self._make_shaped, keys)

    def _make_shaped(self, *key: Any) -> Tensor | None:
        *own, arrangement, format = key
        if format is not torch.contiguous_format and self._images is not None and arrangement.leads:
            signal = self._images(arrangement.shape, *own)
            if signal is not None:
                return signal
        rows = self._make(*own)
        return None if rows is None else arrangement.like(rows, format)
