"""A direct rule on one stage of a pipeline: the same hooks and feedback as on a whole model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.pipelining import PipelineStage
from torch.nn.parallel import DistributedDataParallel

from bpfree.attachment import Attachment
from bpfree.checks import check_alternate, check_attachable, check_options, check_within, error_modules
from bpfree.errors import OptionError, StageError, TapSelectionError
from bpfree.mechanisms.base import Mechanism, Rule
from bpfree.mechanisms.direct.alternation import AlternateOrder
from bpfree.mechanisms.direct.final_activation import final_activation
from bpfree.mechanisms.direct.mechanism import DirectMechanism
from bpfree.mechanisms.direct.rule import DirectRule
from bpfree.mechanisms.layerwise.rule import LayerwiseRule
from bpfree.mechanisms.learned.calibrated import CalibratedMechanism
from bpfree.mechanisms.learned.from_forward import ForwardLearnedMechanism
from bpfree.mechanisms.learned.observing import ObservingMechanism
from bpfree.plan import Plan
from bpfree.registry import make_room
from bpfree.segments import Reach
from bpfree.taps import TapChoice, select_taps, tensor_keys

_NO_ERROR = "sends errors back layer by layer, or none at all; no stage of a pipeline sees that"


def attach_stage(
    stage: PipelineStage,
    rule: Rule,
    *,
    taps: TapChoice = None,
    error_at: str | None = None,
    prefix: str = "",
    batch_dims: int | None = None,
    window: int = 1,
    alternate: int = 1,
    alternate_order: AlternateOrder = "cyclic",
    within: LayerwiseRule | None = None,
    seed: int = 0,
) -> StageAttachment:
    """Let the module of ``stage`` learn by ``rule``, as a part of the model that all stages are together.

    Call it in every process with the same arguments; a schedule of ``bpfree.pipeline`` does the rest. The feedback
    is that of :func:`bpfree.attach` on the whole model, number by number, if the taps keep their names: they do in a
    slice of an ``nn.Sequential`` (``model[4:8]``), and ``prefix`` restores them elsewhere.

    Args:
        stage: The stage, on this process. Every stage but the last ends in a tap.
        rule: A direct rule: ``DFA``, ``DRTP``, ``DKP``, ``Shallow``, ``FDFA``, ``GrAPE`` without calibrating passes,
            ``LMS``, or one of your own.
        taps: As for :func:`bpfree.attach`, of this stage's module. The last stage may have none.
        error_at: As for :func:`bpfree.attach`; a module of the last stage, with no meaning in the others.
        prefix: The name of the stage's module in the whole model, for example ``"encoder"``.
        batch_dims: As for :func:`bpfree.attach`. None: found out over the taps of all stages.
        window: As for :func:`bpfree.attach`, within the stage: a window that would cross its end stops at the last tap,
            whose signal the layers below learn from. Nothing but errors comes back.
        alternate: As for :func:`bpfree.attach`; taps are counted over all stages. The tap at which a stage ends is cut
            in every step besides.
        alternate_order: As for :func:`bpfree.attach`.
        within: As for :func:`bpfree.attach`. The optimizer of a stage needs ``attachment.parameters()`` too.
        seed: As for :func:`bpfree.attach`.

    Raises:
        OptionError: The rule needs more than the error, or an option means nothing or does not go with another.
        StageError: A stage that is not the last has no tap, or DistributedDataParallel is around the stage.
        TapSelectionError: ``taps`` matches nothing.
        ErrorPlacementError: The last stage has no module ``error_at``.
        AlreadyAttachedError: The module or a part of it has a rule already.
        AlreadyShardedError: ``fully_shard`` has it already.
    """
    if not isinstance(rule, DirectRule):
        raise _unfit(rule, _NO_ERROR)
    model: nn.Module = stage.submod
    check_options(rule, window, streaming=False, threads=1)
    check_alternate(rule, alternate, alternate_order, window)
    check_attachable(model, seed, batch_dims)
    _require_no_ddp(stage)
    place = None if stage.is_last else Elsewhere(_described(stage))
    chosen = _taps(stage, taps, prefix)
    plan = Plan(
        model=model,
        taps=chosen,
        explicit=taps is not None,
        errors={(error_at or ""): next(iter(error_modules(model, _within(error_at, prefix)).values()))}
        if place is None
        else {"(last stage)": place},
        seed=seed,
        batch_dims=batch_dims,
        window=window,
        alternate=alternate,
        alternate_order=alternate_order,
        is_stage=True,
        prefix=prefix,
        placed=error_at is not None,
        tensor_keys=tensor_keys(taps, chosen, model, prefix),
    )
    mechanism = rule.mechanism(plan)
    if not isinstance(mechanism, DirectMechanism):
        raise _unfit(rule, _NO_ERROR)
    if isinstance(mechanism, CalibratedMechanism):
        raise _unfit(
            rule, "sends a gradient through all layers in its calibrating passes: leave calibrate out in a pipeline"
        )
    if isinstance(mechanism, ObservingMechanism) and not isinstance(mechanism, ForwardLearnedMechanism):
        raise _unfit(
            rule, "makes its signals from the output's answer to perturbations, which only learned feedback awaits here"
        )
    check_within(rule, mechanism, within)
    make_room(plan)
    inner = None if within is None else within.mechanism(plan)
    return StageAttachment(rule, mechanism, stage, place, error_at, within=inner)


def _unfit(rule: Rule, why: str) -> OptionError:
    return OptionError(
        f"{rule} {why}. Pipelines take direct rules with feedback: bpfree.DFA(), bpfree.DRTP(), bpfree.DKP(), "
        "bpfree.FDFA(), bpfree.GrAPE(), bpfree.LMS(), and bpfree.Shallow()."
    )


def _taps(stage: PipelineStage, taps: TapChoice, prefix: str) -> dict[str, nn.Module]:
    try:
        found = select_taps(stage.submod, taps, prefix)
    except TapSelectionError:
        if not stage.is_last or stage.is_first:
            raise
        found = {}  # a head alone: it learns from its exact gradient
    if not found and (not stage.is_last or stage.is_first):
        raise StageError(
            f"{_described(stage)} has no tap, so nothing in it would learn. Name its taps (taps=...), or put "
            "bpfree.Tap() modules into it after its functional non-linearities."
        )
    return found


def _require_no_ddp(stage: PipelineStage) -> None:
    if any(isinstance(module, DistributedDataParallel) for module in stage.submod.modules()):
        raise StageError(
            f"DistributedDataParallel is around {_described(stage)}: torch's pipelining switches it off while "
            "micro-batches run, and gradients would never be averaged. Take the bare module, and average the gradients "
            "over the replicas yourself, between the schedule's step() and the optimizer's."
        )


def _within(name: str | None, prefix: str) -> str | None:
    return name.removeprefix(f"{prefix}.") if name and prefix else name


def _described(stage: PipelineStage) -> str:
    return f"stage {stage.stage_index} of {stage.num_stages}"


class StageAttachment(Attachment):
    """A direct rule on one stage: made by :func:`attach_stage`. Everything else is as for :class:`bpfree.Attachment`.

    Attributes:
        stage: The stage.
        error_at: The error's place as it was given in this process.
    """

    def __init__(
        self,
        rule: DirectRule,
        mechanism: Mechanism,
        stage: PipelineStage,
        place: Elsewhere | None,
        error_at: str | None,
        *,
        within: Mechanism | None = None,
    ) -> None:
        self._place = (place,)  # in a tuple: it has no state to be saved
        if place is not None:  # before the mechanism's own hook says that the pass is over
            place.install(mechanism)
        super().__init__(rule, mechanism, within=within)
        self.stage = stage
        self.error_at = error_at
        self._told: Callable[[Tensor], None] | None = None
        if place is None:  # behind the mechanism's own hook: this is what the loss's gradient arrives at
            self._hook = mechanism.plan.error_module.register_forward_hook(self._listen)

    def expect(self, error: Tensor) -> None:
        """Take note of the error's shape and dtype, in a stage before the last."""
        (place,) = self._place
        if place is not None:
            place.like = error

    def tell(self, told: Callable[[Tensor], None]) -> None:
        """Call ``told`` with dL/do as soon as it is there, in the last stage."""
        self._told = told

    def take_ticket(self) -> Tensor:
        """Return, in a stage before the last, the tensor whose gradient is the error of the last forward pass.

        Raises:
            StageError: The pass was plain autograd.
        """
        (place,) = self._place
        assert place is not None
        return place.take()

    def _listen(self, module: nn.Module, args: Any, output: Any) -> None:
        if self._told is not None and isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(self._teller(output.detach()))  # type: ignore[no-untyped-call]

    def _teller(self, output: Tensor) -> Callable[[Tensor], None]:
        """Return what tells the gradient at this output; where a softmax or sigmoid made it, the one before that."""
        told, mechanism = self._told, mechanism_of(self)
        assert told is not None
        final = final_activation(mechanism, mechanism.plan.error_name, output)
        return told if final is None else lambda error: told(final.error_before(error, output))

    def detach(self) -> None:
        """Take every hook out."""
        (place,) = self._place
        if place is None:
            self._hook.remove()
        else:
            place.remove()
        super().detach()


