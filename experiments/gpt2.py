"""Train a GPT-2 of transformers, 4 blocks, by FDFA and by BP on Tiny Shakespeare, then on Brown from FDFA's weights.

    python experiments/gpt2.py --shakespeare input.txt --brown FOLDER [--results results/gpt2/runs.json]

The saved models are read by transformers in a process without bpfree, and write text. Runs that have finished are not
repeated; an interrupted one goes on. FOLDER holds train, valid and test as `bpfree train --data text` reads them.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from bpfree.lab.commands import main
from bpfree.lab.disk.files import read_json, write_json

CONFIG = Path(__file__).with_name("gpt2-4-blocks.json")
RULES = {"BP": [], "FDFA": ["--settings.FDFA.rule", "{class_path: FDFA, init_args: {beta: 0.05}}"]}
ALL = ["--data", "text", "--text.context", "64", "--batch-size", "16", "--threads", "1", "--alignment", "last"]
ALL += ["--lr", "2e-3"]
WRITE = """
import sys
sys.modules["bpfree"] = None  # importing it would raise
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = (kind.from_pretrained(sys.argv[1]) for kind in (AutoModelForCausalLM, AutoTokenizer))
torch.manual_seed(0)
tokens = tokenizer(sys.argv[2], return_tensors="pt")
written = model.generate(**tokens, max_length=60, do_sample=True, temperature=0.8, pad_token_id=0)[0]
print(tokenizer.decode(written))
"""


def split(file: Path, folder: Path) -> None:
    """Write the first 90 % of a file's lines, the next 5 % and the last 5 % as train, valid and test."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    cuts = [0, len(lines) * 90 // 100, len(lines) * 95 // 100, len(lines)]
    for name, first, last in zip(("train", "valid", "test"), cuts, cuts[1:], strict=False):
        (folder / f"{name}.txt").write_text("".join(lines[first:last]), encoding="utf-8")


def train(rule: str, out: Path, steps: int, *words: str) -> tuple[dict[str, Any], Path]:
    """Train, or read what is there; return the record and the folder of the saved model."""
    resume = ["--resume"] if list(out.glob("*/last.ckpt")) and not list(out.glob("*.json")) else []
    length = ["--steps", str(steps), "--evaluations", "6", "--rule", rule, *RULES[rule], "--out", str(out), *resume]
    if main(["train", *ALL, *length, *words]):
        raise SystemExit(1)
    (record,), (model,) = out.glob("*.json"), out.glob("*/model")
    return read_json(record), model


def report(title: str, found: dict[str, dict[str, Any]]) -> None:
    """Print each rule's loss on the validation file, and FDFA's beside BP's."""
    losses = {rule: record["epochs"][-1]["eval_loss"] for rule, record in found.items()}
    said = ", ".join(f"{rule} {loss:.4f}" for rule, loss in losses.items())
    print(f"{title}: validation loss {said}; FDFA / BP {losses['FDFA'] / losses['BP']:.4f}", flush=True)


def kept(records: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """What is kept of the runs: all but the model's path, which is of one machine."""
    names = ("label", "seed", "epochs", "perplexity", "parameters", "environment")
    return [
        {name: record[name] for name in names}
        | {"settings": {name: value for name, value in record["settings"].items() if name != "model"}}
        for record in records.values()
    ]


def written(model: Path, prompt: str) -> str:
    """Let transformers write with a saved model, in a process that cannot import bpfree."""
    command = [sys.executable, "-c", WRITE, str(model), prompt]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def run(options: argparse.Namespace) -> None:
    """Train both rules on both texts, and let transformers write."""
    out = options.out
    split(options.shakespeare, out / "shakespeare")
    first, tuned = dict[str, dict[str, Any]](), dict[str, dict[str, Any]]()
    words = ["--data-dir", str(out / "shakespeare"), "--text.vocabulary", "500", "--model", f"hf:{CONFIG}"]
    for rule in RULES:
        first[rule], model = train(rule, out / f"shakespeare-{rule}", options.steps, *words)
    report("Tiny Shakespeare", first)
    words = ["--data-dir", str(options.brown), "--text.tokenizer", str(model), "--model", f"hf:{model}"]
    for rule in RULES:
        tuned[rule], brown = train(rule, out / f"brown-{rule}", options.tuning_steps, *words)
    report("Brown, from FDFA's weights", tuned)
    texts = {
        name: written(place, prompt)
        for name, place, prompt in (("Tiny Shakespeare", model, "ROMEO:\n"), ("Brown", brown, "The"))
    }
    for name, text in texts.items():
        print(f"--- {name}, FDFA, written by transformers alone:\n{text}", flush=True)
    if options.results:
        write_json(options.results, {"Tiny Shakespeare": kept(first), "Brown": kept(tuned), "written": texts})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shakespeare", type=Path, required=True)
    parser.add_argument("--brown", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/gpt2"))
    parser.add_argument("--results", type=Path, help="a file for what was measured")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--tuning-steps", type=int, default=300)
    run(parser.parse_args())
