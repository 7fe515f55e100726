"""Suggest where feedback enters and where the error is taken, from what a model is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from bpfree.errors import TapSelectionError
from bpfree.repeated_blocks import Head, blocks_below_the_error, error_place, find_blocks, find_head
from bpfree.tabulate import fold, fold_names, tabulate
from bpfree.taps import Tap, nothing_to_tap, select_taps


@dataclass(frozen=True)
class TapSuggestion:
    """The suggested places for feedback, made by :func:`suggest_taps`. ``print`` it for a table.

    Attributes:
        taps: Names of the repeated blocks, for ``attach(..., taps=suggestion.taps)``. None if the model has none; then
            ``attach`` taps every non-linearity, as by default.
        error_at: The name of the module at whose output the error is taken; None is the model's output.
        text: The text that ``print`` shows.
    """

    taps: tuple[str, ...] | None
    error_at: str | None
    text: str

    def __str__(self) -> str:
        return self.text


def suggest_taps(model: nn.Module) -> TapSuggestion:
    """Name the repeated blocks of a transformer, a residual net or a graph net, and the head above them.

    ``bpfree.attach(model, rule, taps="blocks")`` uses it. Only the modules are looked at, and nothing is run: a block
    is one of several modules of one class that are numbered and hold layers; the head is the last layer behind them.
    Below a vocabulary head (of the shape of an embedding) the error is taken at the last block, and what is above it is
    trained exactly. A model without
    numbered blocks gets the default, every non-linearity. Places that the model marks itself, by :class:`bpfree.Tap`
    modules, are shown besides. Look at the suggestion before you train: what a model's code does between its modules
    is not seen, and of several heads the last one is named.

    Args:
        model: Any module.

    Returns:
        Taps and ``error_at``; ``print`` shows them with their classes and sizes.

    Raises:
        TapSelectionError: The model has neither repeated blocks nor non-linearity modules.
    """
    blocks = find_blocks(model)
    if not blocks:
        found = list(select_taps(model, None))
        if not found:
            raise nothing_to_tap(model)
        return TapSuggestion(None, None, _without_blocks(model, found))
    names, error_at = blocks_below_the_error(model), error_place(model, blocks)
    rows = fold([_row(name, blocks[name]) for name in names])
    lines = [
        f'{len(names)} blocks of {type(model).__name__}, for attach(model, rule, taps="blocks"):',
        *tabulate(["tap", "class", "parameters"], rows),
        f"error_at={error_at!r}: {_about(find_head(model, blocks))}",
        *_own_taps(model),
    ]
    return TapSuggestion(tuple(names), error_at, "\n".join(lines))


def suggested_blocks(model: nn.Module) -> TapSuggestion:
    """Return the suggestion for ``taps="blocks"``.

    Raises:
        TapSelectionError: The model has no repeated blocks.
    """
    suggestion = suggest_taps(model)
    if suggestion.taps is None:
        raise TapSelectionError(
            "taps='blocks': the model has no repeated blocks, several numbered modules of one class that hold layers "
            "(h.0, h.1, ...). Leave taps out to tap every non-linearity, or name modules."
        )
    return suggestion


def _row(name: str, block: nn.Module) -> list[str]:
    return [name, type(block).__name__, f"{sum(parameter.numel() for parameter in block.parameters()):,}"]


def _own_taps(model: nn.Module) -> list[str]:
    """Return a line about the places that the model itself marks, if it does."""
    names = [name for name, module in model.named_modules() if isinstance(module, Tap)]
    if not names:
        return []
    return [f"The model marks places itself, which taps=bpfree.Tap takes: {', '.join(fold_names(names))}."]


def _about(head: Head | None) -> str:
    if head is None:
        return "the last block, which ends the model."
    if head.of_vocabulary:
        return (
            f"the last block. The vocabulary head {head.name} ({head.outputs:,} outputs) and what lies between are "
            "trained exactly."
        )
    return f"the last layer, {head.outputs:,} outputs." if head.outputs else "the last module with parameters."


def _without_blocks(model: nn.Module, found: Sequence[str]) -> str:
    return (
        f"{type(model).__name__} has no repeated blocks: leave taps out, and feedback enters behind every "
        f"non-linearity ({', '.join(fold_names(found))})."
    )
