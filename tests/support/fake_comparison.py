"""A comparison with made-up numbers of the size that real ones have."""

from __future__ import annotations

import math
import random
from typing import Any

# Label: final accuracy, speed of learning, cosine at the taps, time relative to BP, peak memory in MiB.
RULES: dict[str, tuple[float, float, float | None, float, float]] = {
    "BP": (98.3, 0.9, 1.0, 1.0, 61.2),
    "Shallow": (92.6, 0.7, None, 0.41, 58.9),
    "FA": (97.8, 0.7, 0.42, 1.02, 66.4),
    "SignSymmetry": (98.1, 0.85, 0.77, 1.04, 66.4),
    "DFA": (97.9, 0.75, 0.31, 0.78, 61.9),
    "DRTP": (95.1, 0.6, 0.16, 0.76, 61.7),
    "sDFA": (97.4, 0.7, 0.24, 0.79, 61.9),
    "GrAPE": (98.2, 0.7, 0.88, 1.31, 80.1),
    "FDFA": (98.2, 0.75, 0.91, 1.29, 80.1),
    "DKP": (97.9, 0.8, 0.55, 0.84, 64.0),
}
TAPS = ["1", "3", "5", "7"]
SIDE = 28


def comparison(
    *,
    labels: list[str] | None = None,
    seeds: int = 3,
    epochs: int = 10,
    taps: int = 2,
    n_filters: int = 16,
    n_points: int = 300,
) -> dict[str, Any]:
    """A comparison of `labels` (default: the first six) of the form "bpfree-comparison/1"."""
    labels = labels or list(RULES)[:6]
    runs = [run(label, seed, epochs, TAPS[:taps], n_filters, n_points) for label in labels for seed in range(seeds)]
    return {
        "format": "bpfree-comparison/1",
        "created": "2026-11-21T05:00:00+00:00",
        "command": "bpfree compare --data mnist --data-dir data --epochs 10 --seeds '[0, 1, 2]'",
        "settings": {
            "data": {"name": "mnist", "flatten": True},
            "model": {"name": "mlp", "widths": [1024, 1024], "activation": "tanh"},
            "epochs": epochs,
            "batch_size": 128,
            "seeds": list(range(seeds)),
            "measured_on": "test",
            "rules": {label: {"rule": label, "options": {}, "optimizer": "Adam", "lr": 0.0005} for label in labels},
        },
        "environment": {
            "python": "3.11.2",
            "bpfree": "0.1.0",
            "torch": "2.13.0",
            "lightning": "2.6.0",
            "threads": 2,
        },
        "data": {
            "name": "mnist",
            "n_train": 60000,
            "n_eval": 10000,
            "classes": 10,
            "shape": [1, 28, 28],
            "checksums": {
                "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"
            },
        },
        "runs": runs,
        "summary": [
            summary(label, [r for r in runs if r["label"] == label], score(runs, "Shallow"), score(runs, "BP"))
            for label in labels
        ],
    }


def run(label: str, seed: int, epochs: int, taps: list[str], n_filters: int, n_points: int) -> dict[str, Any]:
    final, speed, cosine, time, memory = RULES[label]
    luck = random.Random(f"{label} {seed}")
    offset = luck.gauss(0, 0.08)
    records = [record(epoch, final + offset, speed, cosine, taps, 8.1 * time, luck) for epoch in range(1, epochs + 1)]
    return {
        "label": label,
        "seed": seed,
        "epochs": records,
        "accuracy": records[-1]["eval_accuracy"] if records else None,
        "seconds_per_epoch": 8.1 * time,
        "peak_memory_bytes": int(memory * 2**20),
        "feedback_bytes": 81920,
        "parameters": 1863690,
        "filters": stripes(n_filters, luck) if seed == 0 and n_filters else None,
        "filters_shape": [SIDE, SIDE] if seed == 0 and n_filters else None,
        "embedding": clouds(n_points, final, luck) if seed == 0 and n_points else None,
    }


