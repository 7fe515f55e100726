"""Check that the rows of the layout are the model's: no sample enters another sample's signal, nor a token another's.

Axes of equal size need not number the same rows, for example with time first and as many steps as samples. The graph
of a plain pass decides: there, the error of one row must reach only the same row of a tap.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from bpfree.axes.channels import channel_axis
from bpfree.axes.sites import Site
from bpfree.verification.finding import Finding

CHECK = "rows"


def check_rows(outputs: Sequence[Tensor], error: Tensor, sites: Sequence[Site], *, asked: bool) -> list[Finding]:
    """Return findings for every part of the layout that the graph contradicts.

    Args:
        outputs: The outputs of the taps in a pass that is not cut.
        error: The tensor where the error is taken, with its graph down to the taps; the graph is kept.
        sites: The taps with their layout.
        asked: True if the user has said which axes number rows of the error: then finer rows are not looked for.
    """
    pairs = [(site, h) for site, h in zip(sites, outputs, strict=True) if h.requires_grad]
    if not pairs or not error.requires_grad or error.numel() == 0:
        return []
    seen = _Graph(error, [site for site, _ in pairs], [h for _, h in pairs])
    found = _of_samples(seen) + _of_steps(seen)
    return found if found or asked else _finer(seen)


class _Graph:
    """The graph of one plain pass, asked how far rows of its error reach.

    Attributes:
        error: The error's place.
        sites: The taps that a gradient can reach.
        axes: The axes of the error that number rows.
    """

    def __init__(self, error: Tensor, sites: Sequence[Site], outputs: Sequence[Tensor]) -> None:
        self.error, self.sites, self._outputs = error, sites, outputs
        self.axes = sites[0].error.axes
        self._weights = torch.randn(error.shape, generator=torch.Generator().manual_seed(0)).to(error)

    def reached(self, places: dict[int, int]) -> list[Tensor | None]:
        """Return a mask of the numbers of each tap's output that the error reaches from ``places`` (index by axis)."""
        mask = torch.zeros_like(self.error)
        mask[tuple(places.get(axis, slice(None)) for axis in range(mask.dim()))] = 1
        gradients = torch.autograd.grad(
            self.error, self._outputs, self._weights * mask, retain_graph=True, allow_unused=True
        )
        return [None if gradient is None else _support(gradient) for gradient in gradients]

    def probes(self, axis: int) -> list[int]:
        """Return the first and the last place along an axis of the error."""
        return sorted({0, self.error.shape[axis] - 1})


def _support(gradient: Tensor) -> Tensor | None:
    # Rounding may leave a trace where there is nothing.
    size = gradient.abs()
    largest = size.max() if size.numel() else size.new_zeros(())
    return (size > largest * torch.finfo(gradient.dtype).eps ** 0.75) if bool(largest > 0) else None


def _within(support: Tensor, axis: int, place: int) -> bool:
    """Return whether only ``place`` along an axis is reached."""
    others = [other for other in range(support.dim()) if other != axis]
    along = support.any(tuple(others)) if others else support
    return int(along.sum()) == int(along[place])


def _alone(reached: Sequence[tuple[int, Tensor]], axis: int) -> bool:
    """Return whether each place of the error reaches only its own place along a tap's axis."""
    return all(support.shape[axis] > place and _within(support, axis, place) for place, support in reached)


def _of_samples(seen: _Graph) -> list[Finding]:
    """Compare samples: the first row axis of the error and of every tap."""
    axis = seen.axes[0]
    if seen.error.shape[axis] < 2:
        return []
    probes = [(place, seen.reached({axis: place})) for place in seen.probes(axis)]
    found, touching = [], []
    for number, site in enumerate(seen.sites):
        reached = [(place, support) for place, all_ in probes if (support := all_[number]) is not None]
        if not reached or _alone(reached, site.axes[0]):
            continue
        dims, n = reached[0][1].dim(), seen.error.shape[axis]
        elsewhere = [a for a in range(dims) if reached[0][1].shape[a] == n and _alone(reached, a)]
        if elsewhere:
            found.append(_other_axis(site, elsewhere[0]))
        else:
            touching.append(site.name)
    return found + _touching(seen, touching)


def _other_axis(site: Site, axis: int) -> Finding:
    axes = (axis, *(other for other in site.axes[1:] if other != axis))
    if len(axes) < len(site.axes):  # the two have changed places
        axes = (*axes, site.axes[0])
    said = axes if len(axes) > 1 else axes[0]
    return Finding(
        CHECK,
        site.name,
        f"its samples were taken to be axis {site.axes[0]}, but the error of one sample reaches one place of axis "
        f"{axis} and several of axis {site.axes[0]}: samples would learn from each other's errors.",
        f"Attach with sample_axes={{{site.module!r}: {said}}}.",
    )


