"""The length of a run, in passes over the data or in steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Length:
    """The parts of a run, each followed by an evaluation.

    Attributes:
        parts: The number of parts.
        steps: Steps a part, or None where each is a pass over the training data.
    """

    parts: int
    steps: int | None = None

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Length:
        """Return the length of a comparison's runs, from its ``settings``."""
        if not settings.get("steps"):
            return cls(settings.get("epochs") or 0)
        return cls(settings["evaluations"], settings["steps"] // settings["evaluations"])

    def describe(self) -> dict[str, int]:
        """Return the entries of a comparison's ``settings`` that :meth:`of` reads."""
        if self.steps is None:
            return {"epochs": self.parts}
        return {"steps": self.parts * self.steps, "evaluations": self.parts}

    @property
    def unit(self) -> str:
        """The unit, ``"epoch"`` or ``"step"``."""
        return "epoch" if self.steps is None else "step"

    @property
    def total(self) -> int:
        """The number of epochs or steps in a run."""
        return self.after(self.parts)

    @property
    def part(self) -> str:
        """The part of a run that a time is given for: ``"epoch"``, or ``"100 steps"``."""
        return "epoch" if self.steps is None else f"{self.steps:,} steps"

    def after(self, part: int) -> int:
        """Return the number of epochs or steps after this part; the first part is 1."""
        return part * (self.steps or 1)

    def place(self, parts: int, steps: int) -> str:
        """Return the place in a run after so many parts and so many steps of the next one, in words."""
        if self.steps is not None:
            return f"step {self.after(parts) + steps} of {self.total}"
        if steps:
            return f"step {steps} of epoch {parts + 1} of {self.parts}"
        return f"epoch {parts} of {self.parts}"
