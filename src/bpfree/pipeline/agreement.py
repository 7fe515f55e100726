"""The facts that stages must know of each other before they can learn, exchanged once, when the first batch comes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.distributed as dist
from torch import Tensor, nn

from bpfree.axes.channels import channel_axis
from bpfree.axes.layout import ERROR, lay_out, numbered, tapped
from bpfree.axes.place import Place
from bpfree.axes.sites import ErrorRows, Site
from bpfree.errors import ErrorPlacementError, StageError
from bpfree.feedback.options import Feedback
from bpfree.feedback.projection import Projection
from bpfree.forward_mode.hadamard import columns_of
from bpfree.mechanisms.autograd import mark
from bpfree.mechanisms.learned.mechanism import LearnedMechanism
from bpfree.pipeline.stage import StageAttachment, mechanism_of
from bpfree.pipeline.together import ranks_of
from bpfree.rerun.snapshot import preserved
from bpfree.segments import Reach
from bpfree.tap_values import put, take

Outline: TypeAlias = tuple[torch.Size, torch.dtype]
"""The shape and dtype of a tensor."""


@dataclass
class StageSurvey:
    """The survey of one stage on one micro-batch.

    Attributes:
        names: The tap modules that a forward pass reaches, one entry per call.
        shapes: The shapes of their outputs.
        error: The shape and dtype of the error; None in a stage before the last.
        channels: The axes of the taps' channels, by the names of calls; ``""`` is the error's.
        outputs: The shapes and dtypes of the tensors that the stage gives to the next one.
        ends: The calls of taps that hand on what the stage gives to the next one.
    """

    names: list[str] = field(default_factory=list)
    shapes: list[torch.Size] = field(default_factory=list)
    error: Outline | None = None
    channels: dict[str, int | None] = field(default_factory=dict)
    outputs: list[Outline] = field(default_factory=list)
    ends: frozenset[str] = frozenset()

    @classmethod
    def of(cls, attachment: StageAttachment, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> StageSurvey:
        """Run the stage once, without a trace."""
        plan = attachment.mechanism.plan
        survey, leaves = cls(), dict[Tensor, str]()
        handles = [
            module.register_forward_hook(partial(survey._tap, name, plan.tensor_keys.get(name), leaves))
            for name, module in plan.taps.items()
        ]
        if attachment.stage.is_last:
            handles.append(plan.error_module.register_forward_hook(survey._reach))
        try:
            # With graphs, cut as in a training pass: they show where the channels are.
            with preserved(plan.model, attachment), attachment.paused(), torch.enable_grad():
                given = plan.model(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        outputs = given if isinstance(given, tuple | list) else (given,)
        given = [output for output in outputs if isinstance(output, Tensor)]
        survey.outputs = [(output.shape, output.dtype) for output in given]
        if not attachment.stage.is_last:
            survey.ends = frozenset(leaves[leaf] for leaf in Reach.of(*given).leaves if leaf in leaves)
        return survey

    def _tap(self, name: str, key: Any, leaves: dict[Tensor, str], module: nn.Module, args: Any, output: Any) -> Any:
        if self.error is not None:
            return None
        tensor = take(output, key, name)
        self.names.append(name)
        self.shapes.append(tensor.shape)
        call = numbered(self.names)[-1]
        self.channels[call] = channel_axis(tensor)
        leaf = tensor.detach().requires_grad_()
        leaves[leaf], self._last = call, mark(leaf)
        return self._last if output is tensor else put(output, key, self._last)

    def _reach(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.error is not None or not isinstance(output, Tensor):
            return  # the first training pass says what is wrong
        self.error = (output.shape, output.dtype)
        self.channels[""] = channel_axis(output)
        if self.names and output is self._last:
            # A tap where the error is taken gets the error itself, and no feedback.
            self.names.pop()
            self.shapes.pop()

    def tapped(self) -> list[Place]:
        """Return the calls of taps."""
        return tapped(self.names, numbered(self.names), self.shapes, self.channels, {})

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_last"}


@dataclass(frozen=True)
class Agreement:
    """The conclusions from the surveys of all stages.

    Attributes:
        shape: The shape of the error of one micro-batch.
        dtype: Its dtype.
        rows: The axes of it that number rows.
        c: The count of numbers in one row of the error.
        widest: The coefficients of the widest tap of all stages.
        first: The number of taps in the stages before this process's.
        ends: The calls of taps at which its stage ends.
        sites: The taps of its stage.
        given: The shapes and dtypes of the tensors that the stage before gives to it; none in the first stage.
        outputs: Those of the tensors that it gives itself.
        width_elsewhere: The number of coefficients of the other stages' taps, calls of one module counted once.
        columns_elsewhere: The columns of perturbations of the taps in the stages before this process's, and behind it.
    """

    shape: torch.Size
    dtype: torch.dtype
    rows: ErrorRows
    c: int
    widest: int
    first: int = 0
    ends: frozenset[str] = frozenset()
    sites: Sequence[Site] = ()
    given: Sequence[Outline] = ()
    outputs: Sequence[Outline] = ()
    width_elsewhere: int = 0
    columns_elsewhere: tuple[int, int] = (0, 0)

    @classmethod
    def reach(cls, attachment: StageAttachment, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Agreement:
        """Run all stages in turn, each on what the one before gives; every process gets the same answer.

        Args:
            attachment: This process's stage.
            args: The first micro-batch, in the first stage.
            kwargs: This stage's own arguments by name.

        Raises:
            StageError: A stage cannot run on what the one before gives, or two taps share a name and so a matrix.
            ErrorPlacementError: The last stage did not reach the error's place with one tensor.
            TapShapeError: A tap does not share the error's batch dimensions.
        """
        stage, surveys = attachment.stage, list[StageSurvey]()
        for number, source in enumerate(ranks_of(stage)):
            told: list[Any] = [None]
            if number == stage.stage_index:
                told = [_tried(attachment, _stand_ins(surveys[-1], stage.device) if surveys else args, kwargs)]
            dist.broadcast_object_list(told, src=source, group=stage.group)
            if isinstance(told[0], str):
                raise StageError(_cannot_run(number, surveys, told[0]))
            surveys.append(told[0])
        return cls.of(surveys, attachment)

    @classmethod
    def of(cls, surveys: Sequence[StageSurvey], attachment: StageAttachment) -> Agreement:
        """Draw the conclusions from the surveys, one per stage."""
        feedback = attachment.mechanism.feedback
        if isinstance(feedback, Projection) and not feedback.feedback.shared:
            _require_own_names(surveys)
        error = surveys[-1].error
        if error is None:
            raise ErrorPlacementError(
                "the last stage gave no tensor where the error is taken. Name a module of it whose output is one "
                "(error_at=...), through which every pass runs."
            )
        shape, dtype = error
        place = Place(ERROR, ERROR, tuple(shape), surveys[-1].channels.get(""))
        taps = [tap for survey in surveys for tap in survey.tapped()]
        rows, sites = lay_out(attachment.mechanism.plan, place, taps, set())
        of_rule = feedback.feedback if isinstance(feedback, Projection) else Feedback()
        sizes = [of_rule.form(site).size for site in sites]
        own = attachment.stage.stage_index
        first = sum(len(survey.names) for survey in surveys[:own])
        last = first + len(surveys[own].names)
        widths = {site.module: size for site, size in zip(sites, sizes, strict=True)}
        elsewhere = widths.keys() - {site.module for site in sites[first:last]}
        return cls(
            shape,
            dtype,
            rows,
            rows.features(shape),
            widest=max(sizes, default=0),
            first=first,
            ends=surveys[own].ends,
            sites=sites[first:last],
            given=surveys[own - 1].outputs if own else (),
            outputs=surveys[own].outputs,
            width_elsewhere=sum(widths[name] for name in elsewhere),
            columns_elsewhere=(sum(map(columns_of, sizes[:first])), sum(map(columns_of, sizes[last:]))),
        )

    def settle(self, attachment: StageAttachment) -> None:
        """Tell one stage."""
        mechanism = mechanism_of(attachment)
        if mechanism.plan.batch_dims is None:
            mechanism.plan = replace(mechanism.plan, sample_axes={ERROR: self.rows.axes})
        if isinstance(mechanism.feedback, Projection):
            mechanism.feedback.expect(self.widest, self.c)
        if isinstance(mechanism, LearnedMechanism):
            mechanism.width_elsewhere = self.width_elsewhere
            mechanism.columns_elsewhere = self.columns_elsewhere
        if mechanism.alternation is not None:
            mechanism.alternation.place(self.first, self.ends)
        attachment.expect(self.stand_in(attachment.stage.device))

    def stand_in(self, device: torch.device) -> Tensor:
        """Return zeros of the error's shape that take no memory."""
        return torch.zeros((), dtype=self.dtype, device=device).expand(self.shape)


