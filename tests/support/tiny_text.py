"""A text and settings so small that a run on them takes a second."""

from __future__ import annotations

import gzip
import random
from pathlib import Path
from typing import Any

from bpfree.lab.data.text import Text, TextSettings, load_text
from bpfree.lab.settings import RunSettings, rule_settings
from bpfree.lab.settings.model import ModelSettings

SMALL = {"blocks": 2, "width": 16, "heads": 2, "hidden": 32}
HOW = TextSettings(vocabulary=280, context=16)


def lines(n: int, seed: int) -> list[str]:
    """Sentences of a grammar in which each word says much about the next."""
    choose = random.Random(seed).choice
    who, does, what = ["the cat", "a dog", "my bird"], ["sees", "hears", "feeds"], ["fish .", "trees .", "him 🙂 ."]
    return [f"{choose(who)} {choose(does)} {choose(what)}" for _ in range(n)]


def folder(path: Path) -> Path:
    """A folder with the three files, one of them packed."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "train.txt.gz").write_bytes(gzip.compress("\n".join(lines(300, 0)).encode(), mtime=0))
    (path / "valid.txt").write_text("\n".join(lines(40, 1)) + "\n", encoding="utf-8")
    (path / "test.txt").write_text("\n".join(lines(30, 2)), encoding="utf-8")
    return path


def text(path: Path) -> Text:
    return load_text(folder(path), HOW)


def settings(label: str = "DFA", **changes: Any) -> RunSettings:
    """Twelve steps, evaluated every four; dropout makes the random state matter."""
    model = ModelSettings("CausalTransformer", SMALL | {"dropout": 0.2}).describe()
    given: dict[str, Any] = {
        "label": label,
        "seed": 0,
        "rule": rule_settings(label, lr=0.01),
        "model": model,
        "task": "language",
    }
    given |= {"taps": ["blocks.*.tap"], "error_at": "below_head", "epochs": 3, "steps": 12, "batch_size": 8}
    return RunSettings(**(given | {"threads": 1} | changes))