def _touching(seen: _Graph, names: Sequence[str]) -> list[Finding]:
    """Return the finding for taps where the error of one sample reaches several samples."""
    if not names:
        return []
    told = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
    if len(seen.axes) > 1 and _second_is_apart(seen):
        first, second, *others = seen.axes
        return [
            Finding(
                CHECK,
                told,
                f"rows of the error along its axis {second} do not touch each other, those along axis {first}, taken "
                "to be the samples, do.",
                f"If the samples are axis {second}, attach with sample_axes={(second, first, *others)} "
                "where the rule looks at samples (ForwardGradient).",
                wrong=False,
            )
        ]
    return [
        Finding(
            CHECK,
            told,
            "the error of one sample reaches others there, as with batch statistics or attention over samples.",
            "The rule gives each sample the signal of its own error; if that is not meant, take the model to eval() or "
            "use another normalization.",
            wrong=False,
        )
    ]


def _second_is_apart(seen: _Graph) -> bool:
    """Return whether rows along the second row axis do not reach each other."""
    axis = seen.axes[1]
    if seen.error.shape[axis] < 2:
        return False
    probes = [(place, seen.reached({axis: place})) for place in seen.probes(axis)]
    full = [number for number, site in enumerate(seen.sites) if len(site.axes) > 1]
    reached = [[(place, support) for place, all_ in probes if (support := all_[number]) is not None] for number in full]
    return any(reached) and all(
        _alone(one, seen.sites[number].axes[1]) for number, one in zip(full, reached, strict=True)
    )


def _of_steps(seen: _Graph) -> list[Finding]:
    """Return findings on loops over time: the error of the first step must reach no later call."""
    if not any(site.step for site in seen.sites):
        return []
    reached = seen.reached({seen.axes[1]: 0})
    late = [site for site, support in zip(seen.sites, reached, strict=True) if site.step and support is not None]
    if not late:
        return []
    return [
        Finding(
            CHECK,
            late[0].module,
            f"it is called as often as the error has places along axis {seen.axes[1]}, which were taken for the steps "
            f"of a loop over time; but the error of the first one reaches the call {late[0].name!r}.",
            f"Attach with sample_axes={{'error': {seen.axes[0]}}}: each call then gets the errors of all steps.",
        )
    ]


def _finer(seen: _Graph) -> list[Finding]:
    """Return findings on rows laid out as features: parts of the error that reach their own places at every tap."""
    features = [axis for axis in range(seen.error.dim()) if axis not in seen.axes]
    channel = channel_axis(seen.error)
    apart: dict[int, int] = {}
    for axis in features:
        length = seen.error.shape[axis]
        if len(features) < 2 or length < 2 or (channel is not None and axis == channel % seen.error.dim()):
            continue
        probes = [(place, seen.reached({axis: place})) for place in seen.probes(axis)]
        own = [_own_axis(seen, number, length, probes) for number in range(len(seen.sites))]
        if None not in own:
            apart[axis] = own[0] or 0
    # Of images, channels first, it is the custom to take them whole.
    return [_is_finer(seen, apart, wrong=channel in (-1, None))] if apart else []


def _own_axis(
    seen: _Graph, number: int, length: int, probes: Sequence[tuple[int, Sequence[Tensor | None]]]
) -> int | None:
    """Return the axis of a tap, not of its rows, along which places of the error reach only their own places."""
    site = seen.sites[number]
    reached = [(place, support) for place, all_ in probes if (support := all_[number]) is not None]
    if not reached:
        return None
    shape = reached[0][1].shape
    free = [axis for axis in range(len(shape)) if axis not in site.axes and shape[axis] == length]
    return next((axis for axis in free if _alone(reached, axis)), None)


def _is_finer(seen: _Graph, apart: dict[int, int], *, wrong: bool) -> Finding:
    site, of_error, of_tap = seen.sites[0], tuple(apart), tuple(apart.values())
    axes = {"error": (*seen.axes, *of_error), "*": (*site.axes, *of_tap)}
    return Finding(
        CHECK,
        site.name,
        f"places along the axes {of_error} of the error reach their own places along {of_tap} of every tap and no "
        "other, but were taken for features of one row: each would learn from the errors of the others.",
        f"Attach with sample_axes={axes}, or with {{'error': {seen.axes[0]}}} if it is meant.",
        wrong=wrong,
    )
