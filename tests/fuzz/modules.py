"""The modules that made-up models consist of, each with one habit that real models have."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import bpfree

Shape = tuple[int, ...]
"""What lies behind the samples: (d,), (T, d) or (C, H, W)."""


def is_image(shape: Shape) -> bool:
    return len(shape) == 3


def channels(shape: Shape) -> int:
    return shape[0] if is_image(shape) else shape[-1]


# -- layers ------------------------------------------------------------------------------------------------------------


class Masked(nn.Linear):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__(width_in, width)
        mask = torch.ones(width, width_in)
        mask[::2, ::2] = 0
        self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * 0.5, self.bias)


class Rounded(nn.Linear):
    """Weights of few bits, with a straight-through gradient."""

    def forward(self, x: Tensor) -> Tensor:
        few = (self.weight * 8).round() / 8
        return F.linear(x, self.weight + (few - self.weight).detach(), self.bias)


class Activated(nn.Linear):
    """A fused layer: the class says Linear, the map is not."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(super().forward(x))


class Extended(nn.Linear):
    """Linear in its input, but not by its weight alone."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 0.3 * x.mean(-1, keepdim=True)


class Gated(nn.Linear):
    """The same map by another signature: a second argument."""

    def forward(self, x: Tensor, gate: float = 0.7) -> Tensor:
        return super().forward(x) * gate


class Own(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(width, width_in) / width_in**0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T


class Functional(nn.Module):
    """Holds a layer and never calls it."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width_in, width)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.inner.weight, self.inner.bias)


class Adapted(nn.Module):
    """A frozen layer with a low-rank adapter."""

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.base = nn.Linear(width_in, width)
        self.base.requires_grad_(False)
        self.down, self.up = nn.Linear(width_in, 2, bias=False), nn.Linear(2, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Complex(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width_in, width, dtype=torch.complex128)

    def forward(self, x: Tensor) -> Tensor:
        found = self.inner(torch.complex(x, x.flip(-1)))
        return found.real + 0.5 * found.imag


class Twice(nn.Module):
    """One layer, called on two things.

    Not on x and -x: both calls get one signal where their outputs are tapped, and their gradients would cancel.
    """

    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width_in, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) * self.inner(-0.5 * x).sigmoid()


class Square(nn.Module):
    def __init__(self, width_in: int, width: int) -> None:
        super().__init__()
        self.inner = nn.Bilinear(width_in, width_in, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x, x)


class MaskedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones_like(self.weight)
        mask[:, :, 1:] = 0
        return self._conv_forward(x, self.weight * mask, self.bias)


class Standardized(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / (weight.std((1, 2, 3), keepdim=True) + 1e-3), self.bias)


def _double(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return 2 * output


def _squash(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return torch.tanh(output)


def _squash_input(module: nn.Module, args: Any) -> Any:
    return (torch.tanh(args[0]), *args[1:])


def _with(layer: nn.Module, *, hook: Any = None, pre: Any = None) -> nn.Module:
    if hook is not None:
        layer.register_forward_hook(hook)
    if pre is not None:
        layer.register_forward_pre_hook(pre)
    return layer


LINEAR: dict[str, Callable[[int, int], nn.Module]] = {
    "plain": nn.Linear,
    "nobias": lambda i, o: nn.Linear(i, o, bias=False),
    "masked": Masked,
    "scaled": Scaled,
    "rounded": Rounded,
    "activated": Activated,
    "extended": Extended,
    "gated": Gated,
    "own": Own,
    "functional": Functional,
    "adapted": Adapted,
    "complex": Complex,
    "twice": Twice,
    "bilinear": Square,
    "hooked": lambda i, o: _with(nn.Linear(i, o), hook=_double),
    "squashed": lambda i, o: _with(nn.Linear(i, o), hook=_squash),
    "prehooked": lambda i, o: _with(nn.Linear(i, o), pre=_squash_input),
    "weight_norm": lambda i, o: parametrizations.weight_norm(nn.Linear(i, o)),
    "spectral": lambda i, o: parametrizations.spectral_norm(nn.Linear(i, o)),
}

CONVOLUTION: dict[str, Callable[[int, int], nn.Module]] = {
    "plain": lambda i, o: nn.Conv2d(i, o, 3, padding=1),
    "nobias": lambda i, o: nn.Conv2d(i, o, 3, padding="same", bias=False),
    "circular": lambda i, o: nn.Conv2d(i, o, 3, padding=1, padding_mode="circular"),
    "transposed": lambda i, o: nn.ConvTranspose2d(i, o, 3, padding=1),
    "masked": lambda i, o: MaskedConv(i, o, 3, padding=1),
    "standardized": lambda i, o: Standardized(i, o, 3, padding=1),
    "hooked": lambda i, o: _with(nn.Conv2d(i, o, 3, padding=1), hook=_double),
    "weight_norm": lambda i, o: parametrizations.weight_norm(nn.Conv2d(i, o, 3, padding=1)),
}


# -- non-linearities ---------------------------------------------------------------------------------------------------

MODULES: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "prelu": nn.PReLU,
    "softplus": nn.Softplus,
}
FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": F.gelu,
    "sigmoid": torch.sigmoid,
    "silu": F.silu,
    "elu": F.elu,
    "prelu": F.leaky_relu,
    "softplus": F.softplus,
}
IN_PLACE: dict[str, Callable[[], nn.Module]] = {
    "relu": lambda: nn.ReLU(inplace=True),
    "silu": lambda: nn.SiLU(inplace=True),
    "elu": lambda: nn.ELU(inplace=True),
}


