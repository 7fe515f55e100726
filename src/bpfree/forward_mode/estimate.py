"""The estimating pass: the model runs once more with dual numbers, and says how its errors' places answer to the taps.

At every tap a random perturbation v_l is added to the tangent; the tangent that arrives where the error is taken is
odot = sum_l J_l v_l, with J_l = do/dh_l. Then odot (x) v_l is, on average, J_l (Bacho & Chu 2022; Caillon et al.'s
GrAPE). Nothing is stored for a backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from bpfree.axes.place import name_of_call
from bpfree.axes.sites import Site
from bpfree.compiled_code import outside_compiled_code
from bpfree.feedback.random import derived_seed
from bpfree.feedback.spatial import Form
from bpfree.forward_mode.dual_numbers import join, split
from bpfree.forward_mode.hadamard import Columns, HadamardDraw, Turn
from bpfree.forward_mode.own_pass import OwnPass
from bpfree.forward_mode.perturbations import Draw, Draws, Maker, Perturbations
from bpfree.forward_mode.sample_part import SamplePart
from bpfree.forward_mode.tangents import DualPass, Tangents, kind_of
from bpfree.forward_mode.tape import Tape
from bpfree.plan import Plan
from bpfree.rerun.arguments import Call
from bpfree.rerun.random_state import RandomState
from bpfree.rerun.snapshot import RunSnapshot
from bpfree.tap_values import put, take


def itself(tensor: Tensor) -> Tensor:
    """Return the tensor: the sum over one process."""
    return tensor


@dataclass(frozen=True)
class Observation:
    """The observation of one error in one estimating pass.

    Attributes:
        change: odot, shape ``(N, c)``: the tangent where the error is taken, sum_l J_l v_l for every row of the error.
        perturbations: One per tap, in forward order, shape ``(N, m_l)``: the coefficients of v_l (for feedback that has
            a number for every feature, v_l itself). Each is made again when it is asked for.
        sites: The taps.
        part: The samples that were observed, N above being the number of their rows; None for the whole batch.
        total: Returns the sum of a tensor over the stages of a pipeline, each of which observes its own taps; elsewhere
            the tensor itself.
    """

    change: Tensor
    perturbations: Sequence[Tensor]
    sites: Sequence[Site]
    part: SamplePart | None = None
    total: Callable[[Tensor], Tensor] = itself

    def correlations(self, rows: Tensor) -> list[Tensor]:
        """Return for every tap the mean of rows (x) v_l over its rows of the error ``(N, c)``, shape ``(c, m_l)``."""
        across, count = rows.T, rows.shape[0]
        found = []
        for v, site in zip(self.perturbations, self.sites, strict=True):
            pairing = site.pairing
            if pairing is None:
                found.append((across @ v.to(rows)).div_(count))
            else:
                found.append((pairing.gather(rows).T @ v.to(rows)).div_(pairing.rows))
        return found


@dataclass(frozen=True)
class Response:
    """The response of the errors' places in one estimating pass.

    Attributes:
        tangents: For each module where an error is taken, the tangents of its output by path; empty if the pass did not
            reach it.
        perturbations: One per tap, as in an observation.
        sites: The taps.
        values: The values of these outputs.
        part: The samples of the pass; None for the whole batch.
    """

    tangents: Sequence[Tangents]
    perturbations: Draws
    sites: Sequence[Site]
    values: Sequence[Tangents]
    part: SamplePart | None = None

    def observation(self, change: Tensor, taps: Sequence[Site]) -> Observation:
        """Return the observation of the error with this ``change``, ``(N, c)``, and of the ``taps`` below it."""
        numbers = {site.name: number for number, site in enumerate(self.sites)}
        if list(numbers) == [site.name for site in taps]:
            return Observation(change, self.perturbations, self.sites, self.part)
        below = [numbers[site.name] for site in taps if site.name in numbers]
        return Observation(change, self.perturbations.only(below), [self.sites[i] for i in below], self.part)


class Estimator:
    """Makes the observations of one attachment.

    Args:
        plan: Model, taps, and where the error is taken.
        kind: The distribution of the perturbations.
        form: The form of a tap's feedback: perturbations stay within what B_l can express, for less noise.

    Attributes:
        dual_pass: Runs the model with tangents.
        tape: Keeps the outputs of costly layers for the estimating pass.
    """

    def __init__(self, plan: Plan, kind: Perturbations, form: Callable[[Site], Form]) -> None:
        self.plan = plan
        self._kind: Perturbations = kind
        self._form = form
        self.dual_pass = DualPass(plan)
        self.tape = Tape(plan.model)
        self._keep = True

    @outside_compiled_code
    def begin(self, call: Call, *, keep: bool, part: SamplePart | None = None) -> RunSnapshot:
        """Prepare for the estimating pass of a forward pass that begins; return the state that :meth:`run` needs.

        Args:
            call: The model's arguments.
            keep: True if outputs and perturbations may be kept, which spares work and costs memory.
            part: The samples that will be observed, as far as the arguments tell; None for the whole batch.
        """
        start, self._keep = RunSnapshot.now(self.plan, call), keep
        if keep:
            self.tape.record(part)
        return start

    def run(
        self,
        call: Call,
        start: RunSnapshot,
        sites: Sequence[Site],
        seed: int,
        part: SamplePart | None = None,
        entering: Sequence[Tensor] = (),
        turn: Turn | None = None,
    ) -> Response:
        """Run a pass that began from ``start`` once more, with perturbations drawn from ``seed`` at these taps.

        Args:
            call: The model's arguments.
            start: The state in which the pass began.
            sites: The taps.
            seed: The seed.
            part: The samples that it runs on; None for all.
            entering: The tangents that the arguments have already, of these samples.
            turn: The place of the pass among others, for perturbations of a Hadamard matrix; None for random ones.

        Raises:
            ForwardDerivativeError: A layer has no forward-mode derivative, or no perturbation reaches the error.
        """
        drawn = part is not None and not start.random.is_same(RandomState.now(self.plan.model))
        if part is not None:
            call, sites = part.of_call(call), part.of_sites(sites)
        kind = None if part is None else kind_of(self.plan, call)
        made: dict[str, Maker] = {}
        columns = None if turn is None else turn.columns({site.name: self._form(site).size for site in sites})

        @contextmanager
        def prepare(own: OwnPass) -> Generator[None]:
            with self.tape.replayed(own, part, kind, drawn=drawn), self._perturbed(own, sites, seed, made, columns):
                yield

        tangents, values = self.dual_pass(call, prepare, start, entering)
        reached = [site for site in sites if site.name in made]
        return Response(tangents, Draws([made[site.name] for site in reached]), reached, values, part)

    def draw(self, site: Site, like: Tensor, seed: int, columns: Columns | None = None) -> Draw | HadamardDraw:
        """Return the recipe of a tap's perturbation, for an output ``like`` this and a pass with this seed.

        Args:
            site: The tap.
            like: Its output.
            seed: The seed of the pass.
            columns: The taps' columns of a Hadamard matrix; None for numbers that are drawn.
        """
        shape = (site.rows, self._form(site).size)
        if columns is not None:
            return columns.draw(site.name, shape, like)
        return Draw(shape, self._kind, derived_seed(seed, site.name), like.dtype, like.device)

    def direction(self, site: Site, coefficients: Tensor, like: Tensor) -> Tensor:
        """Return v_l in the shape of the tap's output ``like``, made from its ``(N, m_l)`` coefficients."""
        v = site.arrangement(self._form(site).expand(coefficients))
        return v if v.shape == like.shape else v.view(like.shape)

    @contextmanager
    def _perturbed(
        self, own: OwnPass, sites: Sequence[Site], seed: int, made: dict[str, Maker], columns: Columns | None
    ) -> Generator[None]:
        """Within this context every tap adds its perturbation to the tangent that passes."""

        def add(site: Site, output: Tensor) -> Tensor | None:
            if not torch._C._is_fwd_grad_enabled():  # what the model computes without gradients is a constant
                return None
            primal, tangent = split(output)
            draw = self.draw(site, primal, seed, columns)
            made[site.name], coefficients = draw.keep() if self._keep else (draw.make, draw.make())
            v = self.direction(site, coefficients, primal)
            return join(primal, v if tangent is None else tangent + v)

        with at_taps(self.plan, own, sites, add):
            yield


@contextmanager
def at_taps(
    plan: Plan, own: OwnPass, sites: Sequence[Site], visit: Callable[[Site, Tensor], Tensor | None]
) -> Generator[None]:
    """Within this context every site that the pass ``own`` reaches is visited, and hands on what ``visit`` returns.

    ``visit`` is given the tapped tensor alone, where a tap's module returns several values.
    """
    known = {site.name: site for site in sites}
    calls: dict[str, int] = {}

    def reach(name: str, module: nn.Module, args: Any, output: Any) -> Any:
        call = calls[name] = calls.get(name, 0) + 1
        site = known.get(name_of_call(name, call))
        if site is None:
            return None
        key = plan.tensor_keys.get(name)
        changed = visit(site, take(output, key, name))
        return None if changed is None else put(output, key, changed)

    # Before other hooks at the tap, as the rule's own.
    with own.hooked({module: partial(reach, name) for name, module in plan.taps.items()}, prepend=True):
        yield
