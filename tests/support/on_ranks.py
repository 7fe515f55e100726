"""The features of several processes: two of them run all rows, one after another, in one process group."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage
from torch.nn.parallel import DistributedDataParallel

import bpfree.pipeline
from bpfree.mechanisms.direct.alternation import Phase
from support.matrix import ROWS, Row, cell
from support.perturbations import Notes, estimates, noting, told
from support.runs import STEPS, N, Numbers, attach, batch, learned, mlp, off, sgd, train, trained

RANKS = 2
MICRO_BATCHES = 2
SPLIT, LAST_TAP = 2, "1"
"""The layers of the first stage of a pipeline, and the tap at which it ends."""
EXACT = 1e-12


@dataclass
class Outcome:
    """What one process has of one row.

    Attributes:
        error: What was raised.
        numbers: Weights and feedback after training.
        notes: The perturbations of its estimating passes.
        by_hand: The same numbers without the feature: gradients averaged by hand.
    """

    error: str = ""
    numbers: dict[str, np.ndarray[Any, Any]] | None = None
    notes: Notes = field(default_factory=list)
    by_hand: dict[str, np.ndarray[Any, Any]] | None = None


def _share(rank: int) -> tuple[Tensor, Tensor]:
    x, y = batch()
    mine = slice(rank * N // RANKS, (rank + 1) * N // RANKS)
    return x[mine], y[mine]


def _numpy(numbers: Numbers) -> dict[str, np.ndarray[Any, Any]]:
    # Arrays travel by value between processes; a tensor would need this process to live on.
    return {name: tensor.numpy() for name, tensor in numbers.items()}


def _torch(numbers: dict[str, np.ndarray[Any, Any]] | None) -> Numbers:
    assert numbers is not None
    return {name: torch.from_numpy(array) for name, array in numbers.items()}


# -- on the processes ------------------------------------------------------------------------------------------------


def _ddp(row: Row, model: nn.Sequential) -> nn.Module:
    return DistributedDataParallel(model, find_unused_parameters=row.name == "Shallow")


def _fsdp2(row: Row, model: nn.Sequential) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer)
    fully_shard(model)
    return model


def _parallel(wrap: Callable[[Row, nn.Sequential], nn.Module]) -> Callable[[Row, int, Notes], Numbers]:
    def on_rank(row: Row, rank: int, notes: Notes) -> Numbers:
        model = mlp()
        attachment = attach(row, model, rule=noting(row.rule, notes))
        run = wrap(row, model)
        train(run, attachment, sgd(model, attachment), *_share(rank))
        return learned(model, attachment)

    return on_rank


def _lightning(row: Row, rank: int, notes: Notes) -> Numbers:
    import lightning
    from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
    from lightning.pytorch.strategies import DDPStrategy
    from torch.utils.data import DataLoader, TensorDataset

    class Learner(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()
            self.attachment = attach(row, self.net, rule=noting(row.rule, notes))

        def training_step(self, batch: Any, index: int) -> Tensor:
            x, y = batch
            self.attachment.targets(y)
            return F.cross_entropy(self.net(x), y)

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return sgd(self.net, self.attachment)

    os.environ.update(
        LOCAL_RANK=str(rank), RANK=str(rank), GROUP_RANK="0", WORLD_SIZE=str(RANKS), LOCAL_WORLD_SIZE=str(RANKS),
        TORCHELASTIC_RUN_ID="one",
    )  # fmt: skip
    strategy = DDPStrategy(
        cluster_environment=TorchElasticEnvironment(),
        process_group_backend="gloo",
        find_unused_parameters=row.name == "Shallow",
    )
    trainer = lightning.Trainer(
        accelerator="cpu", strategy=strategy, devices=RANKS, max_epochs=STEPS, use_distributed_sampler=False,
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    learner = Learner()
    trainer.fit(learner, DataLoader(TensorDataset(*_share(rank)), batch_size=N))
    assert trainer.global_step == STEPS
    return learned(learner.net, learner.attachment)


def _by_hand(row: Row, rank: int) -> Numbers:
    """Every process has a model of its own; their gradients are averaged before each step."""
    model, (x, y) = mlp(), _share(rank)
    attachment = attach(row, model)
    optimizer = sgd(model, attachment)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        first = next(model.parameters())
        assert first.grad is not None
        before = first.grad.clone()
        for parameter in model.parameters():
            assert parameter.grad is not None
            dist.all_reduce(parameter.grad)
            parameter.grad /= RANKS
        assert not torch.allclose(before, first.grad)  # the processes' directions differ
        optimizer.step()
    return learned(model, attachment)


def _pipeline(row: Row, rank: int, notes: Notes) -> Numbers:
    whole, (x, y) = mlp(), batch()
    stage = PipelineStage(whole[SPLIT:] if rank else whole[:SPLIT], rank, RANKS, torch.device("cpu"))
    attachment = bpfree.pipeline.attach_stage(stage, row.rule, seed=3, **row.options)
    schedule = bpfree.pipeline.ScheduleSynchronous(attachment, MICRO_BATCHES, F.cross_entropy)
    optimizer = sgd(attachment.model, attachment)
    for _ in range(STEPS):
        optimizer.zero_grad()
        schedule.step(*(() if rank else (x,)), target=y)
        optimizer.step()
    return learned(attachment.model, attachment)


ON_RANK = {
    "ddp": _parallel(_ddp), "fsdp2": _parallel(_fsdp2), "lightning": _lightning, "pipeline": _pipeline,
}  # fmt: skip
"""What one process does with a row."""


def run_rows(rank: int, features: Sequence[str]) -> dict[tuple[str, str], Outcome]:
    """Every row that has a test, on one process; what one row raises does not end the others."""
    torch.set_default_dtype(torch.float64)
    warnings.simplefilter("ignore")
    cells = [(feature, name) for feature in features for name in ROWS if cell(feature, name).status != "meaningless"]
    return {(feature, name): _run_row(rank, feature, ROWS[name]) for feature, name in cells}


def _run_row(rank: int, feature: str, row: Row) -> Outcome:
    outcome = Outcome()
    try:
        outcome.numbers = _numpy(ON_RANK[feature](row, rank, outcome.notes))
        if getattr(row.rule, "of", None) == "weights":
            outcome.by_hand = _numpy(_by_hand(row, rank))
    except Exception:
        outcome.error = traceback.format_exc()
    return outcome


# -- what they are compared with -------------------------------------------------------------------------------------


def check(feature: str, row: Row, outcomes: list[Outcome]) -> None:
    """The processes have the numbers of one, each all of them or those of its stage."""
    for rank, outcome in enumerate(outcomes):
        assert not outcome.error, f"rank {rank}:\n{outcome.error}"
    found = [_torch(outcome.numbers) for outcome in outcomes]
    if feature == "pipeline":
        _check_stages(row, *found)
    else:
        _check_copies(row, outcomes, found)


def _check_copies(row: Row, outcomes: list[Outcome], found: list[Numbers]) -> None:
    """All processes have the numbers of one that has the whole batch, and the perturbations of all."""
    assert off(found[1], found[0]) == 0
    expected = _torch(outcomes[0].by_hand) if outcomes[0].by_hand else _joined(row, [o.notes for o in outcomes])
    assert off(found[0], expected) < EXACT


def _joined(row: Row, notes: list[Notes]) -> Numbers:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        model, (x, _) = mlp(), batch()
        if estimates(row.rule):
            first, second = (np.concatenate([v.ravel() for seen in noted for v in seen]) for noted in notes)
            assert len(first)
            assert not np.allclose(first, second)  # the processes' perturbations differ
        return trained(row.plain, lambda: model, rule=told(row.rule, notes, model, x))
    finally:
        torch.set_default_dtype(before)


def _check_stages(row: Row, first: Numbers, last: Numbers) -> None:
    """The stages together have the numbers of one process that accumulates over the same micro-batches."""
    both = first.keys() & last.keys()
    assert off({name: first[name] for name in both}, {name: last[name] for name in both}) == 0
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert off(first | last, _accumulated(row)) < EXACT
    finally:
        torch.set_default_dtype(before)


def _accumulated(row: Row) -> Numbers:
    model, (x, y) = mlp(), batch()
    windowed = "window" in row.options
    attachment = attach(Row(row.name, row.rule) if windowed else row, model)
    optimizer = sgd(model, attachment)
    for step in range(STEPS):
        optimizer.zero_grad()
        for inputs, targets in zip(x.chunk(MICRO_BATCHES), y.chunk(MICRO_BATCHES), strict=True):
            if windowed:
                _learn_in_windows(model, attachment, inputs, targets)
            else:
                with _cut_at_end(attachment, step):
                    attachment.targets(targets)
                    F.cross_entropy(model(inputs), targets).backward()
        for parameter in (*model.parameters(), *attachment.parameters()):
            if parameter.grad is not None:
                parameter.grad /= MICRO_BATCHES
        optimizer.step()
    return learned(model, attachment)


def _cut_at_end(attachment: bpfree.Attachment, step: int) -> AbstractContextManager[None]:
    """Within this context alternating cuts are those of a step, and the one at which the first stage ends."""
    alternation: Any = getattr(attachment.mechanism, "alternation", None)
    return nullcontext() if alternation is None else alternation.held(Phase(2, step % 2, frozenset({LAST_TAP})))


def _learn_in_windows(model: nn.Sequential, attachment: bpfree.Attachment, x: Tensor, y: Tensor) -> None:
    """Windows of two end where the first stage ends, and reach the error in the last one."""
    with attachment.paused():
        h = model[:SPLIT](x)
        output = model[SPLIT:](h.detach())
    loss = F.cross_entropy(output, y)
    (error,) = torch.autograd.grad(loss, output, retain_graph=True)
    loss.backward()
    mechanism: Any = attachment.mechanism
    if not mechanism.sites:  # nothing is drawn yet
        model(x)
    (site,) = (site for site in mechanism.sites if site.name == LAST_TAP)
    h.backward(error @ mechanism.feedback.matrix(site))
