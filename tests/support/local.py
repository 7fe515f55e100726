"""The features that one process has. A check takes a row, and raises where the cell does not hold."""

from __future__ import annotations

import io
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.utils import counters

import bpfree
from support.matrix import WITH_BREAKS, Row, cell
from support.runs import (
    Checkpointed,
    Numbers,
    assert_near,
    attach,
    batch,
    learned,
    mlp,
    off,
    sgd,
    train,
    trained,
    way,
    with_statistics,
)

EXACT = 1e-12
PASSES = 20
ROUNDED = 0.05
"""Of a way or a gradient, for operations in bfloat16 (8 bits) or float16 (11 bits) through four layers."""


@contextmanager
def precision(dtype: torch.dtype) -> Generator[None]:
    """Within this context models and data are in ``dtype``."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def compiled(row: Row) -> None:
    """The hooks are in the graph: a function that calls the model is compiled, not the model inside its hooks."""
    with precision(torch.float64):
        torch._dynamo.reset()
        counters.clear()
        model, (x, y) = mlp(), batch()
        attachment = attach(row, model, example_inputs=x)
        run = torch.compile(lambda x: model(x), backend="aot_eager")
        train(run, attachment, sgd(model, attachment), x, y)
        breaks, graphs = sum(counters["graph_break"].values()), counters["stats"]["unique_graphs"]
        assert graphs, "nothing was compiled"
        noted = cell("compile", row.name).reason.startswith(WITH_BREAKS)
        assert bool(breaks) == noted, f"{breaks} graph breaks: {dict(counters['graph_break'])}"
        assert off(learned(model, attachment), trained(row.plain)) < EXACT


def bf16_autocast(row: Row) -> None:
    with precision(torch.float32):
        model, (x, y) = mlp(), batch()
        attachment = attach(row, model, example_inputs=x)
        start = learned(model, attachment)

        def run(x: Tensor) -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                output: Tensor = model(x)
            assert output.dtype == torch.bfloat16
            return output.float()

        train(run, attachment, sgd(model, attachment), x, y)
        assert_near(way(start, learned(model, attachment)), way(start, trained(row.plain)), ROUNDED)


def bf16_weights(row: Row) -> None:
    with precision(torch.float32):
        # The same weights and inputs, so that nothing but the arithmetic differs.
        rounded, (x, y) = mlp().bfloat16().float(), batch()
        expected, far = _passes(row, rounded, x.bfloat16().float(), y)
        found, ours = _passes(row, mlp().bfloat16(), x.bfloat16(), y)
        assert_near(found, expected, ROUNDED)
        assert_near(ours, far, ROUNDED)


def _passes(row: Row, model: nn.Module, x: Tensor, y: Tensor) -> tuple[Numbers, Numbers]:
    """The gradients of the first of several passes at these weights, and how far the feedback goes in all of them."""
    attachment = attach(row, model, example_inputs=x)
    start = learned(model, attachment)
    gradients: Numbers = {}
    # At these weights: only the feedback has an optimizer, where it has parameters.
    steppers = [torch.optim.SGD([parameter], lr=0.01) for parameter in attachment.parameters()]
    for _ in range(PASSES):
        attachment.zero_grad()
        attachment.targets(y)
        F.cross_entropy(model(x), y).backward()
        gradients = gradients or _gradients(model, attachment)
        for stepper in steppers:
            stepper.step()
    return gradients, way(start, learned(model, attachment))


def _optimizers(row: Row, model: nn.Module, attachment: bpfree.Attachment) -> list[torch.optim.Optimizer]:
    """The optimizer that follows the scaler, and one for feedback whose gradients do not come from the loss."""
    if not isinstance(row.rule, bpfree.LMS):
        return [sgd(model, attachment)]
    groups = [list(model.parameters()), list(attachment.parameters())]
    return [torch.optim.SGD(group, lr=0.5, weight_decay=0.1) for group in groups if group]


def scaler(row: Row) -> None:
    _scaled_by_a_power_of_two(row)
    _skips_what_overflows(row)


def _scaled_steps(row: Row, count: int, scale: float, autocast: bool, *, skip: bool) -> tuple[Numbers, Numbers, float]:
    model, (x, y) = mlp(), batch()
    attachment = attach(row, model, example_inputs=x)
    start = learned(model, attachment)
    optimizer, *others = _optimizers(row, model, attachment)
    grad_scaler = torch.amp.GradScaler("cpu", init_scale=scale, backoff_factor=2.0**-14, enabled=scale > 1)
    for step in range(count):
        for one in (optimizer, *others):
            one.zero_grad()
        attachment.targets(y)
        with torch.autocast("cpu", torch.float16, enabled=autocast):
            output = model(x)
        grad_scaler.scale(F.cross_entropy(output.to(x), y)).backward()
        if not (skip and step == 0):
            grad_scaler.step(optimizer)
        for one in others:
            one.step()
        grad_scaler.update()
    return start, learned(model, attachment), grad_scaler.get_scale()


def _scaled_by_a_power_of_two(row: Row) -> None:
    with precision(torch.float64):
        _, found, _ = _scaled_steps(row, 3, 1024.0, autocast=False, skip=False)
        _, expected, _ = _scaled_steps(row.plain, 3, 1.0, autocast=False, skip=False)
        assert off(found, expected) < EXACT


def _skips_what_overflows(row: Row) -> None:
    with precision(torch.float32):
        start, found, scale = _scaled_steps(row, 4, 2.0**24, autocast=True, skip=False)
        assert scale == 2.0**10  # the first step overflowed, and no other
        _, expected, _ = _scaled_steps(row.plain, 4, 1.0, autocast=False, skip=True)
        assert_near(way(start, found), way(start, expected), ROUNDED)


def checkpointing(row: Row) -> None:
    with precision(torch.float64):
        expected = trained(row.plain, lambda: Checkpointed(again=False))
        assert off(trained(row, lambda: Checkpointed(again=True)), expected) < EXACT


def _gradients(model: nn.Module, attachment: bpfree.Attachment) -> Numbers:
    """What a backward pass has left; Shallow leaves nothing below the last tap."""
    named = (*model.named_parameters(), *attachment.named_parameters())
    return {name: torch.zeros(0) if p.grad is None else p.grad.clone() for name, p in named}


def accumulation(row: Row) -> None:
    """A rule that does not follow the loss's scale has its gradients divided by 2, and not the loss."""
    parts = 2

    def passes(batches: list[tuple[Tensor, Tensor]], share: int, *, clear: bool) -> list[Numbers]:
        model = mlp()
        attachment = attach(row, model, example_inputs=batches[0][0])
        loss_share, gradient_share = (share, 1) if row.follows_the_loss else (1, share)
        found = []
        for x, y in batches:
            if clear:
                model.zero_grad()
                attachment.zero_grad()
            attachment.targets(y)
            (F.cross_entropy(model(x), y) / loss_share).backward()
            left = _gradients(model, attachment)
            found.append({name: gradient / gradient_share for name, gradient in left.items()})
        return found

    with precision(torch.float64):
        x, y = batch()
        halves = [(x[part::parts], y[part::parts]) for part in range(parts)]
        together = passes(halves, parts, clear=False)[-1]
        apart = passes(halves, parts, clear=True)
        assert off(together, {name: first + apart[1][name] for name, first in apart[0].items()}) < EXACT
        assert off(apart[0], apart[1]) > 1e-3  # the two batches say different things
        if not row.remembers:
            assert off(together, passes([(x, y)], 1, clear=True)[-1]) < EXACT


