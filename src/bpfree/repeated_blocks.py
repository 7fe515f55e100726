"""The repeated blocks of a model, and its head: found by structure alone, nothing is run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

_NUMBER = re.compile(r"\d+$")
_PARALLEL = re.compile(r"expert|branch|head|tower", re.IGNORECASE)
"""Names of lists whose modules run beside each other, not one after another."""
_INPUT = re.compile(r"embed|position", re.IGNORECASE)
"""Names of modules that lie before the blocks, wherever they are registered."""
_HEAD = re.compile(r"head|classifier|logits|readout|score|^(fc|out|output|decoder)$", re.IGNORECASE)
"""Names of modules that end a model, wherever they are registered."""
_SMALL = 0.1
"""Lists with less than this part of the largest list's parameters are no trunk: adapters, gates, side heads."""


@dataclass(frozen=True)
class Head:
    """The part of a model above the last block.

    Attributes:
        name: The last module with a weight matrix; if none has a matrix, the last one with parameters.
        outputs: The number of its outputs; 0 without a matrix.
        of_vocabulary: Whether it gives one number for each word of the model's vocabulary.
    """

    name: str
    outputs: int
    of_vocabulary: bool


def find_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Find the modules of one class that are numbered, hold weight matrices in submodules, and repeat.

    Stages (lists of blocks, or modules that consist mostly of one) are opened: a ResNet's blocks are found and not its
    four stages. The outermost lists count, so the layers of a transformer's block, or its experts, are none.

    Returns:
        The blocks by name in the order of registration; empty if there are none.
    """
    families = list(_families(model, ""))
    sizes = [sum(_size(block) for block in family.values()) for family in families]
    chosen = {
        name for family, size in zip(families, sizes, strict=True) if size >= _SMALL * max(sizes) for name in family
    }
    return {name: module for name, module in model.named_modules() if name in chosen}


def blocks_below_the_error(model: nn.Module) -> list[str]:
    """Return the names of the repeated blocks, without a last one at which the error is taken (``error_place``)."""
    blocks = find_blocks(model)
    names = list(blocks)
    return names[:-1] if names and error_place(model, blocks) == names[-1] else names


def error_place(model: nn.Module, blocks: Mapping[str, nn.Module]) -> str:
    """Return where the error is taken: at the last block if nothing or a vocabulary head follows, else at the head.

    Below a vocabulary head the error has fewer numbers, and the head is trained exactly. What lies between is trained
    exactly too: behind a norm, feedback would have to follow how it scales each token.
    """
    head = find_head(model, blocks)
    return list(blocks)[-1] if head is None or head.of_vocabulary else head.name


def find_head(model: nn.Module, blocks: Mapping[str, nn.Module]) -> Head | None:
    """Find what is registered behind the last block, or is called like a head; None where nothing has parameters."""
    above = _behind(model, list(blocks)[-1]) or _called_like_one(model, blocks)
    if not above:
        return None
    matrices = {name: matrix for name, module in above.items() if (matrix := _matrix(module)) is not None}
    if not matrices:
        return Head(list(above)[-1], 0, of_vocabulary=False)
    name, matrix = list(matrices.items())[-1]
    return Head(name, 0 if is_lazy(matrix) else len(matrix), _is_vocabulary(model, matrix))


def _called_like_one(model: nn.Module, blocks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Return layers outside the blocks whose names are those of heads."""
    return {
        name: module
        for name, module in model.named_modules()
        if _matrix(module) is not None
        and _HEAD.search(name.rpartition(".")[2])
        and not any(f"{name}.".startswith(f"{block}.") for block in blocks)
    }


def _behind(model: nn.Module, last: str) -> dict[str, nn.Module]:
    """Return the modules with parameters of their own that are registered behind the block ``last``."""
    modules = dict(model.named_modules())
    names = list(modules)
    # What is in a list is used block by block (the norms of a graph net), or is one of several heads.
    lists = [name for name, module in modules.items() if isinstance(module, nn.ModuleList)]
    return {
        name: modules[name]
        for name in names[names.index(last) + 1 :]
        if next(modules[name].parameters(recurse=False), None) is not None
        and not any(name.startswith(f"{above}.") for above in (last, *lists))
        and not _INPUT.search(name)
    }


