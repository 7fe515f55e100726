"""What a class can be given: what Python lets it be given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from bpfree.lab.settings.signatures import arguments


class Base:
    def __init__(self, width: int = 1, *, depth: int = 2) -> None:
        pass


class Nothing:
    pass


class Inherits(Base):
    pass


class Adds(Base):
    def __init__(self, *args: Any, extra: int = 3, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


class AddsToThat(Adds):
    def __init__(self, more: int = 4, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class Hides(Base):
    def __init__(self, extra: int = 3) -> None:
        super().__init__()


class HandsOnToWhatHides(Hides):
    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)


class TakesAll:
    def __init__(self, width: int = 1, **options: Any) -> None:
        pass


@dataclass
class Data:
    width: int = 1


@pytest.mark.parametrize("kind", [Base, Nothing, Inherits, Adds, AddsToThat, Hides, HandsOnToWhatHides, TakesAll, Data])
def test_what_a_class_can_be_given_is_what_it_accepts(kind: type) -> None:
    def accepts(name: str) -> bool:
        try:
            kind(**{name: 0})
        except TypeError:
            return False
        return True

    taken = arguments(kind)
    known = ("width", "depth", "extra", "more", "args", "kwargs", "options", "unheard_of")
    assert taken.more == accepts("unheard_of")
    assert {name for name in known if taken.more or name in taken.names} == {name for name in known if accepts(name)}
    assert not {"self", "args", "kwargs", "options"} & set(taken.names)