def resume(row: Row) -> None:
    for known in (True, False):
        _resumed(row, known)


def _resumed(row: Row, known: bool) -> None:
    x, y = batch()

    def start(seed: int) -> tuple[Any, ...]:
        model = with_statistics()
        attachment = attach(row, model, seed=seed, example_inputs=x if known else None)
        if seed == 2:
            for parameter in model.parameters():
                nn.init.normal_(parameter)
        return model, attachment, torch.optim.Adam([*model.parameters(), *attachment.parameters()], lr=0.01)

    parts = start(1)
    train(parts[0], parts[1], parts[2], x, y)
    file = io.BytesIO()
    torch.save([part.state_dict() for part in parts] + [torch.get_rng_state()], file)
    before = learned(*parts[:2])
    train(parts[0], parts[1], parts[2], x, y)
    resumed = start(2)  # another seed and other weights: everything must come from the file
    file.seek(0)
    *states, random_state = torch.load(file, weights_only=True)
    for part, state in zip(resumed, states, strict=True):
        part.load_state_dict(state)
    torch.set_rng_state(random_state)
    train(resumed[0], resumed[1], resumed[2], x, y)
    assert off(learned(*resumed[:2]), learned(*parts[:2])) == 0
    assert off(before, learned(*parts[:2])) > 1e-3


def streaming(row: Row) -> None:
    streamed = Row(row.name, row.rule, {**row.options, "streaming": True})
    with precision(torch.float64):
        assert off(trained(streamed, with_statistics), trained(row.plain, with_statistics)) < EXACT


CHECKS: dict[str, Callable[[Row], None]] = {
    "compile": compiled,
    "bf16_autocast": bf16_autocast,
    "bf16_weights": bf16_weights,
    "scaler": scaler,
    "checkpointing": checkpointing,
    "accumulation": accumulation,
    "resume": resume,
    "streaming": streaming,
}
