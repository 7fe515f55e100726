"""Several processes that train one model on a log: they learn what one process would from their batches together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("polars", reason="needs the extra [clicks] (polars)")

from bpfree.lab import cli
from bpfree.lab.data import load
from bpfree.lab.data.clicks import Clicks, ClickSettings, ShuffledBlocks
from bpfree.lab.errors import SettingsError
from bpfree.lab.models import FM
from bpfree.lab.options.training import CompareOptions, TrainOptions
from bpfree.lab.process import replicas
from bpfree.lab.tasks.clicks import scores
from support import log_of_shops
from support.scripts import on_ranks

EPOCHS, BATCH, LR = 2, 64, 0.05


def test_two_processes_learn_as_one_from_their_rows_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    log = log_of_shops.folder(tmp_path / "here")
    words = ["train", "--data", "clicks", "--schema", str(log / "schema.yaml"), "--data-dir", str(log / "log")]
    words += ["--rule", "BP", "--model", "FM", "--model.width", "4", "--epochs", str(EPOCHS), "--lr", str(LR)]
    words += ["--batch-size", str(BATCH), "--settings.BP.optimizer", "SGD", "--threads", "1", "--out", str(tmp_path)]
    torchrun = {"TORCHELASTIC_RUN_ID": "0", "GROUP_RANK": "0"}  # by which Lightning knows it
    processes = on_ranks(2, Path(cli.__file__), *words, logs=tmp_path, environment=torchrun)
    printed = "".join(process.output(300) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], printed
    assert printed.count("result: ") == 1  # of two processes, one tells

    data = load("clicks", log / "log", clicks=ClickSettings(schema=str(log / "schema.yaml")))
    assert isinstance(data, Clicks)
    torch.manual_seed(0)
    model = FM(data.shape, width=4)
    orders = [ShuffledBlocks(len(data.train), BATCH // 2, 0, rank=rank, processes=2) for rank in range(2)]
    for epoch in range(EPOCHS):
        for order in orders:
            order.set_epoch(epoch)
        for parts in zip(*orders, strict=True):
            x, y = data.train.batch(torch.cat(parts))
            model.zero_grad()
            F.binary_cross_entropy_with_logits(model(x), y).backward()
            with torch.no_grad():
                for weight in model.parameters():
                    weight -= LR * weight.grad  # type: ignore[operator]
    (checkpoint,) = tmp_path.glob("*/last.ckpt")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(state[f"model.{name}"], weight, rtol=1e-5, atol=1e-6)
    (record,) = (json.loads(path.read_text()) for path in tmp_path.glob("BP-*.json"))
    with torch.no_grad():
        x, y = data.validation.batch(torch.arange(len(data.validation)))
        assert record["auc"] == pytest.approx(scores(model(x), y)["auc"], abs=1e-6)


def test_what_one_process_does_is_refused_in_several(monkeypatch: pytest.MonkeyPatch) -> None:
    replicas.check("bpfree compare")
    monkeypatch.setenv("WORLD_SIZE", "3")
    replicas.check("bpfree train", able=True)
    with pytest.raises(SettingsError, match=r"bpfree compare runs in one process, and torchrun has started 3"):
        replicas.check("bpfree compare")
    with pytest.raises(SettingsError, match=r"--batch-size 100: 3 processes cannot share it in equal parts"):
        TrainOptions(data="clicks", batch_size=100).run("DFA", 0, details=False)


def test_the_number_of_processes_is_part_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their batches, and the numbers of batch norm, are other ones."""
    alone = CompareOptions(data="clicks", batch_size=64).run("DFA", 0, details=False)
    monkeypatch.setenv("WORLD_SIZE", "2")
    together = CompareOptions(data="clicks", batch_size=64).run("DFA", 0, details=False)
    assert alone.name({}) != together.name({})
