"""The rules that are tried, and those that must be backpropagation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import bpfree
from support.matrix import ROWS


@dataclass(frozen=True)
class Exact(bpfree.LayerwiseRule):
    """B is W: the limit in which a layerwise rule is backpropagation."""

    def draw(self, weight: Tensor, generator: torch.Generator) -> Tensor:
        return weight.clone()

    def backward_weight(self, weight: Tensor, kept: Tensor, generator: Any) -> Tensor:
        return weight


@dataclass(frozen=True)
class Variant:
    """A rule and how it is attached.

    Attributes:
        rule: The rule; for ``transported`` ones a direct rule whose projector is put in by the law.
        options: Arguments of ``bpfree.attach``.
        transported: Whether the signals are to be backpropagation's, found by a twin.
    """

    name: str
    rule: bpfree.Rule
    options: Mapping[str, Any] = field(default_factory=dict)
    transported: bool = False

    @property
    def is_direct(self) -> bool:
        return isinstance(self.rule, bpfree.DirectRule)

    @property
    def is_plain(self) -> bool:
        """Whether it stores its graph and has nothing that excludes another way."""
        return not self.options.get("streaming") and "threads" not in self.options and "window" not in self.options

    def with_options(self, **options: Any) -> Variant:
        """The same rule, attached otherwise."""
        return Variant(self.name, self.rule, {**self.options, **options}, self.transported)


VARIANTS = {row.name: Variant(row.name, row.rule, row.options) for row in ROWS.values()}
"""All rules in their main variants."""

FULL = 64
"""A window deeper than any made-up model."""

EXACT = {
    variant.name: variant
    for variant in (
        Variant("BP", bpfree.BP()),
        Variant("full window", bpfree.DFA(), {"window": FULL}),
        Variant("full window, DKP", bpfree.DKP(), {"window": FULL}),
        Variant("full window, GrAPE", bpfree.GrAPE(), {"window": FULL}),
        Variant("full window, Shallow", bpfree.Shallow(), {"window": FULL}),
        Variant("full window, B = W within", bpfree.DFA(), {"window": FULL, "within": Exact()}),
        Variant("B = W", Exact()),
        Variant("B = J", bpfree.DFA(), transported=True),
        Variant("B = J, streaming", bpfree.DFA(), {"streaming": True}, transported=True),
        Variant("B = J, 2 threads", bpfree.DFA(), {"threads": 2}, transported=True),
        Variant("B = J, B = W within", bpfree.DFA(), {"within": Exact()}, transported=True),
        Variant("B = J, alternate 2", bpfree.DFA(), {"alternate": 2}, transported=True),
        Variant("B = J, alternate 2, streaming", bpfree.DFA(), {"alternate": 2, "streaming": True}, transported=True),
        Variant("B = J, window 2", bpfree.DFA(), {"window": 2}, transported=True),
    )
}
"""Rules whose gradients must be backpropagation's."""
