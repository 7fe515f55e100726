"""The models of clicks by matrix formulas alone: logits, and gradients by DFA, without autograd, modules or hooks.

Batch normalization is in training mode. ``w`` holds the weights by the names of the models' parameters, ``rows`` the
rows of identifiers in the tables ``(N, fields)``, ``e`` the error dL/dlogit ``(N,)``, and ``b`` maps the name of a tap
to its row of feedback ``(n,)``, so that the tap's signal is the outer product of ``e`` and ``b``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
Found = dict[str, Tensor]
Rows = Callable[[str], Tensor]
EPS = 1e-5


# -- parts -------------------------------------------------------------------------------------------------------------


def linear_term(w: Weights, rows: Tensor) -> Tensor:
    return w["linear.weight"][:, 0][rows].sum(1) + w["linear.bias"]


def gradients_of_linear_term(w: Weights, rows: Tensor, e: Tensor) -> Found:
    return {
        "linear.weight": scattered(w["linear.weight"], rows, e[:, None, None].expand(*rows.shape, 1)),
        "linear.bias": e.sum(),
    }


def scattered(table: Tensor, rows: Tensor, signal: Tensor) -> Tensor:
    """Add every row of a signal ``(N, fields, width)`` to its identifier's."""
    found = torch.zeros_like(table)
    for n in range(len(rows)):
        for f in range(rows.shape[1]):
            found[rows[n, f]] += signal[n, f]
    return found


def pairs(v: Tensor) -> Tensor:
    fields = range(v.shape[1])
    return torch.stack([(v[:, f] * v[:, g]).sum(1) for f in fields for g in fields if f < g]).sum(0)


def block(w: Weights, name: str, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a block's output, its normalized values, and their deviations."""
    z = x @ w[f"{name}.linear.weight"].T + w[f"{name}.linear.bias"]
    deviation = (z.var(0, correction=0) + EPS).sqrt()
    normal = (z - z.mean(0)) / deviation
    return (normal * w[f"{name}.norm.weight"] + w[f"{name}.norm.bias"]).clamp(min=0), normal, deviation


def blocks_of(w: Weights) -> list[str]:
    return sorted(
        name.removesuffix(".linear.weight") for name in w if name.startswith("perceptron.") and "linear.weight" in name
    )


def perceptron(w: Weights, x: Tensor) -> Tensor:
    for name in blocks_of(w):
        x = block(w, name, x)[0]
    return x


def gradients_of_perceptron(w: Weights, x: Tensor, e: Tensor, b: Rows) -> Found:
    found: Found = {}
    for name in blocks_of(w):
        out, normal, deviation = block(w, name, x)
        at_norm = e.outer(b(f"{name}.tap")) * (out > 0)
        found[f"{name}.norm.weight"] = (at_norm * normal).sum(0)
        found[f"{name}.norm.bias"] = at_norm.sum(0)
        d = at_norm * w[f"{name}.norm.weight"]
        at_z = (d - d.mean(0) - normal * (d * normal).mean(0)) / deviation
        found[f"{name}.linear.weight"] = at_z.T @ x
        found[f"{name}.linear.bias"] = at_z.sum(0)
        x = out
    return found


def exact_layer(name: str, h: Tensor, e: Tensor) -> Found:
    """Gradients of the layer from h ``(N, n)`` to the logit."""
    return {f"{name}.weight": (e @ h)[None], f"{name}.bias": e.sum()[None]}


def cross(w: Weights, x: Tensor) -> list[Tensor]:
    """Return the input and the output of every cross layer."""
    layers = sum(name.startswith("cross.") and name.endswith(".bias") for name in w)
    found = [x]
    for layer in range(layers):
        along = found[-1] @ w[f"cross.layers.{layer}.weight.weight"][0]
        found.append(x * along[:, None] + w[f"cross.layers.{layer}.bias"] + found[-1])
    return found


def products(w: Weights, v: Tensor) -> Tensor:
    """Return what the logarithmic neurons make of vectors, ``(N, width, neurons)``."""
    powers = (1 + v.abs() + 1e-7)[:, None] ** w["logarithmic.weight"][:, :, None]
    return (powers.prod(2) - 1).clamp(min=0).transpose(1, 2)


def attention(w: Weights, name: str, h: Tensor, heads: int) -> tuple[Tensor, ...]:
    """Return q, k, v, the mixing, what it gathers, and a layer's output."""
    inside = h @ w[f"{name}.into.weight"].T + w[f"{name}.into.bias"]
    q, k, v = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in inside.chunk(3, dim=2))
    mixing = (q @ k.transpose(2, 3) / q.shape[3] ** 0.5).softmax(3)
    gathered = (mixing @ v).transpose(1, 2).flatten(2)
    return q, k, v, mixing, gathered, gathered @ w[f"{name}.out.weight"].T + w[f"{name}.out.bias"]


def gradients_of_attention(w: Weights, name: str, h: Tensor, heads: int, d: Tensor) -> tuple[Found, Tensor]:
    """Return a layer's gradients, and the gradient at its input, for the signal ``d`` at its output."""
    q, k, v, mixing, gathered, _ = attention(w, name, h, heads)
    at_gathered = (d @ w[f"{name}.out.weight"]).unflatten(2, (heads, -1)).transpose(1, 2)
    at_mixing = at_gathered @ v.transpose(2, 3)
    at_scores = mixing * (at_mixing - (at_mixing * mixing).sum(3, keepdim=True)) / q.shape[3] ** 0.5
    parts = (at_scores @ k, at_scores.transpose(2, 3) @ q, mixing.transpose(2, 3) @ at_gathered)
    inside = torch.cat([part.transpose(1, 2).flatten(2) for part in parts], dim=2)
    found = {
        f"{name}.out.weight": torch.einsum("nfo,nfi->oi", d, gathered),
        f"{name}.out.bias": d.sum((0, 1)),
        f"{name}.into.weight": torch.einsum("nfo,nfi->oi", inside, h),
        f"{name}.into.bias": inside.sum((0, 1)),
    }
    return found, inside @ w[f"{name}.into.weight"]


