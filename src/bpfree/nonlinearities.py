"""The modules that count as non-linearities: torch's classes, and classes of any library named and built like them."""

from __future__ import annotations

import re

from torch import nn
from torch.nn.parameter import is_lazy

KNOWN: tuple[type[nn.Module], ...] = (
    nn.CELU,
    nn.ELU,
    nn.GELU,
    nn.GLU,
    nn.Hardshrink,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.LeakyReLU,
    nn.LogSigmoid,
    nn.Mish,
    nn.PReLU,
    nn.ReLU,
    nn.RReLU,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softplus,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
    nn.Threshold,
)
"""Torch's own. Softmax is left out: it ends a network or weighs attention."""

_SUFFIX = re.compile(r"(?<=.)(jit|me|fn|func|function|layer|module|node|cell|\d+d)$")
_WORDS = re.compile(
    # Functions, wherever in the name they stand.
    "relu|gelu|silu|swish|mish|tanh|sigmoid|softplus|softsign|softshrink|squareplus|linearunit|snake|acon"
    # Spiking cells.
    "|leaky|lapicque|synaptic|izhikevich"
    # At the end of the name, so that SuperGlue and Contract are none.
    "|[cs]?elu$|glu$|maxout$|activations?$|nonlinearity$|neurons?$"
    # As the whole name.
    "|^act$|^alpha$|^atan$|^arctan$|^erf$|^sine?$|^cosine?$|^gaussian$|^square$"
)
_SPIKING = re.compile(r"(LIF|IAF)(?=[A-Z_\d]|$)|^[A-Z]?IF(Node|Cell|Neuron)?$")
"""Integrate-and-fire cells: the capitals tell LIFNode and QIFCell from Life and Shift."""
_OTHERWISE = re.compile(
    "softmax|softmin|norm|loss|drop|linear(?!unit)|attention|attn|pool|embed|encoding|conv|transform|flow|bijector"
    "|identity|integrator|mlp|ffn|block|similarity"
)
"""Words that name something else, as in SigmoidFocalLoss, LinearActivation or TanhTransform."""

_WITH_PROJECTION = frozenset({"gelu", "approximategelu", "geglu", "reglu", "swiglu", "sine", "rleaky", "rsynaptic"})
"""Names under which some libraries keep a linear layer and the non-linearity behind it in one module."""


def is_nonlinearity(module: nn.Module) -> bool:
    """Return whether ``module`` is a non-linearity: by its class, or by its class's name and its parameters.

    Nothing is run. A class of any library counts if its name says so (NewGELUActivation, ReLUSquared, LIFNode, Leaky)
    and if it holds no weights, or only vectors, as a PReLU does.
    """
    if isinstance(module, KNOWN):
        return True
    name = type(module).__name__
    stem = _SUFFIX.sub("", name.lower())
    if _OTHERWISE.search(stem) or not (_WORDS.search(stem) or _SPIKING.search(name)):
        return False
    # A list or dictionary of modules is never called itself.
    return not isinstance(module, nn.ModuleList | nn.ModuleDict) and _is_built_like_one(module, stem)


def _is_built_like_one(module: nn.Module, stem: str) -> bool:
    weighted = [part for part in module.modules() if next(part.parameters(recurse=False), None) is not None]
    if weighted in ([], [module]):
        return all(not is_lazy(p) and p.numel() == max(p.shape, default=1) for p in module.parameters(recurse=False))
    return stem in _WITH_PROJECTION and len(weighted) == 1 and isinstance(weighted[0], nn.Linear)
