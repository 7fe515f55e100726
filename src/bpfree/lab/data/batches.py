"""Whole batches by index, from tensors that are in memory already.

A DataLoader that collects samples one by one spends more time than a small network's step takes. Here a batch is
one indexing of a tensor.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from bpfree.lab.data.augmentation import Augmentation, augmented
from bpfree.lab.data.resumable import ResumableLoader
from bpfree.lab.data.samples import Batchable, Samples
from bpfree.lab.errors import SettingsError


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """A data set whose items are batches: indexed with an int64 tensor of shape ``(N,)``."""

    def __init__(self, samples: Batchable) -> None:
        self.samples = samples

    def __getitem__(self, index: Tensor) -> tuple[Tensor, Tensor]:
        return self.samples.batch(index)

    def __len__(self) -> int:
        return len(self.samples)


class TrainingOrder(Sampler[Tensor]):
    """Batches of indices in an order that the number of the pass over the data determines.

    A resumed run therefore sees the batches that the uninterrupted one would have seen, and every rule sees the same.
    Lightning calls :meth:`set_epoch` before every epoch.

    Args:
        of_a_pass: The number of batches of a pass.
        steps: Batches an epoch: each begins in the endless row of passes where the one before it ended. None makes
            every epoch one pass.
    """

    def __init__(self, of_a_pass: int, steps: int | None = None) -> None:
        self.epoch, self._pass = 0, of_a_pass
        self.steps = steps or of_a_pass

    def set_epoch(self, epoch: int) -> None:
        """Take the batches of this epoch, counted from 0, from the next iteration on."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Tensor]:
        first, skipped = divmod(self.epoch * self.steps, self._pass)
        passes = map(self.batches, itertools.count(first))
        yield from itertools.islice(itertools.chain.from_iterable(passes), skipped, skipped + self.steps)

    def batches(self, number: int) -> Iterable[Tensor]:
        """Return the batches of one pass, int64 ``(N,)`` each; ``number`` counts passes from 0."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.steps


class Shuffled(TrainingOrder):
    """All samples in an order that depends on the seed and the pass; a pass's last batch holds what is left over.

    Args:
        n: The number of samples.
        size: The number of samples of a batch.
        seed: With the pass, it determines the order.
        steps: Batches an epoch, see :class:`TrainingOrder`.
    """

    def __init__(self, n: int, size: int, seed: int, steps: int | None = None) -> None:
        super().__init__(-(-n // size), steps)
        self.n, self.size, self.seed = n, size, seed

    def batches(self, number: int) -> tuple[Tensor, ...]:
        """Return the batches of one pass."""
        return torch.randperm(self.n, generator=generator(self.seed, number)).split(self.size)


class Streams(TrainingOrder):
    """Consecutive samples as ``size`` streams side by side: row i of each batch continues row i of the batch before.

    The samples are cut into ``size`` parts of equal length; what is left over, fewer than ``size``, is left out. Every
    pass is the same.

    Args:
        n: The number of samples.
        size: The number of streams, which is that of samples in a batch.
        steps: Batches an epoch, see :class:`TrainingOrder`.

    Raises:
        SettingsError: There are fewer samples than streams.
    """

    def __init__(self, n: int, size: int, steps: int | None = None) -> None:
        if n < size:
            raise SettingsError(
                f"--batch-size {size} streams need as many sequences, and the training text has {n}: lower "
                "--batch-size or --text.context, or take --text.order shuffled."
            )
        super().__init__(n // size, steps)
        self.size = size

    def batches(self, number: int) -> tuple[Tensor, ...]:
        """Return the batches of one pass."""
        return torch.arange(self.size * self._pass).view(self.size, self._pass).T.contiguous().unbind()


class Numbered(Sampler[tuple[int, Tensor]]):
    """The batches of ``order``, each with its number in the whole run, counted from 0."""

    def __init__(self, order: Shuffled) -> None:
        self.order = order

    def set_epoch(self, epoch: int) -> None:
        """Take the order of this epoch, counted from 0, from the next iteration on."""
        self.order.set_epoch(epoch)

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        # A generator, as the order is: Lightning names the epoch between making an iterator and asking it.
        yield from enumerate(self.order, start=self.order.epoch * len(self.order))

    def __len__(self) -> int:
        return len(self.order)


class AugmentedBatches(Dataset[tuple[Tensor, Tensor]]):
    """Augmented batches: indexed with a batch's number and its indices, int64 ``(N,)``.

    The random changes depend on the seed and the batch's number alone, so that a resumed run sees the same images.

    Args:
        samples: Normalized images.
        augmentation: Their random changes.
        black: The value of a black pixel in each channel, ``(channels,)``.
        seed: With the batch's number, it determines what is drawn.
    """

    def __init__(self, samples: Samples, augmentation: Augmentation, black: Tensor, seed: int) -> None:
        self.plain = Batches(samples)
        self.augmentation, self.black, self.seed = augmentation, black, seed

    def __getitem__(self, numbered: tuple[int, Tensor]) -> tuple[Tensor, Tensor]:
        number, index = numbered
        x, y = self.plain[index]
        return augmented(x, self.augmentation, self.black, generator("augmentation", self.seed, number)), y

    def __len__(self) -> int:
        return len(self.plain)


class InOrder(Sampler[Tensor]):
    """Batches of ``size`` consecutive indices, for evaluation."""

    def __init__(self, n: int, size: int) -> None:
        self.n, self.size = n, size

    def __iter__(self) -> Iterator[Tensor]:
        yield from torch.arange(self.n).split(self.size)

    def __len__(self) -> int:
        return -(-self.n // self.size)


def batches(samples: Batchable, sampler: Sampler[Tensor]) -> DataLoader[tuple[Tensor, Tensor]]:
    """Make a loader that yields ``(x, y)`` for each tensor of indices that ``sampler`` gives."""
    return ResumableLoader(Batches(samples), sampler)


def augmented_batches(
    samples: Samples, order: Shuffled, augmentation: Augmentation, black: Tensor
) -> DataLoader[tuple[Tensor, Tensor]]:
    """Make a loader that yields ``(x, y)``, ``x`` augmented, per batch of ``order``; see :class:`AugmentedBatches`."""
    return ResumableLoader(AugmentedBatches(samples, augmentation, black, order.seed), Numbered(order))


def generator(*words: object) -> torch.Generator:
    """Make a generator whose numbers these words determine."""
    # Hashed, because a CPU generator looks at the lower 32 bits of its seed alone: two numbers side by side in
    # 64 bits would leave one of them out.
    mixed = hashlib.sha256(" ".join(map(str, words)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(mixed[:4], "big"))
