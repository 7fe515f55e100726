"""The library's exceptions and warnings.

Every exception raised on purpose derives from :class:`BpfreeError`, every warning is a :class:`BpfreeWarning`. The
message names the tap, layer, file or option concerned and says what to do.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable
from numbers import Real

from torch import Tensor


class BpfreeError(Exception):
    """Base of every error that bpfree raises on purpose."""


class BpfreeWarning(UserWarning):
    """Base of every warning that bpfree gives: training goes on, perhaps otherwise than was meant."""


class OptionError(BpfreeError, ValueError):
    """An option has a value that means nothing; the message lists those that do."""


class TapSelectionError(BpfreeError, ValueError):
    """``taps=`` matched no module, or a name that the model does not have."""


class TapOutputError(BpfreeError, TypeError):
    """A tap's output is not a floating point tensor, so it cannot receive a signal."""


class TapShapeError(BpfreeError, ValueError):
    """A tap's features changed since the feedback was drawn, or do not share the error's batch dimensions."""


class FeedbackSizeError(BpfreeError, MemoryError):
    """Feedback, or what estimates it, would take more memory than ``Feedback(max_bytes=)`` allows."""


class ErrorPlacementError(BpfreeError, RuntimeError):
    """``error_at`` was not reached, was reached before a tap, or its output is not one tensor."""


class AlreadyAttachedError(BpfreeError, RuntimeError):
    """The model, or a part of it, already has a learning rule attached."""


class AlreadyShardedError(BpfreeError, RuntimeError):
    """The model was given to ``fully_shard`` before a learning rule was attached."""


class UsedRecordError(BpfreeError, RuntimeError):
    """A second backward pass was asked of one forward pass."""


class SecondDerivativeError(BpfreeError, RuntimeError):
    """Gradients of gradients were asked for, where a learning rule makes signals in the place of gradients."""


class SecondRunError(BpfreeError, RuntimeError):
    """A model cannot run a second time as it ran the first: its arguments or weights are other ones.

    So is a part that torch runs again by re-entrant autograd: its first run has no graph.
    """


class VerificationError(BpfreeError, RuntimeError):
    """A check of an attachment has found that the model would learn something else than the rule."""


class StreamingError(BpfreeError, RuntimeError):
    """A model cannot be run a second time, segment by segment, as it was the first time."""


class StageError(BpfreeError, ValueError):
    """A stage of a pipeline does not fit the rule or the other stages."""


class LostRankError(BpfreeError, RuntimeError):
    """A process of a distributed run is gone or hangs."""


class UnsupportedLayerError(BpfreeError, TypeError):
    """A rule cannot serve the model: none of its layers has the form that the rule needs, or one has no shape yet."""


class ForwardDerivativeError(BpfreeError, TypeError):
    """A layer has no forward-mode derivative, or no perturbation of the taps reaches the error."""


class FeedbackDivergedError(BpfreeError, ArithmeticError):
    """Feedback that learns has grown beyond measure: its learning rate is too large."""


class TargetsError(BpfreeError, ValueError):
    """The rule learns from targets, and none were given or they do not fit the output."""


class StateError(BpfreeError, ValueError):
    """A saved state does not fit this attachment."""


class CheckpointError(BpfreeError, RuntimeError):
    """A checkpoint cannot be written, or its files are damaged and there is none before it."""


class LoopError(BpfreeError, RuntimeError):
    """A training loop runs a model in a way that a learning rule cannot follow.

    By Lightning or transformers, within a transform of torch.func, or with tangents of forward mode.
    """


class MissingPackageError(BpfreeError, ImportError):
    """A package that bpfree needs only for this is not installed; the message names the extra that brings it."""


class NonFiniteError(BpfreeError, ArithmeticError):
    """The error that leaves the network holds NaN or infinity."""


def shape_of(given: object) -> str:
    """Return the words for a tensor's shape, or for the type of anything else, as messages say it."""
    if isinstance(given, Tensor):
        return f"a tensor of shape {tuple(given.shape)}"
    return f"of type {type(given).__name__}"


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a hint to append to a message: the valid name closest to ``name``, or all valid names."""
    names = list(valid)
    close = difflib.get_close_matches(name, names, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Valid: {', '.join(map(repr, names))}."


def choice(option: str, value: str, valid: Iterable[str]) -> None:
    """Raise :class:`OptionError` unless ``value`` is one of ``valid``."""
    names = list(valid)
    if value not in names:
        raise OptionError(f"{option}={value!r} is not known. {nearest(str(value), names)}")


def positive(option: str, value: float) -> None:
    """Raise :class:`OptionError` unless ``value`` is a number above 0."""
    if not _is_number(value) or not 0 < value < math.inf:
        raise OptionError(f"{option}={value!r} must be positive.")


def not_negative(option: str, value: float) -> None:
    """Raise :class:`OptionError` unless ``value`` is a number of 0 or more."""
    if not _is_number(value) or not value >= 0:
        raise OptionError(f"{option}={value!r} must be a number, 0 or more.")


def fraction(option: str, value: float, otherwise: str = "") -> None:
    """Raise :class:`OptionError` unless ``value`` lies in (0, 1]; ``otherwise`` says what would happen."""
    if not _is_number(value) or not 0 < value <= 1:
        raise OptionError(f"{option}={value!r} is not in (0, 1]{otherwise}.")


def _is_number(value: object) -> bool:
    # Callers are not type-checked.
    return isinstance(value, Real | Tensor)
