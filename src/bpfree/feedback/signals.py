"""The signals of one backward pass, each made when its tap asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from bpfree.axes.sites import Arrangement

Images: TypeAlias = Callable[..., "Tensor | None"]
"""(shape, *key) -> a signal of that shape whose numbers lie channels last; None where its rows had better be copied."""


class SignalKeys:
    """The keys of signals, one for each tap; passes of one layout have the very same ones.

    Args:
        keys: One key per tap.

    Attributes:
        different: The different keys among them.
        places: For each tap the place of its key among these.
        counts: For each of these the number of its taps.
    """

    def __init__(self, keys: Sequence[tuple[Any, ...]]) -> None:
        self.different = list(dict.fromkeys(keys))
        numbers = {key: number for number, key in enumerate(self.different)}
        self.places = [numbers[key] for key in keys]
        self.counts = [self.places.count(number) for number in range(len(self.different))]
        self._shaped: tuple[Sequence[Any], SignalKeys] | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy has passes, and shapes, of its own.
        return SignalKeys, ([self.different[place] for place in self.places],)

    def shaped(self, forms: Sequence[tuple[Arrangement, torch.memory_format]]) -> SignalKeys:
        """Return the keys of the same signals in the shapes and memory formats of their taps' outputs."""
        if self._shaped is None or self._shaped[0] is not forms:
            keys = [self.different[place] + form for place, form in zip(self.places, forms, strict=True)]
            self._shaped = forms, SignalKeys(keys)
        return self._shaped[1]


class Signals(Sequence["Tensor | None"]):
    """One signal ``(N, n_l)`` per tap, made when it is asked for.

    Taps with the same key (the same matrix and form, for example) get the same tensor. It is dropped when the last of
    these taps has got it: a tensor for each tap, or all widths at once, would need more memory than backpropagation.

    Args:
        make: Makes a signal from its key.
        keys: The taps' keys.
        images: Makes a signal in the memory format channels last.
    """

    def __init__(self, make: Callable[..., Tensor | None], keys: SignalKeys, images: Images | None = None) -> None:
        self._make, self._keys, self._images = make, keys, images
        self._made: dict[int, Tensor | None] = {}
        self._left = keys.counts.copy()

    def __len__(self) -> int:
        return len(self._keys.places)

    def __getitem__(self, index: Any) -> Any:
        """Return the signal of tap ``index``."""
        place, made = self._keys.places[index], self._made
        signal = made[place] if place in made else made.setdefault(place, self._make(*self._keys.different[place]))
        self._left[place] -= 1
        if not self._left[place]:
            del made[place]
        return signal

    def all(self) -> list[Tensor | None]:
        """Return the signals of all taps."""
        made = [self._make(*key) for key in self._keys.different]
        return [made[place] for place in self._keys.places]

    def shaped(self, forms: Sequence[tuple[Arrangement, torch.memory_format]]) -> Signals:
        """Return the same signals in the shapes and memory formats of their taps' outputs."""
        return Signals(self._make_shaped, self._keys.shaped(forms))

    def _make_shaped(self, *key: Any) -> Tensor | None:
        *own, arrangement, format = key
        if format is not torch.contiguous_format and self._images is not None and arrangement.leads:
            signal = self._images(arrangement.shape, *own)
            if signal is not None:
                return signal
        rows = self._make(*own)
        return None if rows is None else arrangement.like(rows, format)