def _tried(attachment: StageAttachment, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> StageSurvey | str:
    """Return the survey of the stage, or the text of the error that it raises."""
    try:
        return StageSurvey.of(attachment, args, kwargs)
    except Exception as failure:  # whatever it is, the others must hear of it
        return f"{type(failure).__name__}: {failure}"


def _stand_ins(before: StageSurvey, device: torch.device) -> tuple[Tensor, ...]:
    return tuple(torch.zeros(shape, dtype=dtype, device=device) for shape, dtype in before.outputs)


def _cannot_run(number: int, surveys: Sequence[StageSurvey], failure: str) -> str:
    if not surveys:
        return f"stage 0 cannot run on its first micro-batch. {failure}"
    given = ", ".join(f"a tensor of shape {tuple(shape)} and {dtype}" for shape, dtype in surveys[-1].outputs)
    return (
        f"stage {number} cannot run on what stage {number - 1} gives, {given or 'no tensor'}. {failure} Split the "
        "model between layers that follow each other, and give all stages one precision."
    )


def _require_own_names(surveys: Sequence[StageSurvey]) -> None:
    holders = Counter(name for survey in surveys for name in set(survey.names))
    twice = [name for name, count in holders.items() if count > 1]
    if twice:
        raise StageError(
            f"several stages have a tap {twice[0]!r}, and would draw the same matrix for it. Keep the names of the "
            "whole model (slice an nn.Sequential: model[4:8]), or give attach_stage a prefix= for each stage."
        )