class Applied(nn.Module):
    """A function in a module whose class nobody knows."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._function = function

    def forward(self, x: Tensor) -> Tensor:
        return self._function(x)


class Swish(Applied):
    """A non-linearity by its name, as transformers has its own GELU and SiLU classes."""


class Spike(torch.autograd.Function):
    """A step with a surrogate gradient and no jvp, as spiking libraries have it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return (x > 0).to(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grads[0] / (1 + 2 * x.abs()) ** 2


# -- noise, state, bends, extra losses ---------------------------------------------------------------------------------


class NoiseOf(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind
        if kind == "generator":
            self.generator = torch.Generator().manual_seed(4)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if self._kind == "torch":
            return x + 0.1 * torch.randn_like(x)
        if self._kind == "numpy":
            return x * (1 + 0.2 * float(numpy.random.rand()))
        if self._kind == "python":
            return x * (1 + 0.2 * random.random())
        return x + 0.1 * torch.randn(x.shape, generator=self.generator)


class StateOf(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind
        self.calls = 0
        self.history: list[Tensor] = []
        self.cache: dict[str, Tensor] = {}
        self.kept: Tensor | None = None
        if kind == "buffer":
            self.register_buffer("average", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return getattr(self, f"_{self._kind}")(x)

    def _counter(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * (1 + 0.1 * self.calls)

    def _list(self, x: Tensor) -> Tensor:
        self.history.append(x.detach().mean())
        return x + 0.1 * sum(self.history)

    def _memory(self, x: Tensor) -> Tensor:
        before, self.kept = self.kept, x.detach().mean()
        return x if before is None else x + 0.3 * before

    def _membrane(self, x: Tensor) -> Tensor:
        self.kept = x if self.kept is None else 0.5 * self.kept.detach() + x
        return self.kept

    def _dictionary(self, x: Tensor) -> Tensor:
        before = self.cache.get("scale", x.new_zeros(()))
        self.cache["scale"] = before + x.detach().abs().mean()
        return x + 0.1 * before

    def _buffer(self, x: Tensor) -> Tensor:
        self.average.mul_(0.9).add_(0.1 * x.detach().mean())
        return x - self.average

    def _logged(self, x: Tensor) -> Tensor:
        self.history.append(x)  # as it is, for somebody to look at
        return x


class Mirrored(torch.autograd.Function):
    """The identity forward, -0.5 times it backward, and no jvp: gradient reversal."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return -0.5 * grads[0]


class Contradicted(Mirrored):
    """Gradient reversal with the jvp of the identity."""

    @staticmethod
    def jvp(ctx: Any, *tangents: Tensor) -> Tensor:
        return tangents[0].view_as(tangents[0])


class BendOf(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self._kind = kind

    def forward(self, x: Tensor) -> Tensor:
        return getattr(self, f"_{self._kind}")(x)

    def _detached(self, x: Tensor) -> Tensor:
        return x * x.detach().sigmoid()

    def _no_grad(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            gate = x.sigmoid()
        return x * gate

    def _straight(self, x: Tensor) -> Tensor:
        return x + ((4 * x).round() / 4 - x).detach()

    def _data(self, x: Tensor) -> Tensor:
        return x * x.data.sigmoid()

    def _reversed(self, x: Tensor) -> Tensor:
        found: Tensor = Mirrored.apply(x)
        return found

    def _contradicted(self, x: Tensor) -> Tensor:
        found: Tensor = Contradicted.apply(x)
        return found

    def _hook(self, x: Tensor) -> Tensor:
        out = x * 1.0
        if out.requires_grad:
            out.register_hook(lambda gradient: 0.5 * gradient)
        return out


class ExtraOf(nn.Module):
    """Keeps a loss term in ``penalty``."""

    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self._kind = kind
        self.penalty: Tensor | None = None
        if kind == "side_head":
            self.side = nn.Linear(width, 2)
        if kind == "hook":
            self.tanh = nn.Tanh()
            self.tanh.register_forward_hook(self._look)
        if kind == "router":
            self.route = nn.Linear(width, width)

    def _look(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.penalty = output.square().mean()

    def forward(self, x: Tensor) -> Tensor:
        if self._kind == "hook":
            return self.tanh(x)
        if self._kind == "side_head":
            self.penalty = self.side(x).square().mean()
            return x
        if self._kind == "router":
            shares = self.route(x).softmax(-1)
            self.penalty = shares.flatten(0, -2).mean(0).square().sum()
            return x * shares
        self.penalty = x.square().mean()
        return x


class OffsetOf(nn.Module):
    def __init__(self, kind: str, width: int, image: bool) -> None:
        super().__init__()
        self._kind = kind
        self.value = nn.Parameter(1 + 0.3 * torch.randn(width, *((1, 1) if image else ())))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.value if self._kind == "multiplied" else x + self.value


class ForceOf(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.energy, self.act = nn.Linear(width, width), nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            at = x if x.requires_grad else x.detach().requires_grad_()
            energy = self.act(self.energy(at)).square().sum()
            (force,) = torch.autograd.grad(energy, at, create_graph=True)
        return force


# -- structures --------------------------------------------------------------------------------------------------------


class ResidualOf(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class BranchOf(nn.Module):
    def __init__(self, left: nn.Module, right: nn.Module, join: str, axis: int) -> None:
        super().__init__()
        self.left, self.right, self._join, self._axis = left, right, join, axis

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x), self.right(x)
        if self._join == "cat":
            return torch.cat([left, right], self._axis)
        return left * right if self._join == "multiply" else left + right


class SharedOf(nn.Module):
    def __init__(self, inner: nn.Module, times: int) -> None:
        super().__init__()
        self.inner, self._times = inner, times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self._times):
            x = self.inner(x)
        return x


class CheckpointOf(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = checkpoint(self.inner, x, use_reentrant=False)
        return found


class Straight(nn.Sequential):
    """A Sequential whose argument has a name, for whoever calls it by keyword."""


class KeywordOf(nn.Module):
    """Calls what it holds with a keyword argument, or by ``forward``."""

    def __init__(self, inner: nn.Module, kind: str) -> None:
        super().__init__()
        self.inner, self._kind = inner, kind

    def forward(self, x: Tensor) -> Tensor:
        if self._kind == "keyword":
            return self.inner(input=x)
        return self.inner.forward(x)


def hooked(inner: nn.Module, kind: str) -> nn.Module:
    """``inner`` with a hook of the user's."""
    inner.seen = 0  # type: ignore[assignment]

    def count(module: Any, *rest: Any) -> None:
        module.seen += 1

    if kind == "output":
        inner.register_forward_hook(lambda module, args, output: 0.9 * output)
    elif kind == "input":
        inner.register_forward_pre_hook(lambda module, args: (1.1 * args[0],))
    elif kind == "count":
        inner.register_forward_hook(count)
    elif kind == "backward":
        inner.register_full_backward_hook(count)
    elif kind == "backward_scaled":
        inner.register_full_backward_hook(
            lambda module, inputs, outputs: tuple(0.5 * g for g in inputs if g is not None)
        )
    return inner


class Loop(nn.Module):
    """h = tanh(a x_t + b h) over the steps; without time, three steps on the same x."""

    def __init__(self, width: int, time: int | None) -> None:
        super().__init__()
        self.a, self.b, self.act, self._time = nn.Linear(width, width), nn.Linear(width, width), nn.Tanh(), time

    def forward(self, x: Tensor) -> Tensor:
        if self._time is None:
            h = torch.zeros_like(x)
            for _ in range(3):
                h = self.act(self.a(x) + self.b(h))
            return h
        h, found = torch.zeros_like(x.select(self._time, 0)), []
        for step in x.unbind(self._time):
            h = self.act(self.a(step) + self.b(h))
            found.append(h)
        return torch.stack(found, self._time)


class Cells(nn.Module):
    def __init__(self, width: int, time: int | None) -> None:
        super().__init__()
        self.cell, self._time = nn.GRUCell(width, width), time

    def forward(self, x: Tensor) -> Tensor:
        if self._time is None:
            h = torch.zeros_like(x)
            for _ in range(3):
                h = self.cell(x, h)
            return h
        h, found = torch.zeros_like(x.select(self._time, 0)), []
        for step in x.unbind(self._time):
            h = self.cell(step, h)
            found.append(h)
        return torch.stack(found, self._time)


class First(nn.Module):
    """The first of what a recurrent layer returns."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.inner(x)[0]
        return found


class Heads(nn.Module):
    """Attention over the steps, by one of several ways."""

    def __init__(self, kind: str, width: int, time: int) -> None:
        super().__init__()
        self._kind, self._time = kind, time
        if kind == "module":
            self.attention = nn.MultiheadAttention(width, 1, batch_first=time == 1)
        else:
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        if self._kind == "module":
            found: Tensor = self.attention(x, x, x, need_weights=False)[0]
            return found
        if self._time == 0:
            x = x.transpose(0, 1)
        q, k, v = self.qkv(x).chunk(3, -1)
        if self._kind == "fused":
            mixed = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        else:
            mixed = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        if self._time == 0:
            mixed = mixed.transpose(0, 1)
        return self.out(mixed)


class TiedOf(nn.Module):
    def __init__(self, kind: str, width: int) -> None:
        super().__init__()
        self._kind = kind
        self.one, self.act = nn.Linear(width, width), nn.Tanh()
        if kind == "parameter":
            self.two = nn.Linear(width, width)
            self.two.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.act(self.one(x))
        return self.two(h) if self._kind == "parameter" else F.linear(h, self.one.weight.T)


def tap() -> nn.Module:
    """The library's own marker."""
    return bpfree.Tap()
