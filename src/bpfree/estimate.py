"""The estimating pass: the model runs once more with dual numbers, and says how its output answers to the taps.

At every tap a random perturbation v_l is added to the tangent; the tangent that arrives where the error is taken is
odot = sum_l J_l v_l, with J_l = do/dh_l. Then odot (x) v_l is, on average, J_l (Bacho & Chu 2022; Caillon et al.'s
GrAPE). Nothing is stored for a backward pass: the pass runs under ``no_grad``.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
import torch.autograd.forward_ad as dual
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from bpfree.convolution import CONVOLUTIONS
from bpfree.draw import derived_seed
from bpfree.errors import BpfreeWarning, ForwardDerivativeError
from bpfree.plan import Plan
from bpfree.preserve import Surroundings
from bpfree.spatial import Form
from bpfree.taps import Site, product

Perturbations: TypeAlias = Literal["normal", "rademacher"]
Call: TypeAlias = tuple[tuple[Any, ...], Mapping[str, Any]]
"""The arguments and keyword arguments of one forward pass."""

_SIGNS = ((torch.arange(256)[:, None] >> torch.arange(8)) & 1) * 2 - 1  # the 8 bits of every byte as -1 and 1


@dataclass(frozen=True)
class Observation:
    """What one estimating pass saw.

    Attributes:
        change: odot, shape ``(N, c)``: the tangent of the output, sum_l J_l v_l for every row.
        perturbations: One a tap, in forward order, shape ``(N, m_l)``: the coefficients of v_l (for feedback that has
            a number for every feature, v_l itself). Behind a streaming pass each is drawn again when it is asked for.
        sites: Those taps.
    """

    change: Tensor
    perturbations: Sequence[Tensor]
    sites: Sequence[Site]


def split(number: Tensor) -> tuple[Tensor, Tensor | None]:
    """A dual number's value and its tangent; None for an ordinary tensor."""
    primal, tangent = dual.unpack_dual(number)  # type: ignore[no-untyped-call]
    return primal, tangent


def join(primal: Tensor, tangent: Tensor) -> Tensor:
    """The dual number of this value and this tangent."""
    number: Tensor = dual.make_dual(primal, tangent)  # type: ignore[no-untyped-call]
    return number


