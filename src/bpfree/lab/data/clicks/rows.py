"""The rows of a cache for training: read and shuffled in blocks, of which memory holds a few."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bpfree.lab.data.batches import TrainingOrder, generator
from bpfree.lab.data.clicks.cache import LABELS, Cache
from bpfree.lab.data.clicks.schema import PARTS, Part
from bpfree.lab.errors import SettingsError

BLOCK = 2**13
"""Rows that lie one behind the other and are read together."""
MIXED = 2**5
"""Blocks whose rows are mixed: 262,144 rows, some 20 MB of Criteo's cache."""
_SLOTS = 2 * MIXED  # blocks in memory; a batch may be of two mixtures


class Columns:
    """The files of a cache, of which some blocks are in memory: those that the last batches were taken from.

    They are read and not mapped: Linux maps a file in stretches of up to 2 MB, so that a batch of rows from everywhere
    would count the whole cache as this process's memory.

    Args:
        cache: The cache.
    """

    def __init__(self, cache: Cache) -> None:
        files = [(cache.folder / LABELS, np.dtype("u1"))]
        files += [(cache.ids_file(number), np.dtype(field.dtype)) for number, field in enumerate(cache.fields)]
        self._files = files
        self._rows = sum(cache.counts.values())
        self._held = [np.empty(_SLOTS * BLOCK, dtype) for _, dtype in files]
        self._slot = np.full(-(-self._rows // BLOCK), -1)  # of each block that is in memory
        self._blocks = deque[int]()  # those, in the order in which they were read

    def batch(self, places: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return the rows at ``places``, int64 ``(k,)``.

        Returns:
            Identifiers, int64 ``(k, fields)``, and labels, float32 ``(k,)``.
        """
        blocks = places // BLOCK
        needed = np.unique(blocks)
        if len(needed) > _SLOTS:
            halves = [self.batch(half) for half in np.array_split(places, 2)]
            return torch.cat([ids for ids, _ in halves]), torch.cat([labels for _, labels in halves])
        self._hold(needed)
        rows = places + (self._slot[blocks] - blocks) * BLOCK
        ids = np.empty((len(places), len(self._held) - 1), np.int64)
        for number, held in enumerate(self._held[1:]):
            ids[:, number] = held[rows]
        return torch.from_numpy(ids), torch.from_numpy(self._held[0][rows].astype(np.float32))

    def _hold(self, needed: NDArray[np.int64]) -> None:
        """Read the blocks that are not in memory, over those that were read first and are not needed."""
        for block in needed[self._slot[needed] < 0].tolist():
            slot = len(self._blocks)
            if slot == _SLOTS:
                while (oldest := self._blocks.popleft()) in needed:
                    self._blocks.append(oldest)
                slot, self._slot[oldest] = int(self._slot[oldest]), -1
            first = block * BLOCK
            count = min(BLOCK, self._rows - first)
            for held, (path, dtype) in zip(self._held, self._files, strict=True):
                data = np.fromfile(path, dtype, count, offset=first * dtype.itemsize)
                held[slot * BLOCK : slot * BLOCK + count] = data
            self._slot[block] = slot
            self._blocks.append(block)


class Rows:
    """The rows of one part of a log.

    Args:
        columns: The files.
        first: The place of the part's first row in them.
        count: The number of rows.
        numbers: Which of the part's rows these are, counted from 0, int64 ``(n,)``; None for all.
    """

    def __init__(self, columns: Columns, first: int, count: int, numbers: Tensor | None = None) -> None:
        self._columns, self._first, self._count, self._numbers = columns, first, count, numbers

    @classmethod
    def of(cls, cache: Cache) -> dict[Part, Rows]:
        """Return the rows of each part of a cache."""
        columns, counts = Columns(cache), cache.counts
        firsts = itertools.accumulate((counts[part] for part in PARTS), initial=0)
        return {part: cls(columns, first, counts[part]) for part, first in zip(PARTS, firsts, strict=False)}

    def __len__(self) -> int:
        return self._count if self._numbers is None else len(self._numbers)

    def take(self, index: Tensor) -> Rows:
        """Return the rows at ``index``, int64 ``(k,)``."""
        numbers = index if self._numbers is None else self._numbers.index_select(0, index)
        return Rows(self._columns, self._first, self._count, numbers)

    def first(self, n: int) -> Rows:
        """Return the first ``n`` rows, or all if there are fewer."""
        if self._numbers is not None:
            return self.take(torch.arange(min(n, len(self))))
        return Rows(self._columns, self._first, min(n, self._count))

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows at ``index``, int64 ``(k,)``.

        Returns:
            Identifiers, int64 ``(k, fields)``, of which each field counts from 0, and labels, float32 ``(k,)``.

        Raises:
            IndexError: A number is none of a row.
        """
        if len(index) and not (int(index.min()) >= 0 and int(index.max()) < len(self)):
            raise IndexError(f"rows {int(index.min())} to {int(index.max())} of {len(self)}")
        numbers = index if self._numbers is None else self._numbers.index_select(0, index)
        return self._columns.batch((numbers + self._first).numpy())


class ShuffledBlocks(TrainingOrder):
    """All rows in blocks that are drawn in random order, of which several are mixed: memory holds only these.

    The order depends on the seed and the pass alone. A pass's last batch holds what is left over; a single row is left
    out, in each pass another, because batch normalization cannot learn from it. Where there are no
    more rows than :data:`BLOCK` times :data:`MIXED`, every order of them is as likely as any other.

    Args:
        n: The number of rows.
        size: The number of rows of a batch.
        seed: With the pass, it determines the order.
        steps: Batches an epoch, see :class:`~bpfree.lab.data.batches.TrainingOrder`.
        rank: Which of several processes this is. Each gets as many rows of a pass as the others, and no row that
            another gets; fewer rows than processes are left over, in each pass others.
        processes: The number of processes.

    Raises:
        SettingsError: There are fewer rows than processes.
    """

    def __init__(
        self, n: int, size: int, seed: int, steps: int | None = None, *, rank: int = 0, processes: int = 1
    ) -> None:
        self._own = n // processes
        if not self._own:
            raise SettingsError(f"{n} rows cannot be dealt to {processes} processes: start fewer.")
        whole, left = divmod(self._own, size)
        super().__init__(whole + (left > 1 or not whole), steps)
        self.n, self.size, self.seed, self.rank = n, size, seed, rank

    def batches(self, number: int) -> Iterator[Tensor]:
        """Yield the batches of one pass."""
        rest = torch.empty(0, dtype=torch.int64)
        for mixed in self._mixed(number):
            *whole, rest = torch.cat([rest, mixed]).split(self.size)
            yield from whole
            if len(rest) == self.size:
                yield rest
                rest = rest[:0]
        if len(rest) > 1 or self._own == 1:
            yield rest

    def _mixed(self, number: int) -> Iterator[Tensor]:
        """Yield the rows of several blocks at a time, in random order."""
        blocks = torch.randperm(-(-self.n // BLOCK), generator=generator("blocks", self.seed, number)).tolist()
        for turn, rows in enumerate(_together(self._of_rank(blocks))):
            order = torch.randperm(len(rows), generator=generator("rows", self.seed, number, self.rank, turn))
            yield rows.index_select(0, order)

    def _of_rank(self, blocks: Sequence[int]) -> Iterator[Tensor]:
        """Yield the rows of this process, block by block: a stretch of all blocks in their random order."""
        first, end, place = self.rank * self._own, (self.rank + 1) * self._own, 0
        for block in blocks:
            begin, size = block * BLOCK, min(BLOCK, self.n - block * BLOCK)
            low, high = max(0, first - place), min(size, end - place)
            if low < high:
                yield torch.arange(begin + low, begin + high)
            place += size


def _together(blocks: Iterator[Tensor]) -> Iterator[Tensor]:
    while some := list(itertools.islice(blocks, MIXED)):
        yield torch.cat(some)
