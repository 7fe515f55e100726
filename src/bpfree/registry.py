"""The registry of attachments: found by model, by a part of a model, or by a module that holds a model."""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Collection, Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

from torch import nn

from bpfree.errors import AlreadyAttachedError, BpfreeWarning

if TYPE_CHECKING:
    from bpfree.attachment import Attachment
    from bpfree.mechanisms.base import Mechanism
    from bpfree.plan import Plan

Member = TypeVar("Member")


class Known(Generic[Member]):
    """A weak set to which one thread may add while another one looks at its members."""

    def __init__(self) -> None:
        self._members: weakref.WeakSet[Member] = weakref.WeakSet()
        self._lock = threading.RLock()  # a destructor may add in the middle of an add

    def add(self, member: Member) -> None:
        """Add a member, which is not kept alive."""
        with self._lock:
            self._members.add(member)

    def __iter__(self) -> Iterator[Member]:
        """Those that there are now."""
        with self._lock:
            return iter(list(self._members))


MECHANISMS: Known[Mechanism] = Known()
"""Every mechanism; those in a model are kept alive by its hooks, and by nothing else."""

ATTACHMENTS: Known[Attachment] = Known()
"""Every attachment that somebody holds."""


def keep(attachment: Attachment) -> None:
    """Let the model's hooks keep what ``attachment`` is made of, so that it can be found when nobody holds it.

    They keep its attributes and not the object: a model whose attachment is lost is told from one whose user has it.
    """
    ATTACHMENTS.add(attachment)
    for part in attachment.parts():
        part.kept = (type(attachment), attachment.__dict__)


def attachments(model: nn.Module) -> list[Attachment]:
    """Return the attachments on ``model``, on parts of it, and on models that it is part of or shares layers with.

    Also those that nobody holds any more, and those that came with a copy: ``copy.deepcopy(model)`` has an attachment
    of its own.
    """
    found: dict[int, Attachment] = {}
    for mechanism in MECHANISMS:
        if _is_attached(mechanism) and _common(model, mechanism.plan):
            attachment = _attachment_of(mechanism)
            found[id(attachment)] = attachment
    places = {id(module): number for number, module in enumerate(model.modules())}
    return sorted(found.values(), key=lambda attachment: places.get(id(attachment.model), -1))


def detach_all(model: nn.Module) -> None:
    """Detach every attachment that :func:`attachments` finds for ``model``."""
    for attachment in attachments(model):
        attachment.detach()


def make_room(plan: Plan) -> None:
    """Take off a rule that is on the same model and whose attachment nobody holds; refuse any other.

    Raises:
        AlreadyAttachedError: The model, a part of it, a model that holds it or one that shares layers or taps with it
            has a rule.
    """
    ours = set(plan.model.modules())
    for mechanism in MECHANISMS:
        if not _is_attached(mechanism) or ours.isdisjoint(mechanism.plan.model.modules()):
            continue
        common = _common(plan.model, mechanism.plan)
        if mechanism.plan.model is plan.model and _held(mechanism) is None:
            warnings.warn(
                f"the model had {mechanism.rule} from an attachment that nobody holds any more: it was taken off. Call "
                "its detach() before you attach anew, or bpfree.detach_all(model).",
                BpfreeWarning,
                stacklevel=3,
            )
            _attachment_of(mechanism).detach()
        elif common:
            raise _already_attached(plan, mechanism, common)
        else:
            _require_own_taps(plan, mechanism)


def _require_own_taps(plan: Plan, other: Mechanism) -> None:
    theirs = set(other.plan.model.modules())
    shared = [name for name, module in plan.taps.items() if module in theirs]
    if shared:
        raise AlreadyAttachedError(
            f"the tap {_listed(shared)} is also part of another model, which has {other.rule}: that model's passes "
            "would reach it too. Give each model a module of its own, leave that tap out (taps=...), or take the other "
            "rule off."
        )


def _already_attached(plan: Plan, other: Mechanism, common: Collection[str]) -> AlreadyAttachedError:
    if plan.model is other.plan.model:
        who = f"the model has {other.rule} already"
    else:
        who = f"the model has {_listed(list(common))} in common with one that has {other.rule} already"
    return AlreadyAttachedError(
        f"{who}. Take it off with its attachment's detach(), or with bpfree.detach_all(model); "
        "bpfree.attachments(model) gives you the attachment, also that of a copied or loaded model."
    )


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) if name else "itself" for name in names[:4]) + (", ..." if len(names) > 4 else "")


def _common(model: nn.Module, plan: Plan) -> list[str]:
    """Return the names of the modules in ``model`` that are also part of the planned model, if they matter.

    A shared module matters if it holds parameters, is a tap or a place of the error, or is one of the two models.
    """
    theirs, marked = set(plan.model.modules()), {plan.model, *plan.errors.values(), *plan.taps.values()}
    return [
        name
        for name, module in model.named_modules()
        if module in theirs and (not name or module in marked or next(_own_parameters(module), None) is not None)
    ]


def _own_parameters(module: nn.Module) -> Iterator[nn.Parameter]:
    return module.parameters(recurse=False)


def _is_attached(mechanism: Mechanism) -> bool:
    return mechanism.kept is not None and mechanism.kept[1]["_attached"]


def _held(mechanism: Mechanism) -> Attachment | None:
    return next((one for one in ATTACHMENTS if any(part is mechanism for part in one.parts())), None)


def _attachment_of(mechanism: Mechanism) -> Attachment:
    held = _held(mechanism)
    if held is not None:
        return held
    assert mechanism.kept is not None
    kind, attributes = mechanism.kept
    attachment = kind.__new__(kind)
    object.__setattr__(attachment, "__dict__", attributes)
    ATTACHMENTS.add(attachment)
    return attachment
