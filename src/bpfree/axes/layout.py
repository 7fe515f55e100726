"""The roles of the axes of the error and of each tap: samples, positions, or features."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import replace

from bpfree.axes.place import Place, name_of_call
from bpfree.axes.sites import ErrorRows, Site
from bpfree.errors import TapShapeError
from bpfree.plan import Plan

ERROR = "error"
"""The error's name in ``sample_axes=``."""

_SINGLE_NUMBER = (
    "the error is taken at a single number, which has no batch dimension. A model that returns its loss needs "
    "error_at=NAME: the module whose output the loss compares with the targets."
)


def numbered(names: Sequence[str]) -> list[str]:
    """Return the names of calls of these modules, in order."""
    return [name_of_call(name, call + 1) for name, call in zip(names, _calls(names)[0], strict=True)]


def _calls(names: Sequence[str]) -> tuple[list[int], dict[str, int]]:
    """Return the number of each call among the calls of its module, and the number of calls of each module."""
    # A plain dictionary: the compiler follows it.
    counts: dict[str, int] = {}
    numbers = []
    for name in names:
        numbers.append(counts.get(name, 0))
        counts[name] = numbers[-1] + 1
    return numbers, counts


def tapped(
    names: Sequence[str],
    calls: Sequence[str],
    shapes: Sequence[Sequence[int]],
    channels: Mapping[str, int | None],
    notes: Mapping[str, str],
) -> list[Place]:
    """Return the calls of tap modules of these names, one of ``shapes`` each.

    ``channels`` are by the names of calls, ``notes`` by those of modules.
    """
    numbers, counts = _calls(names)
    found = zip(calls, names, shapes, numbers, strict=True)
    return [
        Place(call, name, tuple(shape), channels.get(call), number, counts[name], notes.get(name, ""))
        for call, name, shape, number in found
    ]


def lay_out(plan: Plan, error: Place, taps: Sequence[Place], lengths: set[str]) -> tuple[ErrorRows, tuple[Site, ...]]:
    """Return the rows of the error and the sites of one forward pass.

    The first axis is the samples. Where the error has its channels last, as a linear layer makes them, the axes between
    number rows too (tokens, nodes, points), as far as some tap has them in the same place; of images, channels first,
    they are features. Each tap has the rows that it shares with the error; ``plan.sample_axes`` and
    ``plan.batch_dims`` decide otherwise.

    Args:
        plan: The taps, the error's place and the axes that were asked for.
        error: Where the error is taken.
        taps: The calls of tap modules, in forward order.
        lengths: Names of modules whose tokens are not the error's, which had another length in an earlier pass; those
            that have one in this pass are added.

    Raises:
        TapShapeError: A tap does not share the error's samples, has no features, or sizes leave open what is what.
    """
    if not error.shape:
        raise TapShapeError(_SINGLE_NUMBER)
    asked = _asked(plan, error)
    axes = asked if asked is not None else _error_axes(plan, error, taps, lengths)
    rows = ErrorRows(error.sizes(axes), axes)
    if asked is None:
        _require_unambiguous(plan, error, axes, taps)
    of_taps = [_tap_axes(plan, tap, error, rows, lengths) for tap in taps]
    return rows, tuple(_site(plan, tap, of_tap, rows) for tap, of_tap in zip(taps, of_taps, strict=True))


def batch_dims(output: Sequence[int], others: Sequence[Sequence[int]], asked: int | None) -> int:
    """Return the number of leading batch dimensions that the shapes ``output`` and ``others`` share.

    All of the output but the last, where the others have them; else the first one alone.
    """
    if not output:
        raise TapShapeError(_SINGLE_NUMBER)
    dims = asked if asked is not None else max(len(output) - 1, 1)
    if asked is None and any(other[:dims] != output[:dims] for other in others):
        dims = 1
    return dims


