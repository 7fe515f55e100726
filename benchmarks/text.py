"""What text takes beside training: tokenizing, reading and memory, on a text that is made up and removed again.

python benchmarks/text.py [--tokens 100000000] [--vocabulary 32000] [--net 6x512] [--pairs N] [--only "batch*"]
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from bpfree.lab.data.batches import Shuffled, Streams, TrainingOrder, batches
from bpfree.lab.data.text import Text, TextSettings, Vocabulary, load_text
from bpfree.lab.settings import RunSettings, rule_settings
from bpfree.lab.settings.model import ModelSettings
from bpfree.lab.tasks.language import LanguageModel
from bpfree.lab.time_and_memory import paired_ratio
from common import results, script
from common.watching import watched

CONTEXT, BATCH = 128, 8
_WORDS = 200_000
_SAMPLE = 40_000  # lines that the vocabulary is learned from, at most
_LINES = 1000  # made at once


def made_up_lines(seed: int) -> Iterator[str]:
    """Paragraphs of about 100 words; 200,000 different words come as often as Zipf's law has it."""
    draw = np.random.default_rng(seed)
    letters = np.array(list("etaoinshrdlucmfwypvbgk"))
    longest = letters[draw.integers(0, len(letters), (_WORDS, 10))].view("U10").ravel().tolist()
    words = [word[:size] for word, size in zip(longest, draw.integers(2, 11, _WORDS).tolist(), strict=True)]
    while True:
        ranks = draw.zipf(1.25, 100 * _LINES) % len(words)
        for line in ranks.reshape(_LINES, 100).tolist():
            yield " ".join([words[rank] for rank in line]) + " .\n"


def write_text(folder: Path, vocabulary: Vocabulary, tokens: int) -> None:
    """Write a training file of about so many tokens, and a small one for validation."""
    lines = made_up_lines(1)
    sample = list(itertools.islice(lines, 1000))
    count = round(tokens * len(sample) / len(vocabulary.encode(sample)))
    (folder / "valid.txt").write_text("".join(sample))
    with (folder / "train.txt").open("w") as stream:
        stream.writelines(itertools.islice(lines, count))


def training_step(text: Text, batch: tuple[torch.Tensor, torch.Tensor], net: str) -> Callable[[], None]:
    """A step of backpropagation by Adam on one batch, by a transformer of so many blocks of such a width."""
    blocks, width = map(int, net.split("x"))
    model = ModelSettings("CausalTransformer", {"blocks": blocks, "width": width, "heads": 8, "hidden": 4 * width})
    settings = RunSettings(
        label="BP", seed=0, rule=rule_settings("BP"), model=model.describe(), task="language", epochs=1,
        batch_size=BATCH, threads=torch.get_num_threads(), taps=model.suggestion("taps"),
        error_at=model.suggestion("error_at"),
    )  # fmt: skip
    torch.manual_seed(0)
    learner = LanguageModel(model.build(text.shape, text.classes), settings, text)
    optimizer = learner.optimizer()

    def step() -> None:
        learner.batch_loss(batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def endless(loader: DataLoader[tuple[torch.Tensor, torch.Tensor]]) -> Callable[[], object]:
    """Read the next batch, pass after pass."""
    found = itertools.chain.from_iterable(itertools.repeat(loader))
    return lambda: next(found)


def orders(text: Text, size: int) -> dict[str, TrainingOrder]:
    """The orders of training, by the names of ``--text.order``."""
    return {"shuffled": Shuffled(len(text.train), size, 0), "streams": Streams(len(text.train), size)}


def tokenizing(text: Callable[[], Text], net: str) -> tuple[Text, results.Row]:
    """Make the tokens of both files, and keep them as the lab does."""
    row: results.Row = {"net": net, "subject": "tokenizing", "reference": ""}
    with watched(row):
        found = text()
    row["tokens_per_second"] = len(found.train.tokens) / row["seconds"]
    return found, row


def reading(text: Text, net: str, only: list[str] | None) -> Iterator[results.Row]:
    """Read a whole pass in batches of 64 sequences, as the published runs have."""
    for name, order in orders(text, min(64, len(text.train))).items():
        if script.chosen(f"pass, {name}", only):
            row: results.Row = {"net": net, "subject": f"pass, {name}", "reference": ""}
            with watched(row):
                tokens = sum(x.numel() for x, _ in batches(text.train, order))
            yield row | {"tokens_per_second": tokens / row["seconds"]}


def batching(text: Text, net: str, trained: str, pairs: int, only: list[str] | None) -> Iterator[results.Row]:
    """Read a batch beside a training step on one."""
    wanted = {name: order for name, order in orders(text, BATCH).items() if script.chosen(f"batch, {name}", only)}
    step = training_step(text, text.train.batch(torch.arange(BATCH)), trained) if wanted else None
    for name, order in wanted.items():
        time = asdict(paired_ratio(endless(batches(text.train, order)), step, repeats=pairs, warmup=2))
        reference = f"step of BP, {trained}, {BATCH} x {CONTEXT}"
        yield {"net": net, "subject": f"batch, {name}", "reference": reference, "time": time}


HEADER = """\
| text | subject | tokens a second | process grows by, MiB | share of a training step | quartiles |
| --- | --- | --- | --- | --- | --- |"""


def line(row: results.Row) -> str:
    """One row of the printed table."""
    if "time" in row:
        share = row["time"]
        rest = f" | | {share['median']:.3%} | {share['lower']:.3%} to {share['upper']:.3%}"
    else:
        rest = f"{row['tokens_per_second']:,.0f} | {row['resident_growth'] / 2**20:,.0f} | |"
    return f"| {row['net']} | {row['subject']} | {rest} |"


def main() -> None:
    """Measure, print the table, put the rows into the file; whatever else was written is removed."""
    script.keep_memory()
    parser = script.parser(__doc__, "text.json")
    parser.add_argument("--tokens", type=int, default=100_000_000, help="about (default: 100,000,000)")
    parser.add_argument("--vocabulary", type=int, default=32_000, help="tokens in it (default: 32,000)")
    parser.add_argument("--net", default="6x512", help="blocks and width of the transformer (default: 6x512)")
    parser.add_argument("--pairs", type=int, default=60, help="pairs of a batch and a step (default: 60)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["RAYON_NUM_THREADS"] = str(options.threads)  # the tokenizer's; it reads this at its first use
    run = script.run()
    print(HEADER)

    def show(row: results.Row) -> None:
        print(line(row), flush=True)
        results.write(options.out, run, [row])

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        os.environ["XDG_CACHE_HOME"] = place
        sample = itertools.islice(made_up_lines(0), min(_SAMPLE, options.tokens // 200))
        vocabulary = Vocabulary.trained(sample, options.vocabulary)
        saved = vocabulary.save(folder)
        write_text(folder, vocabulary, options.tokens)
        net = f"{options.tokens:,} made-up tokens of {len(vocabulary):,}"
        how = TextSettings(tokenizer=str(saved), context=CONTEXT)
        text, row = tokenizing(lambda: load_text(folder, how), net)
        if script.chosen("tokenizing", options.only):
            show(row)
        for row in itertools.chain(
            reading(text, net, options.only), batching(text, net, options.net, options.pairs, options.only)
        ):
            show(row)


if __name__ == "__main__":
    main()
