"""A comparison of language models with made-up numbers: many taps, and text after each evaluation."""

from __future__ import annotations

import math
from typing import Any

from support import fake_comparison

KINDS = {"norm1_tap": 0.2, "feed_forward.hidden_tap": 0.1, "tap": 0.3}
LAYERS, EVALUATIONS, STEPS = 6, 8, 100
LABELS = ["BP", "Shallow", "DFA", "FDFA"]
PROMPT = "First Citizen:\nBefore we proceed"
TAPS = ["embedding_tap", *(f"blocks.{layer}.{kind}" for layer in range(LAYERS) for kind in KINDS)]


def cosine(label: str, tap: str, epoch: int) -> float | None:
    """Higher layers and later evaluations are better aligned, and the kinds differ."""
    if label == "Shallow":
        return None
    if label == "BP":
        return 1.0
    if tap == "embedding_tap":
        return 0.05
    _, layer, kind = tap.split(".", 2)
    learned = 0.5 if label == "FDFA" else 0.05
    return KINDS[kind] + 0.02 * int(layer) + learned * (1 - math.exp(-epoch / 3))


def sample(label: str, epoch: int) -> dict[str, Any]:
    text = f" any further, hear {label} speak.\n\nAll:\nSpeak, speak <b>{epoch}</b> & {{more}}. " * 3
    return {"prompt": PROMPT, "text": text, "temperature": 0.8, "seed": 0}


def record(label: str, epoch: int, *, text: bool) -> dict[str, Any]:
    loss = {"BP": 4.1, "Shallow": 6.0, "DFA": 5.6, "FDFA": 4.2}[label] + 2 * math.exp(-epoch / 2)
    aligned = [
        {"name": tap, "cosine_mean": cosine(label, tap, epoch), "cosine_std": 0.1, "n_valid": 2048} for tap in TAPS
    ]
    found: dict[str, Any] = {
        "epoch": epoch,
        "step": epoch * STEPS,
        "train_loss": loss - 0.1,
        "eval_loss": loss,
        "seconds": 9.0,
    }
    found |= {"eval_perplexity": math.exp(loss), "train_perplexity": math.exp(loss - 0.1), "alignment": aligned}
    return found | ({"sample": sample(label, epoch)} if text else {})


def run(label: str, seed: int) -> dict[str, Any]:
    epochs = [record(label, epoch, text=seed == 0) for epoch in range(1, EVALUATIONS + 1)]
    rest = {"peak_memory_bytes": 2**27, "feedback_bytes": 2**16, "parameters": 1_900_000, "seconds_per_epoch": 9.0}
    pictures = dict.fromkeys(("filters", "filters_shape", "embedding"))
    return (
        {"label": label, "seed": seed, "epochs": epochs, "perplexity": epochs[-1]["eval_perplexity"]} | rest | pictures
    )


def comparison() -> dict[str, Any]:
    """A comparison of the form "bpfree-comparison/1"."""
    made = fake_comparison.comparison(labels=LABELS, seeds=1, epochs=1)
    runs = [run(label, seed) for seed in range(2) for label in LABELS]
    settings = {name: value for name, value in made["settings"].items() if name != "epochs"}
    settings |= {"data": {"name": "text"}, "steps": EVALUATIONS * STEPS, "evaluations": EVALUATIONS}
    settings |= {"measured_on": "validation", "model": {"class_path": "bpfree.lab.models.CausalTransformer"}}
    return made | {
        "task": "language",
        "command": "bpfree compare --data text --data-dir shakespeare",
        "settings": settings,
        "data": {"name": "shakespeare", "n_train": 400_000, "n_eval": 20_000, "vocabulary": 1000, "context": 64},
        "runs": runs,
        "summary": [summary(label, [one for one in runs if one["label"] == label]) for label in LABELS],
    }


def summary(label: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    aligned = [{"name": tap, "cosine_mean": cosine(label, tap, EVALUATIONS)} for tap in TAPS]
    numbers = {"perplexity_mean": runs[0]["perplexity"], "perplexity_std": 0.5, "recovery": None, "alignment": aligned}
    rest = {name: runs[0][name] for name in ("seconds_per_epoch", "peak_memory_bytes", "feedback_bytes")}
    return {"label": label, "time_relative_to_bp": 1.0, "seeds": len(runs)} | numbers | rest