def resized(sites: Sequence[Site], first: Sequence[int]) -> tuple[Site, ...]:
    """Return the same sites for a pass with other batch sizes and lengths; ``first`` is the first tap's shape."""
    one = sites[0]
    of_features = [axis for axis in range(len(first)) if axis not in one.axes]
    batch, features = tuple(first[axis] for axis in one.axes), tuple(first[axis] for axis in of_features)
    shape = (*batch, *one.error.shape[len(batch) :])
    rows = ErrorRows(shape, tuple(range(len(shape))))

    def now(site: Site) -> Site:
        longer = one.positions_share and site.positions_share and site.features[0] == one.features[0]
        sizes = (features[0], site.features[1]) if longer else site.features
        return replace(site, batch=shape[: len(site.batch)], features=sizes, error=rows)

    return tuple(now(site) for site in sites)


# -- what was asked for --------------------------------------------------------------------------------------------


def _asked(plan: Plan, place: Place) -> tuple[int, ...] | None:
    """Return the axes that the user says number the rows of a place; None if the user says nothing."""
    axes = _said(plan, place.module)
    if axes is None:
        return None
    dims = len(place.shape)
    found = tuple(axis % dims if -dims <= axis < dims else axis for axis in axes)
    if any(not 0 <= axis < dims for axis in found) or len(set(found)) < len(found):
        raise TapShapeError(
            f"{_named(place)} has the shape {place.shape}, and its axes {axes} are to number rows (sample_axes= or "
            f"batch_dims=): name different ones, of 0 to {dims - 1}.{place.note}"
        )
    return found


def _said(plan: Plan, name: str) -> tuple[int, ...] | None:
    said = plan.sample_axes
    if isinstance(said, Mapping):
        patterns = [key for key in said if key != ERROR and name != ERROR and fnmatch.fnmatchcase(name, key)]
        key = name if name in said else next(iter(patterns), None)
        said = None if key is None else said[key]
    if said is None:
        return None if plan.batch_dims is None else tuple(range(plan.batch_dims))
    return (said,) if isinstance(said, int) else tuple(said)


def _named(place: Place) -> str:
    return "the error" if place.module == ERROR else f"tap {place.name!r}"


# -- the error -----------------------------------------------------------------------------------------------------


def _error_axes(plan: Plan, error: Place, taps: Sequence[Place], lengths: set[str]) -> tuple[int, ...]:
    """Return the axes of the error that number rows: no more than some tap has too."""
    if len(error.shape) < 3:
        return (0,)
    if error.channel is not None and not error.channels_last:
        return (0,)
    full = tuple(range(len(error.shape) - 1))
    rows = error.sizes(full)
    depths = [_depth(plan, tap, rows, lengths) for tap in taps]
    # Where nothing says that the error's last axis is its channels, a tap must, or all must agree.
    said = error.channels_last or any(depth > 1 and tap.channels_last for depth, tap in zip(depths, taps, strict=True))
    if not said and min(depths, default=0) < len(full):
        return (0,)
    return full[: max([1, *depths])]


def _depth(plan: Plan, tap: Place, rows: tuple[int, ...], lengths: set[str]) -> int:
    """Return how many of ``rows`` a tap has."""
    axes = _asked(plan, tap)
    axes = _shared(tap, rows, lengths) if axes is None else axes
    return 2 if _is_step(tap, axes, rows) else len(axes)


def _require_unambiguous(plan: Plan, error: Place, axes: tuple[int, ...], taps: Sequence[Place]) -> None:
    """Raise TapShapeError where positions of the error may be those of a tap, which has them in another place."""
    if len(error.shape) < 3 or axes != (0,) or error.channels_last:
        return
    of_error = tuple(range(2, len(error.shape)))
    for tap in taps:
        of_tap = tap.positions((0,))
        if _asked(plan, tap) is None and tap.channels_last and of_tap and tap.sizes(of_tap) == error.sizes(of_error):
            per_position = (0, *of_error)
            raise TapShapeError(
                f"tap {tap.name!r} has the shape {tap.shape} and the error {error.shape}: the error's axes "
                f"{of_error} may be the tap's positions, axes {of_tap}. Say which: sample_axes={{'error': "
                f"{per_position}}} gives each position its own error, sample_axes={{'error': 0}} each sample the "
                f"errors of all its positions.{tap.note}"
            )


# -- the taps ------------------------------------------------------------------------------------------------------


