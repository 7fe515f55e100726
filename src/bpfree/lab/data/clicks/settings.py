"""The options for reading a log of clicks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from bpfree.lab.errors import SettingsError

MeasuredOn: TypeAlias = Literal["validation", "test"]


@dataclass(frozen=True, kw_only=True)
class ClickSettings:
    """The options for reading a log of clicks.

    Args:
        schema: The file that says which columns the log has and what is done with them, or the name of one of the
            package's own; needed by --data clicks.
        measured_on: The part that AUC and log loss are measured on. Choose settings on validation, then measure once on
            test.
    """

    schema: str | None = None
    measured_on: MeasuredOn = "validation"

    def __post_init__(self) -> None:
        if self.schema == "":
            raise SettingsError("--schema: it names nothing; leave it out.")
