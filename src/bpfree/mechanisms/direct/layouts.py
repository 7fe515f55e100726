"""Layouts of passes: which axes of an error and of its taps are rows, and which are features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bpfree.axes.layout import ERROR, lay_out, tapped
from bpfree.axes.place import Place
from bpfree.axes.sites import Site
from bpfree.feedback.projection import Projection
from bpfree.mechanisms.direct.delivery import Layout
from bpfree.mechanisms.direct.forward_pass import TrainingPass
from bpfree.mechanisms.direct.survey import Survey, SurveyPass
from bpfree.tap_values import Key, told_of_several

if TYPE_CHECKING:
    from bpfree.mechanisms.direct.mechanism import DirectMechanism

_FEW = 2**18
"""So many numbers of different signals are made at once."""


class Layouts:
    """Makes the layouts of the passes of one error, and remembers what earlier passes have shown.

    Args:
        mechanism: The mechanism of these passes.
    """

    def __init__(self, mechanism: DirectMechanism) -> None:
        self._mechanism = mechanism
        self.last: Layout | None = None
        # The axes of channels, and the taps whose tokens are not the error's.
        self._channels: dict[str, int] = {}
        self._lengths: set[str] = set()
        # What errors add about taps that hand on several tensors.
        self._notes: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return the state without the last layout: a copy finds the layout of its own passes."""
        return {**self.__dict__, "last": None}

    def note_container(self, name: str, output: Any, key: Key) -> None:
        """Note once for each tap which of several tensors in its output is the tap's, for errors about its shape."""
        if name not in self._notes:
            self._notes[name] = told_of_several(output, key, name)

    def of_pass(
        self, tapped_pass: TrainingPass, error_name: str, output: Tensor, below: Sequence[int], survey: Survey | None
    ) -> Layout:
        """Return the layout of a pass with these taps below the error at ``output``; it is kept for equal shapes."""
        compiling = torch.compiler.is_compiling()
        names, places = [tapped_pass.names[i] for i in below], [tapped_pass.places[i] for i in below]
        shapes, formats = [tapped_pass.shapes[i] for i in below], [tapped_pass.formats[i] for i in below]
        key = (output.shape, output.dtype, output.device, tuple(places), shapes, formats)
        last = self.last
        if not compiling and last is not None and key == last.key:
            return last
        mechanism, plan = self._mechanism, self._mechanism.plan
        if survey is not None:
            self._channels |= {call: axis for call, axis in survey.channels.items() if axis is not None}
        error = Place(ERROR, ERROR, tuple(output.shape), self._channels.get(error_name))
        rows, sites = lay_out(plan, error, tapped(names, places, shapes, self._channels, self._notes), self._lengths)
        # One signal for all taps is made at once. A compiled graph cannot hold hooks on tensors inside it.
        several = isinstance(mechanism.feedback, Projection) and mechanism.feedback.kinds(sites) > 1
        just_in_time = not compiling and (plan.streaming or (several and _are_large(sites)))
        like = _weights_like(plan.model, output)
        # A stage of a pipeline does not receive an error that no rule needs.
        known_error = not plan.is_stage or mechanism.rule.needs_error
        forms = tuple((site.arrangement, format) for site, format in zip(sites, formats, strict=True))
        layout = Layout(key, rows, sites, forms, rows.features(output.shape), just_in_time, like, known_error)
        if not compiling:  # a compiled pass has a layout of its own: its signals are not made just in time
            self.last = layout
        return layout

    def of_survey(self, found: SurveyPass, survey: Survey, name: str, below: Sequence[int]) -> Sequence[Site]:
        """Return the sites of these taps below an error, as the passes after this survey will lay them out."""
        shapes, channels = [found.taps[number].shape for number in below], survey.channels
        names, places = [found.names[number] for number in below], [found.places[number] for number in below]
        error = Place(ERROR, ERROR, tuple(found.errors[name].shape), channels[name])
        _, sites = lay_out(self._mechanism.plan, error, tapped(names, places, shapes, channels, self._notes), set())
        return sites


def _are_large(sites: Sequence[Site]) -> bool:
    """Return whether signals had better not all exist at once; hooks that make them one at a time take time too."""
    return sum(site.rows * site.width for site in sites) > _FEW


def _weights_like(model: nn.Module, output: Tensor) -> Tensor:
    """Return an empty tensor with the precision of the model's weights on the device of its output."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return torch.empty(0, dtype=parameter.dtype, device=output.device)
    return output.new_empty(0)
