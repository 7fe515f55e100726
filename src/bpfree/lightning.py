"""A Lightning callback that lets a LightningModule learn by a rule.

Example::

    from bpfree.lightning import LearningRule

    trainer = lightning.Trainer(callbacks=[LearningRule(bpfree.DFA(), alignment_every=100)])
    trainer.fit(module)

Needs ``pip install 'bpfree[lightning]'``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bpfree.alignment import alignment
from bpfree.attachment import Attachment
from bpfree.errors import LoopError, OptionError, StateError, nearest
from bpfree.feedback_steps import add_to_optimizers
from bpfree.mechanisms.base import Rule
from bpfree.rerun.snapshot import preserved
from bpfree.rule_keeper import RuleKeeper, check_alignment_every, missing_package

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
    from lightning.pytorch.trainer.states import TrainerFn
except ImportError as error:
    raise missing_package(error, "lightning") from None


class LearningRule(Callback):
    """Attaches a rule when ``fit`` begins, and takes it off when ``fit`` ends.

    The feedback is part of the Trainer's checkpoints, as this callback's state: a resumed run continues bit for bit,
    and the module's own ``state_dict`` keeps its keys. Parameters of the rule (Kolen-Pollack's B, those of
    :class:`bpfree.DKP`) that no optimizer of ``configure_optimizers`` has go into the group of their W, or into the
    first one without weight decay: clipping, accumulation and schedules then hold for them too. A second ``fit``
    continues with the feedback of the first. ``validate``, ``test`` and ``predict`` need no rule and get none.

    Args:
        rule: The learning rule, for example ``bpfree.DFA()``.
        model: The name of the submodule that learns. None: the module's only child with parameters; if there are
            several, the LightningModule itself, whose ``forward`` must then be called (``self(x)``), and not under DDP.
        targets: For rules that learn from targets (:class:`bpfree.DRTP`): gives them from a batch, for example
            ``lambda batch: batch[1]``, shaped as :meth:`bpfree.Attachment.targets` says.
        alignment_every: After how many optimizer steps the cosine of the rule's signals and backpropagation's is
            measured on the batch at hand (:func:`bpfree.alignment`) and given to every logger, as ``alignment/TAP``. 0:
            never. ``training_step`` runs for it once more, forward and backward twice; its calls of ``log`` are not
            heard, and its metrics and random numbers are put back: no number of the training changes.
        **options: Those of :func:`bpfree.attach`: ``taps``, ``error_at``, ``seed``, ``streaming`` and so on.

    Attributes:
        attachment: The attachment; the last one when ``fit`` has ended. None before the first ``fit``.

    Raises:
        OptionError: An option means nothing. In ``fit``: it is not clear which submodule learns.
        LoopError: In ``fit``: a strategy wraps the LightningModule that itself has the rule; alignment would step an
            optimizer.
        StateError: In ``fit(ckpt_path=...)``: the checkpoint was written without this callback, or by another rule.
        BpfreeError: What :func:`bpfree.attach` raises, in ``fit``.
    """

    def __init__(
        self,
        rule: Rule,
        *,
        model: str | None = None,
        targets: Callable[[Any], Tensor | Mapping[str, Tensor]] | None = None,
        alignment_every: int = 0,
        **options: Any,
    ) -> None:
        check_alignment_every(alignment_every)
        self._keeper = RuleKeeper(rule, options)
        self._model, self._targets = model, targets
        self._every, self._measured = alignment_every, -1

    @property
    def attachment(self) -> Attachment | None:
        """The attachment; the last one when ``fit`` has ended."""
        return self._keeper.attachment

    @property
    def state_key(self) -> str:
        """The key of the state in a checkpoint: another one for each submodule that has a rule."""
        return self._generate_state_key(model=self._model)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Attach for ``fit``, if the model is there; it may be made later, in the module's own hooks."""
        if stage == "fit" and self._has_model(pl_module):
            self._keeper.attach(self._learner(pl_module))

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the feedback to the model's device, and give an optimizer what it is to step."""
        attachment = self._keeper.attach(self._learner(pl_module))
        if attachment.model is pl_module and trainer.strategy.model is not pl_module:
            raise LoopError(
                f"the rule is on the LightningModule itself, and {type(trainer.strategy).__name__} runs its "
                "training_step in the place of its forward. Put the layers into one submodule (self.net = ...), or "
                "name the one that learns, LearningRule(..., model='net')."
            )
        if self._every and not pl_module.automatic_optimization:
            raise LoopError(
                "alignment_every runs training_step once more, which steps the optimizers itself here. Leave it out, "
                "and call bpfree.alignment(callback.attachment, closure) in training_step."
            )
        attachment.to(pl_module.device)
        if any(True for _ in attachment.parameters()):
            add_to_optimizers(attachment, trainer.optimizers)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move the feedback once more: some strategies restore checkpoints late."""
        if self.attachment is not None:
            self.attachment.to(pl_module.device)
        self._measured = trainer.global_step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Give the rule its targets."""
        if self._targets is not None and self.attachment is not None:
            self.attachment.targets(self._targets(batch))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure alignment, if that many steps have been taken."""
        step = trainer.global_step
        if self._every and step != self._measured and step % self._every == 0:
            self._measured = step
            self._log_alignment(trainer, pl_module, batch, batch_idx)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Take the rule off: Lightning calls no ``teardown`` then."""
        self._keeper.detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the rule off."""
        if stage == "fit":
            self._keeper.detach()

    def state_dict(self) -> dict[str, Any]:
        """For checkpoints: the attachment's state."""
        return self._keeper.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """From a checkpoint."""
        self._keeper.load_state_dict(state_dict)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to continue a run whose feedback is not in the checkpoint."""
        states = checkpoint.get("callbacks", {})
        if trainer.state.fn == TrainerFn.FITTING and self.state_key not in states:
            raise StateError(
                f"the checkpoint has no state of {self.state_key}: it was written without this callback (it has: "
                f"{', '.join(map(str, states)) or 'none'}), so this rule's feedback is not in it. To begin a run with "
                'its weights, load them (module.load_state_dict(torch.load(path)["state_dict"])) and call fit without '
                "ckpt_path; to continue that run, leave the callback out or give it the same model=."
            )

    # -- which module learns -------------------------------------------------------------------------------------------

    def _has_model(self, pl_module: LightningModule) -> bool:
        if self._model is not None:
            return self._model in dict(pl_module.named_modules())
        return bool(_learners(pl_module))

    def _learner(self, pl_module: LightningModule) -> nn.Module:
        if self._model is not None:
            modules: dict[str, nn.Module] = dict(pl_module.named_modules())
            if self._model not in modules:
                raise OptionError(
                    f"model={self._model!r}: {type(pl_module).__name__} has no such submodule. "
                    f"{nearest(self._model, [name for name in modules if name])}"
                )
            return modules[self._model]
        learners = _learners(pl_module)
        if len(learners) == 1:
            return next(iter(learners.values()))
        if learners and type(pl_module).forward is not LightningModule.forward:
            return pl_module
        raise OptionError(
            f"{type(pl_module).__name__} has "
            + (f"several submodules that learn ({', '.join(learners)})" if learners else "no submodule that learns")
            + ", and no forward of its own: name the one that gets the rule, LearningRule(..., model='...')."
        )

    # -- alignment -----------------------------------------------------------------------------------------------------

    def _log_alignment(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        assert self.attachment is not None
        with _unheard(pl_module), trainer.precision_plugin.train_step_context():
            report = alignment(
                self.attachment, lambda: _loss_of(pl_module.training_step(batch, batch_idx)), jacobian=False
            )
        cosines = {f"alignment/{tap.name}": tap.cosine_mean for tap in report.taps}
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in cosines.items()})
        for logger in trainer.loggers:
            logger.log_metrics(cosines, step=trainer.global_step)


def _learners(pl_module: LightningModule) -> dict[str, nn.Module]:
    """The children that have parameters, by name."""
    return {name: child for name, child in pl_module.named_children() if any(True for _ in child.parameters())}


def _loss_of(output: Any) -> Tensor:
    """The loss in what ``training_step`` returns, as Lightning finds it there."""
    loss = output["loss"] if isinstance(output, Mapping) else output
    if not isinstance(loss, Tensor):  # None skips a batch
        raise LoopError("training_step returned no loss for a batch that alignment was to be measured on.")
    return loss


@contextmanager
def _unheard(pl_module: LightningModule) -> Generator[None]:
    """Within this context a training step logs nothing and moves no metric."""
    names = ("log", "log_dict")
    with ExitStack() as stack:
        stack.enter_context(preserved(*pl_module.children()))
        for name in names:
            object.__setattr__(pl_module, name, lambda *_, **__: None)
        try:
            yield
        finally:
            for name in names:
                object.__delattr__(pl_module, name)