def perturbation(shape: tuple[int, int], kind: Perturbations, like: Tensor, generator: torch.Generator) -> Tensor:
    """Numbers of mean 0 and variance 1: N(0, 1) for ``"normal"``, -1 or 1 for ``"rademacher"``."""
    if kind == "normal":
        return torch.empty(shape, dtype=like.dtype, device=like.device).normal_(generator=generator)
    # Eight signs a random byte, by a table: on a CPU several times faster than a random number for each.
    count = product(shape)
    bytes_ = torch.empty(-(-count // 8), dtype=torch.int64, device=like.device).random_(0, 256, generator=generator)
    return F.embedding(bytes_, _SIGNS.to(like)).flatten()[:count].view(shape)


@dataclass(frozen=True)
class Draw:
    """One tap's perturbation, as it can be drawn again.

    Attributes:
        shape: ``(N, m_l)``.
        kind: What it is drawn from.
        seed: With which seed.
        dtype: In which precision.
        device: Where.
    """

    shape: tuple[int, int]
    kind: Perturbations
    seed: int
    dtype: torch.dtype
    device: torch.device

    def make(self) -> Tensor:
        """The numbers, the same each time."""
        generator = torch.Generator(self.device).manual_seed(self.seed)
        return perturbation(self.shape, self.kind, torch.empty(0, dtype=self.dtype, device=self.device), generator)


class Draws(Sequence[Tensor]):
    """Perturbations that are not kept: each is drawn again when it is asked for."""

    def __init__(self, draws: Sequence[Draw]) -> None:
        self._draws = draws

    def __len__(self) -> int:
        return len(self._draws)

    def __getitem__(self, index: Any) -> Any:
        """The perturbation of tap ``index``."""
        return self._draws[index].make()


@contextmanager
def differentiable_attention(*, fused: bool = False) -> Generator[None]:
    """Within this context attention goes by ways that have a forward-mode derivative.

    Args:
        fused: Whether fused kernels stay allowed all the same: attention does not always take one.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with nullcontext() if fused else sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class Tape:
    """What the costly layers gave in the rule's own forward pass, so that the estimating pass need not repeat it.

    These layers are linear: their tangent is the layer applied to the input's tangent, and their output is known.
    Without this an estimating pass would cost two forward passes and not one.
    """

    def __init__(self, model: nn.Module) -> None:
        # Exactly these classes: a subclass may compute anything.
        kinds = (nn.Linear, *CONVOLUTIONS)
        self._layers = [layer for layer in model.modules() if type(layer) in kinds and "forward" not in vars(layer)]
        self._kept: dict[nn.Module, list[tuple[Tensor, int]]] | None = None

    def install(self) -> list[Any]:
        """Hooks that keep the layers' outputs while a recording is under way."""
        # Before all other hooks, which may exchange the output.
        return [layer.register_forward_hook(self._keep, prepend=True) for layer in self._layers]

    def record(self) -> None:
        """Begin to keep outputs."""
        self._kept = {}

    def drop(self) -> None:
        """End the recording, and forget it."""
        self._kept = None

    def _keep(self, layer: nn.Module, args: Any, output: Tensor) -> None:
        if self._kept is not None:
            self._kept.setdefault(layer, []).append((output.detach(), output._version))

    @contextmanager
    def replayed(self) -> Generator[None]:
        """Within this context the layers take their outputs from the recording, which is then forgotten."""
        kept, self._kept = self._kept or {}, None
        try:
            for layer, outputs in kept.items():
                layer.forward = partial(_replay, layer, layer.forward, iter(outputs))
            yield
        finally:
            for layer in kept:
                del layer.forward


def _replay(
    layer: Any, forward: Callable[[Tensor], Tensor], outputs: Iterator[tuple[Tensor, int]], input: Tensor
) -> Tensor:
    output, version = next(outputs, (None, 0))
    if output is None or output._version != version:  # an in-place operation has overwritten it
        return forward(input)
    _, tangent = split(input)
    if tangent is None:
        return output
    linear = F.linear(tangent, layer.weight) if isinstance(layer, nn.Linear) else layer._conv_forward(
        tangent, layer.weight, None
    )  # fmt: skip
    return join(output, linear.to(output.dtype))


class DualPass:
    """Runs a model with dual numbers up to where the error is taken."""

    def __init__(self, plan: Plan) -> None:
        # In a tuple, so that whoever keeps this does not register the model.
        self._held = (plan,)
        self._fused = True

    def __call__(self, call: Call, prepare: Callable[[], Any], start: Surroundings) -> Tensor:
        """The tangent of the output at ``error_at``.

        Args:
            call: The model's arguments.
            prepare: Returns a context manager that brings the perturbations in, for one attempt.
            start: What the pass before began with, so that dropout draws the same masks.

        Raises:
            ForwardDerivativeError: A layer has no forward-mode derivative, or nothing reaches the output.
        """
        try:
            return self._run(call, prepare, start)
        except NotImplementedError as error:
            if not self._fused or "attention" not in str(error):
                raise self._unserved(call, prepare, start) from error
        self._fused = False
        warnings.warn(
            "fused attention has no forward-mode derivative: the estimating passes use PyTorch's math backend for "
            "attention, the other passes stay as they are.",
            BpfreeWarning,
            stacklevel=2,
        )
        return self(call, prepare, start)

    def _run(self, call: Call, prepare: Callable[[], Any], start: Surroundings) -> Tensor:
        (plan,) = self._held
        attention = differentiable_attention(fused=self._fused)
        with start.restored(plan.model), torch.no_grad(), dual.dual_level(), attention, prepare():
            output = _up_to_error(plan, call)
            _, tangent = split(output)
        if tangent is None:
            raise ForwardDerivativeError(
                f"no perturbation of the taps arrives at {plan.error_name or 'the output'!r}: between them the model "
                "takes its values out of the graph (detach(), .data, or an operation that has no derivative). Take "
                "that out, or use a rule with no estimating pass (bpfree.DFA, bpfree.DKP)."
            )
        return tangent

    def _unserved(self, call: Call, prepare: Callable[[], Any], start: Surroundings) -> ForwardDerivativeError:
        """Run again with every module watched, to find the one that has no derivative."""
        (plan,) = self._held
        names = {module: name for name, module in plan.model.named_modules()}
        entered: list[nn.Module] = []
        handles = [module.register_forward_pre_hook(lambda module, args: entered.append(module)) for module in names]
        handles += [
            module.register_forward_hook(lambda module, args, output: entered.remove(module)) for module in names
        ]
        said = ""
        try:
            self._run(call, prepare, start)
        except NotImplementedError as error:
            said = str(error).partition(" because ")[0].partition("\n")[0].rstrip(".")
        finally:
            for handle in handles:
                handle.remove()
        inside = entered[-1] if entered else plan.model
        name = names[inside]
        return ForwardDerivativeError(
            f"layer {name or '(model)'!r} ({type(inside).__name__}) has no forward-mode derivative, which the "
            f"estimating pass needs: {said}. Put the taps behind it (taps=...: what lies before the first tap needs "
            "none), write it with operations that have one, give an autograd.Function a jvp, switch oneDNN off for "
            "an LSTM (torch.backends.mkldnn.enabled), or use a rule with no estimating pass (bpfree.DFA, bpfree.DKP)."
        )


class _Reached(Exception):  # noqa: N818 - not an error: what lies above error_at need not run
    def __init__(self, output: Tensor) -> None:
        self.output = output


def _up_to_error(plan: Plan, call: Call) -> Tensor:
    """The output where the error is taken."""

    def stop(module: nn.Module, args: Any, output: Tensor) -> None:
        raise _Reached(output)

    args, kwargs = call
    if plan.error_module is plan.model:
        output: Tensor = plan.model.forward(*args, **kwargs)
        return output
    handle = plan.error_module.register_forward_hook(stop)
    try:
        # Not the model's __call__: its hooks are for passes that somebody asked for.
        plan.model.forward(*args, **kwargs)
    except _Reached as reached:
        return reached.output
    finally:
        handle.remove()
    raise AssertionError("the pass before reached error_at with the same inputs")


class Estimator:
    """Makes the observations of one attachment.

    Args:
        plan: Model, taps, and where the error is taken.
        kind: What perturbations are drawn from.
        form: The form of a tap's feedback: perturbations stay within what B_l can express, for less noise.
    """

    def __init__(self, plan: Plan, kind: Perturbations, form: Callable[[Site], Form]) -> None:
        self._held = (plan,)
        self._kind: Perturbations = kind
        self._form = form
        self._dual_pass = DualPass(plan)
        self.tape = Tape(plan.model)
        self._start: Surroundings | None = None
        self._keep = True

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def begin(self, call: Call, *, keep: bool) -> None:
        """Hear that a forward pass begins which :meth:`observe` will be asked about.

        Args:
            call: The model's arguments.
            keep: Whether outputs and perturbations may be kept, which spares work and costs memory.
        """
        (plan,) = self._held
        self._start, self._keep = Surroundings.now(plan, call), keep
        if keep:
            self.tape.record()

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def observe(self, call: Call, sites: Sequence[Site], c: int, seed: int) -> Observation:
        """Run the pass that began once more, with perturbations drawn from ``seed`` at these taps.

        Raises:
            ForwardDerivativeError: A layer has no forward-mode derivative, or no perturbation reaches the error.
        """
        assert self._start is not None
        start, self._start = self._start, None
        draws: dict[str, Draw] = {}
        made: dict[str, Tensor] = {}

        @contextmanager
        def prepare() -> Generator[None]:
            with self.tape.replayed(), self._perturbed(sites, seed, draws, made):
                yield

        tangent = self._dual_pass(call, prepare, start)
        reached = [site for site in sites if site.name in draws]
        kept = [made[site.name] for site in reached] if self._keep else Draws([draws[site.name] for site in reached])
        return Observation(tangent.reshape(-1, c), kept, reached)

    @contextmanager
    def _perturbed(
        self, sites: Sequence[Site], seed: int, draws: dict[str, Draw], made: dict[str, Tensor]
    ) -> Generator[None]:
        """Within this context every tap adds its perturbation to the tangent that passes."""
        (plan,) = self._held
        known = {site.name: site for site in sites}
        calls: Counter[str] = Counter()

        def add(name: str, module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            calls[name] += 1
            site = known.get(name if calls[name] == 1 else f"{name}#{calls[name]}")
            if site is None:
                return None
            primal, tangent = split(output)
            form = self._form(site)
            shape = (product(primal.shape[: len(site.batch)]), form.size)
            draw = Draw(shape, self._kind, derived_seed(seed, site.name), primal.dtype, primal.device)
            draws[site.name], coefficients = draw, draw.make()
            if self._keep:
                made[site.name] = coefficients
            v = form.expand(coefficients).view(primal.shape)
            return join(primal, v if tangent is None else tangent + v)

        # Before other hooks at the tap, as the rule's own.
        handles = [module.register_forward_hook(partial(add, name), prepend=True) for name, module in plan.taps.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
