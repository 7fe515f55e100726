"""The schedules that users choose from: without staleness, and without pauses."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import Any

import torch

from bpfree.errors import OptionError
from bpfree.pipeline.schedule import DirectSchedule
from bpfree.pipeline.stage import StageAttachment, mechanism_of
from bpfree.pipeline.versions import Versions


class ScheduleSynchronous(DirectSchedule):
    """Direct feedback whose gradients are those of one process: each batch is learned from before the next begins.

    Stage s runs S - 1 - s micro-batches ahead of the last stage and so stores at most S - s of them; with equal forward
    and local passes of one unit each, a batch takes S - 1 + 2 M units. After ``step`` every ``.grad`` holds the sum
    (with ``scale_grads``, the mean) over the micro-batches: step an optimizer as after torch's schedules.

    Example::

        stage = PipelineStage(model[8:] if rank else model[:8], rank, 2, device)
        attachment = bpfree.pipeline.attach_stage(stage, bpfree.DFA(), seed=0)
        schedule = bpfree.pipeline.ScheduleSynchronous(attachment, 4, loss_fn=F.cross_entropy)
        schedule.step(x) if stage.is_first else schedule.step(target=y, losses=losses)
        optimizer.step()

    For DRTP give ``target`` to ``step`` in every process. The arguments are those of :class:`DirectSchedule`.
    """

    def __init__(self, attachment: StageAttachment, n_microbatches: int, loss_fn: Any, **options: Any) -> None:
        super().__init__(attachment, n_microbatches, loss_fn, staleness=0, **options)


class ScheduleAsynchronous(DirectSchedule):
    """Direct feedback without a pause between batches: the next forward pass begins before the last errors have come.

    The schedule owns the update: when a stage has learned from a whole batch, it steps ``optimizer`` and drops the
    gradients. ``step`` returns before that where errors are still to come; :meth:`flush` waits for them.

    Staleness: in stage s of S, the first S - 1 - s micro-batches of a batch are forwarded before the update of the
    batch before. So a forward pass misses at most one update if M >= S - 1, and never more than ``staleness``: the
    stage waits rather than run further ahead. The last stage misses none. Every gradient is exact for the weights that
    its own forward pass used: weights that a graph still needs are copied before they are updated.

    Args:
        attachment: The return value of :func:`bpfree.pipeline.attach_stage`.
        n_microbatches: M, the number of parts into which a batch is split.
        loss_fn: As for :class:`DirectSchedule`.
        optimizer: Of this stage's parameters; for ``bpfree.DKP`` also of ``attachment.parameters()``.
        staleness: The number of updates that a forward pass may miss, at least 0.
        options: As for :class:`DirectSchedule`.

    Raises:
        OptionError: ``staleness`` is negative.
    """

    def __init__(
        self,
        attachment: StageAttachment,
        n_microbatches: int,
        loss_fn: Any,
        *,
        optimizer: torch.optim.Optimizer,
        staleness: int = 1,
        **options: Any,
    ) -> None:
        if staleness < 0:
            raise OptionError(f"staleness={staleness}: a number of updates, 0 for none.")
        super().__init__(attachment, n_microbatches, loss_fn, staleness=staleness, **options)
        self._optimizer = optimizer
        self._versions = Versions(attachment.stage.submod)

    def flush(self) -> None:
        """Learn from every batch that was given, and update; call it in all processes.

        Before saving a checkpoint or measuring the model, and at the end of training.
        """
        with self._whole_or_broken():
            self._learn_until(self._forwarded)

    def _forward_context(self) -> AbstractContextManager[Any]:
        stack, alternation = ExitStack(), mechanism_of(self.attachment).alternation
        if self._ahead:
            stack.enter_context(self._versions.recorded())
        if alternation is not None:
            # A step is a batch, and the optimizer has not stepped for all batches before this one.
            behind = self._forwarded // self._n_microbatches - self._learned // self._n_microbatches
            stack.enter_context(alternation.held(alternation.ahead(behind)))
        return stack

    def _learned_batch(self) -> None:
        super()._learned_batch()
        self._versions.keep()
        self._optimizer.step()
        self._optimizer.zero_grad()
        alternation = mechanism_of(self.attachment).alternation
        if alternation is not None:
            alternation.move_on()
        # A step within the user's autocast context would go on with the weights that were converted before it.
        torch.clear_autocast_cache()
