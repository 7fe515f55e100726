"""torchfm's own way to train on a log of clicks: its data set, and the loop of its example script."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

SPLIT = (0.8, 0.1, 0.1)


def data_set(log: Path, place: Path) -> Any:
    """Read a log as torchfm does, into its database.

    Raises:
        ModuleNotFoundError: torchfm or lmdb is not installed.
    """
    from torchfm.dataset.criteo import CriteoDataset

    return CriteoDataset(str(log), str(place))


def model(net: str, sizes: Any, arguments: dict[str, Any]) -> torch.nn.Module:
    """Return torchfm's DeepFM or Deep & Cross with the arguments of the lab's."""
    from torchfm.model.dcn import DeepCrossNetworkModel
    from torchfm.model.dfm import DeepFactorizationMachineModel

    mlp, dropout = tuple(arguments["hidden"]), arguments["dropout"]
    if net == "DeepFM":
        return DeepFactorizationMachineModel(sizes, embed_dim=arguments["width"], mlp_dims=mlp, dropout=dropout)
    return DeepCrossNetworkModel(
        sizes, embed_dim=arguments["width"], num_layers=arguments["layers"], mlp_dims=mlp, dropout=dropout
    )


def batches(data: Any, size: int, workers: int) -> Iterable[Any]:
    """Return the batches of the training part, as the example makes them: in one drawn order."""
    part = torch.utils.data.random_split(data, SPLIT, torch.Generator().manual_seed(0))[0]
    return torch.utils.data.DataLoader(part, batch_size=size, num_workers=workers)


def stepping(net: torch.nn.Module, weight_decay: float) -> Callable[[Any], None]:
    """Return what the example does with a batch."""
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=weight_decay)
    criterion, total = torch.nn.BCELoss(), [0.0]

    def step(batch: Any) -> None:
        fields, target = batch
        loss = criterion(net(fields), target.float())
        net.zero_grad()
        loss.backward()
        optimizer.step()
        total[0] += loss.item()

    return step


def endless(batches: Iterable[Any]) -> Iterator[Any]:
    """Begin again where the batches end."""
    return itertools.chain.from_iterable(itertools.repeat(batches))