def record(
    epoch: int,
    final: float,
    speed: float,
    cosine: float | None,
    taps: list[str],
    seconds: float,
    luck: random.Random,
) -> dict[str, Any]:
    missing = (100 - final) * (1 + 4 * math.exp(-speed * epoch)) + luck.gauss(0, 0.06)
    return {
        "epoch": epoch,
        "train_loss": 0.033 * missing * math.exp(-0.12 * speed * epoch),
        "train_accuracy": 100 - missing / 2,
        "eval_loss": 0.035 * missing,
        "eval_accuracy": round(100 - missing, 2),
        "seconds": seconds,
        "alignment": [
            {
                "name": tap,
                "cosine_mean": align(cosine, epoch, len(taps) - 1 - i, luck),
                "cosine_std": None if cosine is None else 0.1,
                "n_valid": 0 if cosine is None else 1024,
                "both_zero": 0.0,
                "norm_activation": 21.4,
                "norm_signal": 0.013,
                "norm_bp": 0.017,
            }
            for i, tap in enumerate(taps)
        ],
    }


def align(cosine: float | None, epoch: int, depth: int, luck: random.Random) -> float | None:
    if cosine is None or cosine == 1.0:
        return cosine
    return cosine * (1 - math.exp(-0.5 * epoch)) * 0.8**depth + luck.gauss(0, 0.012)


def stripes(n: int, luck: random.Random) -> list[list[float]]:
    """Waves under a round window with noise: what a first layer of digits looks like."""
    found = []
    for _ in range(n):
        kx, ky, phase = luck.gauss(0, 0.4), luck.gauss(0, 0.4), luck.uniform(0, 6.3)
        cx, cy = luck.uniform(9, 18), luck.uniform(9, 18)
        found.append(
            [
                0.05 * math.cos(kx * (x - cx) + ky * (y - cy) + phase) * math.exp(-((x - cx) ** 2 + (y - cy) ** 2) / 60)
                + luck.gauss(0, 0.006)
                for y in range(SIDE)
                for x in range(SIDE)
            ]
        )
    return found


def clouds(n: int, final: float, luck: random.Random) -> dict[str, Any]:
    """Ten clouds on a ring, wider for a rule that learns less."""
    label = [i % 10 for i in range(n)]
    spread = 2 + 0.6 * (100 - final)
    return {
        "x": [20 * math.cos(0.628 * k) * (1 + k % 2 / 2) + luck.gauss(0, spread) for k in label],
        "y": [20 * math.sin(0.628 * k) * (1 + k % 2 / 2) + luck.gauss(0, spread) for k in label],
        "label": label,
        "layer": "3",
    }


def score(runs: list[dict[str, Any]], label: str) -> float | None:
    """Mean accuracy of the runs of `label`, None where there are none."""
    found = [r["accuracy"] for r in runs if r["label"] == label]
    return sum(found) / len(found) if found else None


def summary(label: str, runs: list[dict[str, Any]], low: float | None, high: float | None) -> dict[str, Any]:
    scores = [r["accuracy"] for r in runs]
    mean = sum(scores) / len(scores)
    std = math.sqrt(sum((s - mean) ** 2 for s in scores) / (len(scores) - 1)) if len(scores) > 1 else None
    last = [r["epochs"][-1]["alignment"] for r in runs]
    return {
        "label": label,
        "accuracy_mean": mean,
        "accuracy_std": std,
        "recovery": (mean - low) / (high - low) if low and high else None,
        "alignment": [
            {
                "name": taps[0]["name"],
                "cosine_mean": None if RULES[label][2] is None else sum(t["cosine_mean"] for t in taps) / len(taps),
            }
            for taps in zip(*last, strict=True)
        ],
        "time_relative_to_bp": RULES[label][3],
        "seconds_per_epoch": 8.1 * RULES[label][3],
        "peak_memory_bytes": runs[0]["peak_memory_bytes"],
        "feedback_bytes": runs[0]["feedback_bytes"],
        "seeds": len(runs),
    }
