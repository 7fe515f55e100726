"""How far one matrix for all tokens carries: FDFA's feedback beside the mean Jacobian that it learns, on language."""

from __future__ import annotations

import functools
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

import bpfree
from bpfree.jacobian import mean_jacobians
from bpfree.lab.running.runs import Places, learner, run
from bpfree.lab.tables.work import Training, works
from bpfree.lab.tasks import TASKS
from bpfree.lab.tasks.learner import Learner


def measured(norm: str, block: int, seed: int, data_dir: str) -> dict[str, float]:
    """Behind a block of a network that FDFA has trained as in ``brown-pre.yaml`` or ``brown-post.yaml``."""
    perplexity, learned, exact = _network(norm, seed, data_dir)
    return {
        "perplexity": perplexity,
        "learned": learned.taps[block].cosine_mean,
        "exact": exact.taps[block].cosine_mean,
        "agreement": learned.taps[block].cosine_feedback,
    }


@functools.cache  # all blocks of one seed are seen in one network
def _network(norm: str, seed: int, data_dir: str) -> tuple[float, bpfree.AlignmentReport, bpfree.AlignmentReport]:
    settings = {
        "data": "text",
        "model": {"class_path": "CausalTransformer", "init_args": {"norm": norm}},
        "rule": {"class_path": "FDFA", "init_args": {"beta": 0.05}},
        "steps": 800,
        "alignment": "never",
    }
    work = works("FDFA", settings, seed + 1, data_dir)[seed]
    assert isinstance(work, Training)
    perplexity, task, tokens = _trained(work, data_dir)
    closure = partial(task.batch_loss, tokens)
    learned = bpfree.alignment(task.attachment, closure, jacobian=True)
    _exchange(task, tokens)
    return perplexity, learned, bpfree.alignment(task.attachment, closure, jacobian=False)


def _trained(work: Training, data_dir: str) -> tuple[float, Learner, tuple[torch.Tensor, torch.Tensor]]:
    """The perplexity, the trained network, and the tokens that it is looked at with."""
    run_settings, text = work.settings, work.data(data_dir)
    with TemporaryDirectory() as folder:
        record = run(run_settings, text, Path(folder), keep_checkpoint=True)
        task = learner(run_settings, text)
        checkpoint = torch.load(Places.of(run_settings, text, Path(folder)).checkpoint, weights_only=True)
    task.load_state_dict(checkpoint["state_dict"])
    task.model.eval()
    return record["perplexity"], task, task.feed(run_settings, text, TASKS[run_settings.task]).aligned()


def _exchange(task: Learner, tokens: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Put the mean Jacobian of these tokens in the place of what was learned."""
    attachment, seen = task.attachment, list[torch.Tensor]()
    hooks = [tap.register_forward_hook(lambda _, args, output: seen.append(output)) for tap in attachment.taps.values()]
    with attachment.paused():
        task.batch_loss(tokens)
    for hook in hooks:
        hook.remove()
    *taps, output = seen  # the error is taken behind the last block
    for tap, jacobian in zip(attachment.taps, mean_jacobians(output, taps, dims=2), strict=False):
        attachment.feedback[f"{tap}:{jacobian.shape[1]}"].copy_(jacobian)
