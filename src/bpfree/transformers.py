"""A callback that lets a model learn by a rule under the Trainer of transformers.

Example::

    from bpfree.transformers import LearningRuleCallback

    rule = LearningRuleCallback(bpfree.DFA(), taps="blocks", alignment_every=100)
    transformers.Trainer(model, arguments, train_dataset=data, callbacks=[rule]).train()

Needs ``pip install 'bpfree[transformers]'``.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from bpfree.alignment import alignment
from bpfree.attachment import Attachment
from bpfree.errors import LoopError, StateError
from bpfree.feedback_steps import FeedbackOptimizer
from bpfree.mechanisms.base import Rule
from bpfree.rule_keeper import RuleKeeper, check_alignment_every, missing_package

try:
    from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
    from transformers.integrations.integration_utils import get_reporting_integration_callbacks
except ImportError as error:
    raise missing_package(error, "transformers") from None

FILE = "learning_rule.pt"
"""The file in a checkpoint's folder that holds the rule's state."""

_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel", "DeepSpeedEngine")
"""Classes that run a module which they hold, and that the Trainer itself puts around a model."""


class LearningRuleCallback(TrainerCallback):
    """Attaches a rule when training begins, and takes it off when it ends.

    The rule's state lies in each checkpoint's folder, in ``learning_rule.pt``; a run that is resumed
    (``train(resume_from_checkpoint=...)``) continues bit for bit. Parameters of the rule (Kolen-Pollack's B, those of
    :class:`bpfree.DKP`) are stepped beside the model's, by an optimizer of the same kind with the options of their W's
    group, and from W's gradients as they were clipped. Accumulation, clipping, autocast and fused optimizers work as
    they are; with several GPUs start one process for each (torchrun).

    Args:
        rule: The learning rule, for example ``bpfree.DFA()``.
        targets: For rules that learn from targets (:class:`bpfree.DRTP`): gives them from the inputs of the model, a
            dictionary, shaped as :meth:`bpfree.Attachment.targets` says.
        alignment_every: After how many optimizer steps the cosine of the rule's signals and backpropagation's is
            measured on the last batch (:func:`bpfree.alignment`), and given to what ``report_to`` names and to
            ``trainer.state.log_history``, as ``alignment/TAP``. 0: never; each measurement takes two passes. No number
            of the training changes.
        loss: Computes the loss for it: ``loss(model, inputs)``, one number. None: the model's own loss.
        **options: Those of :func:`bpfree.attach`: ``taps``, ``error_at``, ``seed``, ``streaming`` and so on. A model
            of transformers returns an object with its loss: ``error_at`` names its head, or ``taps="blocks"`` does.

    Attributes:
        attachment: The attachment; the last one when training has ended. None before it begins.

    Raises:
        OptionError: An option means nothing.
        LoopError: When training begins: the model is wrapped already; the Trainer would run replicas of it, or shards;
            its optimizer has no second of its kind for feedback that is stepped.
        StateError: When training continues: no checkpoint holds the rule's state.
        BpfreeError: What :func:`bpfree.attach` raises, when training begins.
    """

    def __init__(
        self,
        rule: Rule,
        *,
        targets: Callable[[dict[str, Any]], Tensor | Mapping[str, Tensor]] | None = None,
        alignment_every: int = 0,
        loss: Callable[[nn.Module, dict[str, Any]], Tensor] | None = None,
        **options: Any,
    ) -> None:
        check_alignment_every(alignment_every)
        self._keeper = RuleKeeper(rule, options)
        self._targets, self._every, self._loss = targets, alignment_every, loss
        self._feedback: FeedbackOptimizer | None = None
        self._inputs: dict[str, Any] = {}
        self._handles: list[RemovableHandle] = []
        self._reporters: list[TrainerCallback] = []

    @property
    def attachment(self) -> Attachment | None:
        """The attachment; the last one when training has ended."""
        return self._keeper.attachment

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach, and continue with a checkpoint's state if training does."""
        model, optimizer = kwargs["model"], kwargs["optimizer"]
        _require_plain(model, args)
        before = self._feedback if self.attachment is not None and self.attachment.model is model else None
        attachment = self._keeper.attach(model)
        try:
            attachment.to(next(model.parameters()).device)
            self._feedback = _feedback_optimizer(attachment, optimizer, before)
            if state.global_step:
                self._restore(_folders(args, state), model)
            self._watch_inputs(model)
        except BaseException:
            self._take_off()
            raise
        if self._every and not self._reporters:
            self._reporters = [kind() for kind in _loggers(args)]

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Step the feedback beside the model, unless that step was skipped (a scaled gradient was not finite)."""
        if self._feedback is not None and not getattr(kwargs["optimizer"], "step_was_skipped", False):
            self._feedback.step()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure alignment, if that many steps have been taken."""
        if self._every and state.global_step % self._every == 0:
            self._log_alignment(args, state, control, kwargs["model"])

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the rule's state into the checkpoint's folder."""
        folder = _folder(args, state)
        if args.should_save and folder.is_dir():  # elsewhere in a search of settings, whose runs are not resumed
            content = {
                "attachment": self._keeper.state_dict(),
                "optimizer": None if self._feedback is None else self._feedback.optimizer.state_dict(),
                "weights": _fingerprint(kwargs["model"]),
            }
            temporary = folder / f"{FILE}.part"
            torch.save(content, temporary)
            os.replace(temporary, folder / FILE)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the rule off."""
        self._take_off()
        for reporter in self._reporters:
            close = getattr(getattr(reporter, "tb_writer", None), "close", None)
            if close is not None:  # TensorBoard's alone; other loggers belong to the Trainer's own callbacks
                close()
        self._reporters, self._inputs = [], {}

    # -- state ---------------------------------------------------------------------------------------------------------

    def _restore(self, folders: list[Path], model: nn.Module) -> None:
        """Take the state of the checkpoint whose weights the model has.

        Raises:
            StateError: It is in none of these folders.
        """
        other: list[str] = []
        for folder in folders:
            if not (folder / FILE).is_file():
                continue
            content = torch.load(folder / FILE, map_location="cpu", weights_only=True)
            if content["weights"] != _fingerprint(model):
                other.append(str(folder))
                continue
            self._keeper.load_state_dict(content["attachment"])
            assert self.attachment is not None
            self.attachment.to(next(model.parameters()).device)
            if self._feedback is not None and content["optimizer"] is not None:
                self._feedback.optimizer.load_state_dict(content["optimizer"])
            return
        looked = ", ".join(map(str, folders))
        raise StateError(
            f"training continues from a checkpoint, and the rule's state ({FILE}) "
            + (f"in {', '.join(other)} belongs to other weights. " if other else f"is not in {looked}. ")
            + "If the checkpoint lies elsewhere, say so in TrainingArguments(resume_from_checkpoint=folder) too. If it "
            "was written without this callback, begin a run with its weights: model.from_pretrained(folder), and train "
            "without resume_from_checkpoint."
        )

    def _take_off(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._keeper.detach()

    # -- inputs and alignment ------------------------------------------------------------------------------------------

    def _watch_inputs(self, model: nn.Module) -> None:
        """Look at what the model is called with in training, where the rule or the measurement needs it."""
        if self._handles or (self._targets is None and not self._every):
            return

        def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not torch.is_grad_enabled() or not module.training:
                return
            self._inputs = dict(kwargs) if self._every else {}
            if self._targets is not None and self.attachment is not None:
                self.attachment.targets(self._targets(kwargs))

        self._handles.append(model.register_forward_pre_hook(look, prepend=True, with_kwargs=True))

    def _log_alignment(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module
    ) -> None:
        assert self.attachment is not None
        inputs = self._inputs
        report = alignment(self.attachment, lambda: self._loss_of(model, inputs), jacobian=False)
        cosines: dict[str, float] = {f"alignment/{tap.name}": tap.cosine_mean for tap in report.taps}
        state.log_history.append({**cosines, "epoch": state.epoch or 0.0, "step": state.global_step})
        for reporter in self._reporters:
            reporter.on_log(args, state, control, logs=dict(cosines), model=model)

    def _loss_of(self, model: nn.Module, inputs: dict[str, Any]) -> Tensor:
        if self._loss is not None:
            return self._loss(model, inputs)
        output = model(**inputs)
        loss = output.get("loss") if isinstance(output, Mapping) else output[0]
        if not isinstance(loss, Tensor) or loss.dim():
            raise LoopError(
                "alignment_every needs the loss of a batch, and the model returns none for the inputs "
                f"{', '.join(inputs)}: the Trainer computes it itself. Say how: LearningRuleCallback(..., loss=lambda "
                "model, inputs: ...)."
            )
        return loss


def _feedback_optimizer(
    attachment: Attachment, optimizer: Any, before: FeedbackOptimizer | None
) -> FeedbackOptimizer | None:
    """Make what steps the rule's parameters, if it has some, with the state of the one before."""
    if not any(True for _ in attachment.parameters()):
        return None
    # accelerate holds the optimizer inside one of its own.
    inner: Optimizer = getattr(optimizer, "optimizer", optimizer)
    made = FeedbackOptimizer(attachment, inner)
    if before is not None:
        made.optimizer.load_state_dict(before.optimizer.state_dict())
    return made


def _require_plain(model: nn.Module, args: TrainingArguments) -> None:
    """Raise LoopError for a model that is wrapped, or that the Trainer runs in a way no rule can follow."""
    kind = type(model).__name__
    if kind in _WRAPPERS:
        raise LoopError(
            f"the model is inside a {kind} already, and the Trainer wraps it by itself: give the Trainer the model "
            "inside (model.module). With FSDP or DeepSpeed, attach by hand: bpfree.attach(model, rule), then "
            "fully_shard."
        )
    if args.n_gpu > 1:
        raise LoopError(
            f"the Trainer would run replicas of the model on {args.n_gpu} GPUs (DataParallel), and replicas have no "
            "rule. Start one process for each GPU (torchrun --nproc-per-node=...), or show it one "
            "(CUDA_VISIBLE_DEVICES=0)."
        )
    if args.fsdp or args.deepspeed:
        raise LoopError(
            f"{'FSDP' if args.fsdp else 'DeepSpeed'} shards the model before callbacks see it, and a rule must see "
            "whole weights. Leave it out (DDP works), or write the loop by hand: bpfree.attach(model, rule), then "
            "fully_shard."
        )


def _folders(args: TrainingArguments, state: TrainerState) -> list[Path]:
    """Return the folders where the checkpoint to continue from may lie: ``train()`` does not tell its argument."""
    told = args.resume_from_checkpoint
    return [*([Path(told)] if told else []), _folder(args, state)]


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    """Return the folder where the Trainer writes the checkpoint of this step."""
    return Path(args.output_dir or "") / f"checkpoint-{state.global_step}"


def _loggers(args: TrainingArguments) -> list[type[TrainerCallback]]:
    """The callbacks of transformers that send numbers to what ``report_to`` names."""
    found: list[type[TrainerCallback]] = get_reporting_integration_callbacks(args.report_to)  # type: ignore[no-untyped-call]
    return found


def _fingerprint(model: nn.Module) -> str:
    """A hash of the first numbers of every weight: of one checkpoint and no other."""
    found = hashlib.sha256()
    for parameter in model.parameters():
        found.update(parameter.detach().flatten()[:16].double().cpu().numpy().tobytes())
    return found.hexdigest()
