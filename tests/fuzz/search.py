"""A long search: ``PYTHONPATH=tests python -m fuzz.search --models 2000 --seed 3``."""

from __future__ import annotations

import argparse
import os
import time
from collections import Counter

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch

from fuzz.descriptions import Model
from fuzz.found import FOUND
from fuzz.hunt import Tally, features, hunt, judge, sample, shrink
from fuzz.laws import LAWS


def main() -> None:
    """Search, and print a summary."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=int, default=300)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rules", type=int, default=3, help="how many rules are tried on each model, for each law")
    parser.add_argument("--laws", nargs="*", default=list(LAWS))
    parser.add_argument("--most", type=int, default=2, help="how many violations of each kind are made smaller")
    parser.add_argument("--found", action="store_true", help="try again what was found before, and search for nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.found:
        _print_found()
        return
    start = time.perf_counter()
    found = sample(given.models, given.seed)
    tally = hunt([LAWS[name] for name in given.laws], found, rules=given.rules, number=given.seed)
    _print_summary(tally, time.perf_counter() - start)
    _print_violations(tally, given.most)


def _print_found() -> None:
    """Say of every violation that was ever found what comes of it now."""
    counts: Counter[str] = Counter()
    for kind, cases in FOUND.items():
        print(f"\n## {kind}\n")
        for law, rule, model in cases:
            verdict = judge(LAWS[law], model, LAWS[law].variants[rule])
            counts[verdict.kind] += 1
            print(f"- {verdict.kind.upper()} `{law}`, {rule}: `{model!r}`")
            if verdict.text:
                print(f"  {verdict.text.splitlines()[0][:260]}")
    print(f"\n{counts.total()} tries: {', '.join(f'{count} {kind}' for kind, count in counts.items())}")


def _print_summary(tally: Tally, seconds: float) -> None:
    print(f"{tally.models} models, {tally.tries} tries of a law under a rule, {seconds:.0f} s\n")
    print(f"{'rule':32}{'tries':>7}{'holds':>7}{'refused':>9}{'told':>6}{'violated':>10}")
    for name in sorted({name for name, _ in tally.kinds}):
        counts = [tally.kinds[name, kind] for kind in ("holds", "refused", "told", "violated")]
        print(f"{name:32}{sum(counts):7}{counts[0]:7}{counts[1]:9}{counts[2]:6}{counts[3]:10}")
    print()
    for family, count in tally.refusals.most_common():
        print(f"{count:6} {family}")
    print()


def _print_violations(tally: Tally, most: int) -> None:
    """Make the violations smaller, ``most`` of every kind, and print them by what their models have in common."""
    print(f"{sum(map(len, tally.violations.values()))} violations in {len(tally.violations)} families")
    groups: dict[tuple[str, str], list[tuple[Model, str, str, str]]] = {}
    for (law, rule, family), cases in tally.violations.items():
        for model, variant, _ in sorted(cases, key=lambda case: len(repr(case[0])))[:most]:
            smallest = shrink(LAWS[law], model, variant, family)
            text = judge(LAWS[law], smallest, variant).text
            groups.setdefault((features(smallest), family), []).append((smallest, rule, law, text))
    for (common, family), found in sorted(groups.items()):
        rules, laws = sorted({rule for _, rule, _, _ in found}), sorted({law for _, _, law, _ in found})
        print(f"\n{common}: {family}\n  laws: {', '.join(laws)}\n  rules: {'; '.join(rules)}")
        model, rule, law, text = min(found, key=lambda case: len(repr(case[0])))
        print(f"  {law}, {rule}: {model!r}\n  {text[:300]}")


if __name__ == "__main__":
    main()