# -- models ------------------------------------------------------------------------------------------------------------


def logits(model: str, w: Weights, rows: Tensor, heads: int = 2) -> Tensor:
    v = w["embedding.weight"][rows]
    x = v.flatten(1)
    if model == "FM":
        return linear_term(w, rows) + pairs(v)
    if model == "DeepFM":
        return linear_term(w, rows) + pairs(v) + out(w, perceptron(w, x))
    if model == "DeepCross":
        return out(w, torch.cat([cross(w, x)[-1], perceptron(w, x)], dim=1))
    if model == "AFN":
        return linear_term(w, rows) + out(w, perceptron(w, products(w, v).flatten(1)))
    attended = attending(w, v, heads)[-1]
    return linear_term(w, rows) + out(w, attended.flatten(1), "attention_out") + out(w, perceptron(w, x))


def out(w: Weights, h: Tensor, name: str = "out") -> Tensor:
    return h @ w[f"{name}.weight"][0] + w[f"{name}.bias"]


def attending(w: Weights, v: Tensor, heads: int) -> list[Tensor]:
    """Return the input of every layer of attention, and the sum with the residual behind its ReLU."""
    layers = sum(name.startswith("attention.") and name.endswith("out.bias") for name in w)
    found = [v @ w["into_attention.weight"].T + w["into_attention.bias"]]
    for layer in range(layers):
        found.append(attention(w, f"attention.{layer}", found[-1], heads)[-1])
    found[-1] = (found[-1] + v @ w["residual.weight"].T + w["residual.bias"]).clamp(min=0)
    return found


def gradients(model: str, w: Weights, rows: Tensor, e: Tensor, b: Rows, heads: int = 2) -> Found:
    """Return the gradients by DFA of all weights that get one, as the placements say."""
    v = w["embedding.weight"][rows]
    x = v.flatten(1)

    def of_embedding(signal: Tensor) -> Found:
        return {"embedding.weight": scattered(w["embedding.weight"], rows, signal.reshape(v.shape))}

    if model in ("FM", "DeepFM"):
        through_pairs = e[:, None, None] * (v.sum(1, keepdim=True) - v)
        found = gradients_of_linear_term(w, rows, e) | of_embedding(through_pairs)
        if model == "DeepFM":
            found |= gradients_of_perceptron(w, x, e, b) | exact_layer("out", perceptron(w, x), e)
        return found
    if model == "DeepCross":
        stack = torch.cat([cross(w, x)[-1], perceptron(w, x)], dim=1)
        found = of_embedding(e.outer(b("embedding_tap"))) | exact_layer("out", stack, e)
        return found | gradients_of_cross(w, x, e, b) | gradients_of_perceptron(w, x, e, b)
    if model == "AFN":
        y = products(w, v)
        found = gradients_of_linear_term(w, rows, e) | exact_layer("out", perceptron(w, y.flatten(1)), e)
        at_exponent = e.outer(b("logarithmic_tap")).reshape(y.shape) * (y > 0) * (y + 1)
        logarithms = torch.log(1 + v.abs() + 1e-7)
        found["logarithmic.weight"] = torch.einsum("njk,nfj->kf", at_exponent, logarithms)
        return found | gradients_of_perceptron(w, y.flatten(1), e, b) | of_embedding(e.outer(b("behind_embedding")))
    return (
        gradients_of_linear_term(w, rows, e)
        | of_embedding(e.outer(b("embedding_tap")))
        | gradients_of_attending(w, v, e, b, heads)
        | gradients_of_perceptron(w, x, e, b)
        | exact_layer("out", perceptron(w, x), e)
    )


def gradients_of_cross(w: Weights, x: Tensor, e: Tensor, b: Rows) -> Found:
    found: Found = {}
    layers = len(cross(w, x)) - 1
    for layer, before in enumerate(cross(w, x)[:-1]):
        row = b("stack_tap")[: x.shape[1]] if layer == layers - 1 else b(f"cross.taps.{layer}")
        d = e.outer(row)
        found[f"cross.layers.{layer}.weight.weight"] = ((d * x).sum(1) @ before)[None]
        found[f"cross.layers.{layer}.bias"] = d.sum(0)
    return found


def gradients_of_attending(w: Weights, v: Tensor, e: Tensor, b: Rows, heads: int) -> Found:
    *inputs, attended = attending(w, v, heads)
    found = exact_layer("attention_out", attended.flatten(1), e)
    at_sum = e.outer(b("attention_tap")).reshape(attended.shape) * (attended > 0)
    found["residual.weight"] = torch.einsum("nfo,nfi->oi", at_sum, v)
    found["residual.bias"] = at_sum.sum((0, 1))
    for layer, h in enumerate(inputs):
        last = layer == len(inputs) - 1
        d = at_sum if last else e.outer(b(f"taps.{layer}")).reshape(h.shape)
        of_layer, below = gradients_of_attention(w, f"attention.{layer}", h, heads, d)
        found |= of_layer
        if layer == 0:
            found["into_attention.weight"] = torch.einsum("nfo,nfi->oi", below, v)
            found["into_attention.bias"] = below.sum((0, 1))
    return found
