"""What the measurements have to reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from common import nets
from plots.measured import THROUGHPUT_RATIO, Measured

CHECKPOINTED = "BP, checkpointed"
IN_BACKWARD = "optimizer in backward"
STREAMING = ("streaming DFA", "streaming DRTP")


@dataclass(frozen=True)
class Target:
    """One number and its limit.

    Attributes:
        what: What is compared with what.
        where: On which network.
        limit: The number to reach.
        at_least: Whether more is better.
        measured: The number (``median``) and, for times, its quartiles; None where nothing was measured.
    """

    what: str
    where: str
    limit: float
    measured: dict[str, Any] | None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        """Whether the limit is kept; None where nothing was measured."""
        if self.measured is None:
            return None
        median = self.measured["median"]
        return median >= self.limit if self.at_least else median <= self.limit


_STEP_LIMITS: dict[str, dict[str, float]] = {
    "16x2048@256": {"DFA": 0.70},
    "64x256@64": {"DFA": 0.85},
    "8x1024@256": {"compiled DFA": 0.78, "bf16 DFA": 0.40, "DFA, window=2": 1.00, "FDFA, every=8": 0.85},
    "16x1024@256": {"FDFA, every=8": 0.85},
    "8x512@256/10000": {"DFA, rank=64": 0.85},
    "8x64@256": {"DFA": 0.95},
    "8x256@64": {"FA": 1.08},
    "8x256@256": {"FDFA, every=8": 1.10},
    "cnn@64": {"DFA": 0.80, "LMS, channels, every=4": 1.00, "LMS, channels, every=4, alternate=2": 0.95},
    "12blocks@16": {"FDFA, every=16": 1.10, "FDFA, every=16, alternate=2": 1.05},
    "gpt2@4": {"FDFA, every=16": 1.15, "DFA, alternate=2": 1.00, "streaming DFA": 1.35},
}
STEP_LIMITS = {
    (nets.net(text).name, subject): limit for text, limits in _STEP_LIMITS.items() for subject, limit in limits.items()
}
"""Of a step's time beside its reference's."""

MEMORY_TIME_LIMITS = {"BP": 1.10, CHECKPOINTED: 0.85}
"""Of a streaming step's time beside these."""

GROWTH_LIMIT = 1.1
"""Of memory from the least depth to the greatest."""

PIPELINE_LIMITS: dict[tuple[str, str, str], float] = {
    ("2 processes", "synchronous DFA", "GPipe-BP"): 1.5,
    ("2 processes", "synchronous DFA", "1F1B-BP"): 1.35,
    ("8 stages, simulated", "direct, synchronous", "GPipe"): 1.9,
    ("8 stages, simulated", "direct, asynchronous", "GPipe"): 2.6,
}
"""Of a schedule's throughput beside another's."""


def targets(measured: Measured) -> list[Target]:
    """Every target with what was measured."""
    return [*_steps(measured), *_memory(measured), *_pipelines(measured)]


def _steps(measured: Measured) -> list[Target]:
    found = []
    for (net, subject), limit in STEP_LIMITS.items():
        rows = measured.find("step", net=net, subject=subject)
        reference = rows[0]["reference"] if rows else "BP"
        time = rows[0]["time"] if rows else None
        found.append(Target(f"time of a step, {subject} ÷ {reference}", net, limit, time))
    return found


def _memory(measured: Measured) -> list[Target]:
    found = _growths(measured)
    for subject in STREAMING:
        for reference, limit in MEMORY_TIME_LIMITS.items():
            what = f"time of a step, {subject} ÷ {reference}"
            rows = measured.find("memory", subject=subject, reference=reference)
            measurements = [(row["net"], row["time"]) for row in rows] or [("", None)]
            found += [Target(what, net, limit, time) for net, time in measurements]
    return found


def _growths(measured: Measured) -> list[Target]:
    wanted = [(subject, "activation") for subject in STREAMING]
    wanted += [(f"{subject}, {IN_BACKWARD}", part) for subject in STREAMING for part in ("activation", "gradient")]
    return [_growth(measured, subject, part) for subject, part in wanted]


def _growth(measured: Measured, subject: str, part: str) -> Target:
    found = measured.growth(subject, f"{part}_bytes")
    what = f"memory of {part}s, {subject}"
    if found is None:
        return Target(what, "", GROWTH_LIMIT, None)
    first, last, growth = found
    return Target(what, f"depth {last} ÷ depth {first}", GROWTH_LIMIT, {"median": growth})


def _pipelines(measured: Measured) -> list[Target]:
    found = []
    for (axis, subject, reference), limit in PIPELINE_LIMITS.items():
        rows = measured.find("pipeline", axis=axis, subject=subject, reference=reference)
        what = f"throughput, {subject} ÷ {reference}"
        found += [Target(what, f"{row['net']}, {axis}", limit, row[THROUGHPUT_RATIO], at_least=True) for row in rows]
    return found