def _shared(tap: Place, rows: tuple[int, ...], lengths: set[str]) -> tuple[int, ...]:
    """Return the leading axes of a tap that are also axes of the error, if the user says nothing."""
    most = max(len(tap.shape) - 1, 1)
    if tap.channels_at:
        most = min(most, tap.channels_at)
    if tap.module in lengths:
        most = 1
    count = 0
    while count < min(most, len(rows)) and tap.shape[count : count + 1] == rows[count : count + 1]:
        count += 1
    return tuple(range(count))


def _tap_axes(plan: Plan, tap: Place, error: Place, rows: ErrorRows, lengths: set[str]) -> tuple[int, ...]:
    asked = _asked(plan, tap)
    if asked is not None:
        if tap.sizes(asked) != rows.shape[: len(asked)] or (plan.batch_dims and len(asked) != len(rows.shape)):
            raise TapShapeError(
                f"tap {tap.name!r} has the shape {tap.shape} and the error {error.shape}: its axes {asked} do not have "
                f"the sizes of the error's rows, {rows.shape} at its axes {rows.axes}. Leave that tap out, take the "
                "error elsewhere (error_at=), or say otherwise which axes number rows (batch_dims=, sample_axes=)."
                f"{tap.note}"
            )
        return asked
    axes = _shared(tap, rows.shape, lengths)
    if not axes:
        raise _no_samples(tap, error, rows)
    if len(axes) == 1 < len(rows.shape) and len(tap.shape) > 2 and tap.shape[1] != rows.shape[1]:
        lengths.add(tap.module)
    return axes


def _no_samples(tap: Place, error: Place, rows: ErrorRows) -> TapShapeError:
    n = rows.shape[0]
    elsewhere = [axis for axis, size in enumerate(tap.shape) if size == n]
    of_error = [axis for axis, size in enumerate(error.shape) if tap.shape and size == tap.shape[0]]
    advice = (
        "Leave that tap out, take the error elsewhere (error_at=), or say which axes number samples (sample_axes=)."
    )
    if elsewhere:
        advice = (
            f"If axis {elsewhere[0]} of that tap is the samples, as in tensors with time first, attach with "
            f"sample_axes={{{tap.module!r}: {elsewhere[0]}}} ({{'*': {elsewhere[0]}}} for all taps). If not: {advice}"
        )
    elif of_error:
        axes = (of_error[0], *(axis for axis in rows.axes if axis != of_error[0]))
        advice = (
            f"If axis {of_error[0]} of the error is the samples, attach with "
            f"sample_axes={{'error': {axes if len(axes) > 1 else axes[0]}}}. If not: {advice}"
        )
    return TapShapeError(
        f"tap {tap.name!r} has the shape {tap.shape} and the error {error.shape}: they need the same first 1 "
        f"dimension(s), the batch. {advice}{tap.note}"
    )


def _is_step(tap: Place, axes: tuple[int, ...], rows: tuple[int, ...]) -> bool:
    """Return whether a tap lacks the error's second row axis, and is called once for each step of it instead."""
    return len(axes) == 1 and len(rows) > 1 and tap.calls == rows[1]


def _site(plan: Plan, tap: Place, axes: tuple[int, ...], rows: ErrorRows) -> Site:
    of_features = [axis for axis in range(len(tap.shape)) if axis not in axes]
    features = tap.sizes(of_features)
    if 0 in features:
        raise TapShapeError(
            f"tap {tap.name!r} has the shape {tap.shape}: it has no features to send a signal to.{tap.note}"
        )
    channel = _channel(tap, of_features)
    # Without batch_dims=, which says that what is left is features.
    share = plan.batch_dims is None and len(features) == 2 and channel == 1
    step = tap.call if _is_step(tap, axes, rows.shape) else None
    return Site(tap.name, tap.module, tap.sizes(axes), features, rows, axes, channel, share, step)


def _channel(tap: Place, of_features: Sequence[int]) -> int:
    """Return which of the axes of features is the channels: in doubt the last of a sequence, the first of maps."""
    if tap.channels_at in of_features:
        return of_features.index(tap.channels_at)
    return 1 if len(of_features) == 2 else 0
