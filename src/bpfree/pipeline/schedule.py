"""The schedules of direct rules, in the place of torch's ``ScheduleGPipe`` and ``Schedule1F1B``.

Micro-batches flow forward; the last stage's error goes to all stages at once; no activation's gradient is ever sent.
All use of torch's pipelining internals is in this file.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

from bpfree.errors import BpfreeError, OptionError, StageError
from bpfree.mechanisms.direct.rule import DirectRule
from bpfree.mechanisms.learned.from_forward import ForwardLearnedMechanism
from bpfree.mechanisms.learned.stage_estimate import StageEstimate
from bpfree.pipeline.agreement import Agreement
from bpfree.pipeline.built import built_with, require_alike
from bpfree.pipeline.channel import Arrival, Channel
from bpfree.pipeline.estimates import Estimates
from bpfree.pipeline.order import ahead, due
from bpfree.pipeline.sizes import Sizes
from bpfree.pipeline.stage import StageAttachment, mechanism_of
from bpfree.pipeline.together import agreed, gathered
from bpfree.rerun.snapshot import preserved


@dataclass
class _Waiting:
    """A micro-batch that was forwarded and not yet learned from.

    Attributes:
        root: Where its backward pass starts: the loss in the last stage, elsewhere what stands for the output.
        error: The root's gradient, to come; None for the loss.
        sends: The running sends of its activations and tangents, and the tensors that they are sent from.
        estimate: Its estimating pass, and the output's tangent, to come; None if there was no such pass.
    """

    root: Tensor
    error: Arrival | Tensor | None
    sends: list[tuple[Any, Any]]
    estimate: tuple[StageEstimate, Arrival | Tensor] | None = None


class DirectSchedule(PipelineScheduleSingle):
    """The base of the two schedules: ``step(*inputs, target=, losses=)`` as in torch's schedules, and ``eval``.

    ``sent_activation_bytes``, ``sent_error_bytes`` and ``sent_estimate_bytes`` count the bytes that this stage has
    sent.

    Args:
        attachment: The return value of :func:`bpfree.pipeline.attach_stage`.
        n_microbatches: M, the number of parts into which a batch is split. All batches have one size, a multiple of M.
        loss_fn: Maps the last stage's output and the target of a micro-batch to its loss; given in every process.
        staleness: The number of updates that a forward pass may miss.
        options: ``args_chunk_spec``, ``kwargs_chunk_spec``, ``output_merge_spec`` and ``scale_grads``, as torch's
            schedules have them: with ``scale_grads=True``, the default, gradients are divided by M, which is right for
            a mean loss.

    Raises:
        OptionError: Without ``loss_fn``.
        StageError: In the first step, in every process: the processes were not built alike, or a stage cannot run on
            the output of the one before. In a step: a batch of another size; an earlier step failed and left unfinished
            transfers; another process evaluates while this one trains.
    """

    def __init__(
        self, attachment: StageAttachment, n_microbatches: int, loss_fn: Any, *, staleness: int, **options: Any
    ) -> None:
        if loss_fn is None:
            raise OptionError("loss_fn=None: a schedule trains. Give the loss in every process.")
        stage = attachment.stage
        super().__init__(stage, n_microbatches, loss_fn=loss_fn, **options)
        self.attachment = attachment
        self.sent_activation_bytes = 0
        self._staleness = staleness
        self._batches = self._forwarded = self._learned = 0
        self._waiting: deque[_Waiting] = deque()
        self._agreement: Agreement | None = None
        self._channel: Channel | None = None
        self._estimates: Estimates | None = None
        self._sizes = Sizes(n_microbatches)
        self._broken = False
        mechanism = mechanism_of(attachment)
        self._observes = isinstance(mechanism, ForwardLearnedMechanism)
        self._blind = not self._observes and (stage.num_stages == 1 or _is_blind(mechanism.rule))
        # A rule that needs no error learns at once.
        last = stage.is_last or self._blind
        self._ahead = 0 if last else ahead(stage.stage_index, stage.num_stages)

    @property
    def sent_error_bytes(self) -> int:
        """The bytes of errors that this stage has sent, summed over all receivers."""
        return self._channel.sent_bytes if self._channel else 0

    @property
    def sent_estimate_bytes(self) -> int:
        """Return the bytes that this stage has sent for estimating passes, tangents and what answers to them."""
        return self._estimates.sent_bytes if self._estimates else 0

    # -- one batch -------------------------------------------------------------------------------------------------

    def _step_microbatches(
        self,
        arg_mbs: list[Any] | None = None,
        kwarg_mbs: list[Any] | None = None,
        target_mbs: list[Any] | None = None,
        losses: list[Any] | None = None,
        return_outputs: bool = True,
        loss_kwargs: dict[str, Any] | None = None,
    ) -> None:
        """Forward all micro-batches, and learn from those that are due."""
        arg_mbs, kwarg_mbs = self._check_inputs(arg_mbs, kwarg_mbs, target_mbs, losses)
        with self._whole_or_broken():
            check = partial(self._sizes.check, list(zip(arg_mbs, kwarg_mbs, strict=True)), target_mbs)
            if self._agreement is None:
                agreed(check, StageError, self._stage.group)
                self._prepare(arg_mbs[0], kwarg_mbs[0])
            else:
                check()
            self._batches += 1
            self._run_batch(arg_mbs, kwarg_mbs, target_mbs, loss_kwargs)
            if not return_outputs:
                self._stage.output_chunks.clear()
            self._update_losses(self._stage, losses)  # type: ignore[no-untyped-call]

    @contextmanager
    def _whole_or_broken(self) -> Generator[None]:
        """Mark the schedule as broken if anything fails within: the batch of unfinished transfers is not known then."""
        if self._broken:
            raise StageError(
                "an earlier step of this schedule failed, and what it sent may still be under way: a batch behind that "
                "would get another one's numbers. Start all processes again, from the last checkpoint."
            )
        self._broken = True
        try:
            yield
        except RuntimeError as failure:
            ours = failure.__cause__  # torch's pipelining wraps what a forward pass raises
            if isinstance(ours, BpfreeError):
                raise ours from ours.__cause__
            raise
        self._broken = False

    def _run_batch(
        self, arg_mbs: list[Any], kwarg_mbs: list[Any], target_mbs: list[Any] | None, loss_kwargs: dict[str, Any] | None
    ) -> None:
        # What a stage receives wants no gradient: nobody would take it.
        self._stage.has_backward = False
        coming = self._receive(0, ahead=0)
        for number in range(self._n_microbatches):
            for work in coming:
                work.wait()
            # The next one travels while this one is computed.
            coming = self._receive(number + 1, ahead=1)
            self._forward(number, arg_mbs[number], kwarg_mbs[number], target_mbs, loss_kwargs)
            if self._has_backward:
                self._learn_until(due(self._forwarded, self._ahead, self._n_microbatches, self._staleness))
        if self._channel is not None:
            self._channel.sent()

    def _forward(
        self, number: int, args: Any, kwargs: Any, targets: Sequence[Any] | None, loss_kwargs: dict[str, Any] | None
    ) -> None:
        stage, trains = self._stage, self._has_backward
        if self._channel is not None and trains and number == 0:
            self._channel.begin(self._batches)
        if targets is not None and trains:
            self.attachment.targets(targets[number])
        with self._forward_context() if trains else torch.no_grad():
            output = stage.forward_one_chunk(number, args, kwargs)
            if stage.is_last and targets is not None:
                self._maybe_compute_loss(stage, output, targets, number, loss_kwargs)  # type: ignore[no-untyped-call]
        sends = self._send(number)
        # The graph, and nothing else, keeps what the backward pass needs.
        stage.fwd_cache.pop(number)
        if not trains:
            _finish(sends)
            return
        found = self._estimates.run() if self._estimates is not None else None
        waiting = self._left(sends)
        if found is not None:
            estimate, change, tangents = found
            waiting.estimate = estimate, change
            waiting.sends += tangents
        self._forwarded += 1
        self._waiting.append(waiting)

    def _left(self, sends: list[tuple[Any, Any]]) -> _Waiting:
        if self._stage.is_last:
            if len(self._internal_losses) == 0:
                raise OptionError("step() has no target: the last stage needs one for its loss (target=).")
            return _Waiting(self._internal_losses[-1], None, sends)
        root = self.attachment.take_ticket()
        error = self._channel.expect() if self._channel is not None else torch.zeros_like(root)
        return _Waiting(root, error, sends)

    def _forward_context(self) -> AbstractContextManager[Any]:
        """Return the context in which a training forward pass runs."""
        return nullcontext()

    def _learn_until(self, count: int) -> None:
        while self._learned < count:
            self._learn()
            self._learned += 1
            if self._learned % self._n_microbatches == 0:
                self._learned_batch()

    def _learn(self) -> None:
        one = self._waiting.popleft()
        if one.estimate is not None and self._estimates is not None:
            estimate, change = one.estimate
            self._estimates.complete(estimate, change.wait() if isinstance(change, Arrival) else change)
        error = one.error.wait() if isinstance(one.error, Arrival) else one.error
        torch.autograd.backward(one.root, error)
        # Errors come after their activations have arrived, so there is nothing to wait for.
        _finish(one.sends)

    def _learned_batch(self) -> None:
        """Scale what a whole batch has left in ``.grad``."""
        if self.scale_grads:
            self._stage.scale_grads(self._n_microbatches)
            for parameter in self.attachment.parameters():
                if parameter.grad is not None:
                    parameter.grad.div_(self._n_microbatches)

    # -- what travels ----------------------------------------------------------------------------------------------

    def _receive(self, number: int, *, ahead: int) -> list[Any]:
        """Start to receive a micro-batch, ``ahead`` of the next one to be forwarded."""
        if number == self._n_microbatches:
            return []
        # A new buffer: the last one may be part of a graph that waits for its error.
        for info in self._stage.args_recv_info[number]:
            if info.buffer is not None:
                info.buffer = torch.empty_like(info.buffer)
        works = _started(self._stage.get_fwd_recv_ops(number))
        if self._estimates is not None and self._has_backward:
            self._estimates.receive(ahead)
        return works

    def _send(self, number: int) -> list[tuple[Any, Any]]:
        ops = self._stage.get_fwd_send_ops(number)
        self.sent_activation_bytes += sum(op.tensor.numel() * op.tensor.element_size() for op in ops)
        return list(zip(_started(ops), [op.tensor for op in ops], strict=True))

    def _prepare(self, args: Any, kwargs: Any) -> None:
        """Find out, before the first batch, what travels between the stages and what they must agree on."""
        stage = self._stage
        own = built_with(
            self.attachment,
            schedule=type(self).__name__,
            n_microbatches=self._n_microbatches,
            staleness=self._staleness,
            scale_grads=self.scale_grads,
            call="step" if self._has_backward else "eval",
        )
        require_alike(gathered(own, stage.group))
        agreement = Agreement.reach(self.attachment, args, kwargs)
        trains, self._has_backward = self._has_backward, False
        try:
            with preserved(stage.submod), torch.no_grad():
                self._initialize_stage(args, kwargs)  # type: ignore[no-untyped-call]
        finally:
            self._has_backward = trains
        agreement.settle(self.attachment)
        self._agreement = agreement
        if not self._blind:
            self._channel = Channel(self.attachment.stage, self._agreement)
            if stage.is_last:
                self.attachment.tell(self._channel.send)
            if self._observes:
                self._estimates = Estimates(self.attachment, agreement, self._channel, args, kwargs)


def _is_blind(rule: DirectRule) -> bool:
    """Return whether all taps' signals can be made without the error: the rule says so, or sends none."""
    return not rule.needs_error or not rule.sends_signals


def _started(ops: list[dist.P2POp]) -> list[Any]:
    return [op.op(op.tensor, op.peer, group=op.group) for op in ops]


def _finish(sends: list[tuple[Any, Any]]) -> None:
    for work, _ in sends:
        work.wait()