def _families(module: nn.Module, name: str) -> Iterator[dict[str, nn.Module]]:
    """Return lists of blocks in ``module``, from the outside in."""
    siblings = [child for child in module.named_children() if _is_block(child[1])]
    repeated: set[str] = set()
    for family in _alike(siblings):
        found = [pair for child, member in family for pair in _opened(member, _join(name, child))]
        repeated.update(child for child, _ in family)
        yield dict(found)
    for child, member in siblings:
        if child not in repeated:
            yield from _families(member, _join(name, child))


def _alike(children: Sequence[tuple[str, nn.Module]]) -> Iterator[list[tuple[str, nn.Module]]]:
    """Return two or more children of one class whose names differ in the number at their end."""

    def kind(child: tuple[str, nn.Module]) -> tuple[str, str]:
        name, module = child
        numbered = _NUMBER.search(name)
        return (name[: numbered.start()] if numbered else f"{name} ", type(module).__qualname__)

    for (stem, _), members in groupby(sorted(children, key=kind), key=kind):
        family = list(members)
        if len(family) > 1 and not _PARALLEL.search(stem):
            yield family


def _opened(member: nn.Module, name: str) -> list[tuple[str, nn.Module]]:
    """Return the blocks that a stage consists of; the module itself if it is no stage."""
    if isinstance(member, nn.Sequential | nn.ModuleList):
        children = [child for child in member.named_children() if _has_matrix(child[1])]
        if children and all(_is_block(child) for _, child in children):
            return [pair for child, part in children for pair in _opened(part, _join(name, child))]
        return [(name, member)]
    # A stage holds its blocks itself (RegNet) or in a list beside what makes the tensor smaller (ConvNeXt, Swin).
    lists = [
        (child, part) for child, part in member.named_children() if isinstance(part, nn.Sequential | nn.ModuleList)
    ]
    # A dense block's layers are concatenated, not one after another.
    own = [] if isinstance(member, nn.ModuleDict) else [("", member)]
    for child, part in [*own, *lists]:
        inner = [pair for pair in part.named_children() if _is_block(pair[1]) and _matrices(pair[1]) > 1]
        for family in _alike(inner) if not _PARALLEL.search(child) else ():
            if 2 * sum(_size(block) for _, block in family) > _size(member):
                return [(_join(name, child, number), block) for number, block in family]
    return [(name, member)]


def _is_block(module: nn.Module) -> bool:
    """Return whether a module holds weight matrices in submodules."""
    return next(module.children(), None) is not None and _has_matrix(module)


def _has_matrix(module: nn.Module) -> bool:
    return _matrices(module) > 0


def _matrices(module: nn.Module) -> int:
    return sum(is_lazy(parameter) or parameter.dim() > 1 for parameter in module.parameters())


def _matrix(module: nn.Module) -> Tensor | None:
    return next((p for p in module.parameters(recurse=False) if is_lazy(p) or p.dim() > 1), None)


def _is_vocabulary(model: nn.Module, matrix: Tensor) -> bool:
    """Return whether ``matrix``, (outputs, inputs), has a row for each embedded word, and more rows than columns.

    A classifier of two classes may have the shape of a small embedding, such as that of token types.
    """
    embeddings = (module.weight for module in model.modules() if isinstance(module, nn.Embedding))
    return any(weight.shape == matrix.shape for weight in embeddings) and matrix.shape[0] > matrix.shape[1]


def _size(module: nn.Module) -> int:
    return sum(0 if is_lazy(parameter) else parameter.numel() for parameter in module.parameters())


def _join(*names: str) -> str:
    return ".".join(name for name in names if name)
