"""Trying the laws on many models: what came of each try, and the smallest model for every violation."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace

from hypothesis import HealthCheck, Phase, given, seed, settings

import bpfree
from fuzz.descriptions import Activation, Dense, Model, Part, is_sound, reductions, walk
from fuzz.grammar import models
from fuzz.laws import Law
from fuzz.passes import detach_learners, listening, runs
from fuzz.variants import Variant

_USUAL = ("is in no optimizer", "the model ends in a")
"""Warnings that excuse no wrong number."""


@dataclass(frozen=True)
class Verdict:
    """What came of one law on one model under one rule.

    Attributes:
        kind: ``"holds"``, ``"refused"`` (an error of the library by name), ``"told"`` (the law does not hold, and a
            warning says so) or ``"violated"``.
        text: What was said, or what is wrong.
    """

    kind: str
    text: str = ""

    @property
    def family(self) -> str:
        """The text without what differs from model to model."""
        if self.kind == "violated" and not self.text.startswith("raw"):
            return self.text.partition(":")[0]
        text = re.sub(r"'[^']*'|\b[\w.]*\.\d[\w.]*|-?\d[\d.e+-]*|\([^)]*\)", "_", self.text)
        return re.sub(r"(_[,;]? ?)+", "_ ", text)[:70].strip()


def judge(law: Law, model: Model, variant: Variant) -> Verdict:
    """Try one law."""
    with listening() as told:
        try:
            law.check(model, variant, told)
            found = Verdict("holds")
        except bpfree.BpfreeError as refusal:
            found = Verdict("refused", f"{type(refusal).__name__}: {refusal}")
        except AssertionError as violation:
            found = Verdict("violated", str(violation) or repr(violation))
        except Exception as crash:
            found = Verdict("violated", f"raw {type(crash).__name__}: {crash}")
        finally:
            detach_learners()
    said = [message for message in told.messages if not any(part in message for part in _USUAL)]
    if found.kind == "violated" and said and not found.text.startswith("raw"):
        return Verdict("told", said[0])
    return found


def sample(count: int, number: int) -> list[Model]:
    """Different models, the same ones for a number at every call."""
    found: dict[Model, None] = {}
    for further in range(100):
        if len(found) >= count:
            break
        drawn = _drawn(count - len(found), 1000 * number + further)
        found |= dict.fromkeys(model for model in drawn if runs(model))
    return list(found)[:count]


def _drawn(count: int, number: int) -> list[Model]:
    found: list[Model] = []

    @seed(number)
    @settings(
        max_examples=count + count // 10 + 1,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(models())
    def collect(model: Model) -> None:
        found.append(model)

    collect()
    return found


def deal(law: Law, count: int, generator: random.Random) -> Iterator[list[Variant]]:
    """Some of the rules that a law is for, again and again, so that every rule meets as many models."""
    deck: list[Variant] = []
    while True:
        while len(deck) < count:
            deck += generator.sample(list(law.variants.values()), len(law.variants))
        yield deck[:count]
        del deck[:count]


@dataclass
class Tally:
    """What came of all tries.

    Attributes:
        kinds: Verdicts by rule and kind.
        refusals: The families of refusals and warnings.
        violations: By law and family: the models, and the rules they occurred under.
    """

    models: int = 0
    tries: int = 0
    kinds: Counter[tuple[str, str]] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    violations: dict[tuple[str, str, str], list[tuple[Model, Variant, str]]] = field(default_factory=dict)

    def add(self, law: Law, model: Model, variant: Variant, verdict: Verdict) -> None:
        """Count one verdict."""
        self.tries += 1
        self.kinds[variant.name, verdict.kind] += 1
        if verdict.kind in ("refused", "told"):
            self.refusals[f"{verdict.kind}: {verdict.family}"] += 1
        if verdict.kind == "violated":
            key = (law.name, variant.name, verdict.family)
            self.violations.setdefault(key, []).append((model, variant, verdict.text))

    def accepted(self, variant: str) -> float:
        """The share of tries in which a rule accepted the model."""
        total = sum(count for (name, _), count in self.kinds.items() if name == variant)
        return 1 - self.kinds[variant, "refused"] / max(total, 1)


def hunt(laws: Iterable[Law], found: Sequence[Model], *, rules: int, number: int) -> Tally:
    """Try the laws on models, each under some rules."""
    tally = Tally(models=len(found))
    for law in laws:
        generator = random.Random(f"{law.name} {number}")
        served = [model for model in found if law.needs(model)]
        for model, variants in zip(served, deal(law, rules, generator), strict=False):
            for variant in variants:
                tally.add(law, model, variant, judge(law, model, variant))
    return tally


def shrink(law: Law, model: Model, variant: Variant, family: str, tries: int = 200) -> Model:
    """A smaller model on which the same law is violated in the same way."""
    seen = {model}
    while True:
        for smaller in reductions(model):
            if smaller in seen or not tries:
                continue
            seen.add(smaller)
            if not is_sound(smaller) or not law.needs(smaller) or not runs(smaller):
                continue
            tries -= 1
            verdict = judge(law, smaller, variant)
            if verdict.kind == "violated" and verdict.family == family:
                model = smaller
                break
        else:
            return model


def features(model: Model) -> str:
    """What is not plain about a model: models that violate a law for one reason have these in common."""
    found = {repr(_bare(part)) for part in walk(model) if not isinstance(part, Model | Dense | Activation)}
    found |= {f"Dense({part.kind})" for part in walk(model) if isinstance(part, Dense) and part.kind != "plain"}
    found |= {
        f"Activation({part.form})" for part in walk(model) if isinstance(part, Activation) and part.form != "module"
    }
    found |= {
        f"Activation({part.function})"
        for part in walk(model)
        if isinstance(part, Activation) and part.function == "spike"
    }
    told = ((option.name, getattr(model, option.name)) for option in fields(model))
    found |= {
        f"{name}={value}"
        for (name, value), option in zip(told, fields(model), strict=True)
        if name != "parts" and value != option.default
    }
    return " ".join(sorted(found)) or "plain"


def _bare(part: Part) -> Part:
    return replace(
        part, **{option.name: () for option in fields(part) if isinstance(getattr(part, option.name), tuple)}
    )