class Elsewhere(nn.Module):
    """The error's place for a stage before the last one: the error is taken in another process.

    At the end of the stage's forward pass it returns a stand-in of the error's shape, which the mechanism uses as the
    output. The gradient of the result is the error, and it runs the stage's segments.

    Args:
        stage: The name of the stage in messages.
    """

    def __init__(self, stage: str) -> None:
        super().__init__()
        self.like: Tensor | None = None
        self._stage = stage
        self._ticket: Tensor | None = None

    def install(self, mechanism: Mechanism) -> None:
        """Put the hooks in at the beginning and the end of the mechanism's model."""
        model = mechanism.plan.model
        begin = model.register_forward_pre_hook(partial(self._begin, mechanism))
        self._handles = (begin, model.register_forward_hook(partial(self._end, mechanism)))

    def remove(self) -> None:
        """Take them out."""
        for handle in self._handles:
            handle.remove()
        self._ticket = None

    def take(self) -> Tensor:
        """Return the result of the last forward pass, which is then forgotten."""
        ticket, self._ticket = self._ticket, None
        if ticket is None:
            raise StageError(f"the rule of {self._stage} is paused: a schedule's step() cannot train it.")
        return ticket

    def forward(self) -> Tensor:
        """Return zeros of the error's shape, without memory, that require a gradient."""
        stand_in: Tensor = _StandIn.apply(self.like, torch.empty(0, requires_grad=True))  # type: ignore[no-untyped-call]
        return stand_in

    def _begin(self, mechanism: Mechanism, model: nn.Module, args: Any) -> None:
        if mechanism.active and self.like is None:
            raise StageError(
                f"{self._stage} was run with gradients, and does not know yet what an error looks like. A schedule "
                "finds that out: call its step() or eval() first, in every process, or run the stage in "
                "torch.no_grad()."
            )

    def _end(self, mechanism: Mechanism, model: nn.Module, args: Any, output: Any) -> None:
        if not mechanism.active:
            return
        self._ticket = self()  # first: the mechanism knows then that the error's place was reached
        self._require_ends_in_tap(model, output)

    def _require_ends_in_tap(self, model: nn.Module, output: Any) -> None:
        outputs = output if isinstance(output, tuple | list) else (output,)
        open_ends = [one for one in outputs if isinstance(one, Tensor) and one.requires_grad]
        if not open_ends:
            return
        reached = {id(leaf) for one in open_ends for leaf in Reach.of(one).leaves}
        names = [name.rpartition(".")[0] or name for name, leaf in model.named_parameters() if id(leaf) in reached]
        if not names:  # a window's last tap hands on a leaf
            return
        raise StageError(
            f"{self._stage} does not end in a tap: no signal would reach its layers {', '.join(dict.fromkeys(names))} "
            "through its output. Split the model right behind a tap, or end the stage in a bpfree.Tap()."
        )


class _StandIn(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, like: Tensor, anchor: Tensor) -> Tensor:
        return like.view_as(like)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        return None, None


def mechanism_of(attachment: StageAttachment) -> DirectMechanism:
    """Return the mechanism, which is that of a direct rule."""
    mechanism = attachment.mechanism
    assert isinstance(mechanism, DirectMechanism)
    return mechanism
