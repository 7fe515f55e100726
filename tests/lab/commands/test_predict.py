"""``bpfree predict``: probabilities of a trained run, row by row of a file."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("polars", reason="needs the extra [clicks] (polars)")

from torchmetrics.functional.classification import binary_auroc

from bpfree.lab.commands import main
from bpfree.lab.commands.predict import predict
from bpfree.lab.disk.files import read_json, write_json
from bpfree.lab.errors import DataError, RunError
from bpfree.lab.options.predict import PredictOptions
from support import log_of_shops

ROWS = log_of_shops.rows(600)
SCHEMA = log_of_shops.SCHEMA + "split: {order: as written}\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a log that is not there any more, nor is its cache."""
    place = tmp_path_factory.mktemp("predict")
    (place / "log").mkdir()
    log_of_shops.written(place / "log" / "log.csv", ROWS)
    (place / "schema.yaml").write_text(SCHEMA)
    words = [
        "train",
        "--data",
        "clicks",
        "--schema",
        str(place / "schema.yaml"),
        "--data-dir",
        str(place / "log"),
    ]
    words += ["--clicks.measured_on", "test", "--model", "DeepFM", "--model.hidden", "[8]", "--rule", "DFA"]
    words += ["--batch-size", "32", "--epochs", "2", "--lr", "0.02", "--threads", "1", "--out", str(place / "run")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        assert main(words) == 0
    for name in ("log", "cache", "schema.yaml"):
        shutil.rmtree(place / name) if (place / name).is_dir() else (place / name).unlink()
    return place / "run"


def predicted(run: Path, file: Path, **options: Any) -> list[dict[str, str]]:
    place = predict(PredictOptions(name=str(run), file=str(file), to=str(file.with_suffix(".out")), **options))
    with place.open() as stream:
        return list(csv.DictReader(stream))


def test_the_test_rows_have_the_auc_of_the_record_without_their_labels(trained: Path, tmp_path: Path) -> None:
    last = ROWS[540:]  # the tenth that the schema's order gives to the test
    found = predicted(trained, log_of_shops.written(tmp_path / "new.csv", last, leave_out="clicked"))
    assert [row["id"] for row in found] == [row["id"] for row in last]
    probabilities = torch.tensor([float(row["probability"]) for row in found])
    clicks = torch.tensor([int(row["clicked"]) for row in last])
    (record,) = trained.glob("*.json")
    # Rows that are alike may differ in the last bit in batches of another size: half a pair each.
    pairs = int(clicks.sum() * (1 - clicks).sum())
    expected = json.loads(record.read_text())["auc"]
    assert float(binary_auroc(probabilities, clicks)) == pytest.approx(expected, abs=2 / pairs)
    assert ((probabilities > 0) & (probabilities < 1)).all()


def test_values_that_training_has_not_seen_share_one_probability(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "new.csv").write_text("color,shop,price,id\nr,new,1,a\nr,other,1,b\nr,shop0,1,c\nr,,1,d\n")
    found = [float(row["probability"]) for row in predicted(trained, tmp_path / "new.csv")]
    assert found[0] == found[1] != found[2]
    assert found[3] != found[0]  # a missing value is no unseen one


@pytest.mark.parametrize(("identifiers", "allowed"), [(["id"], 2), ([], 0)])
def test_bad_rows_are_told_and_left_out_if_the_schema_allows_them(
    identifiers: list[str], allowed: int, trained: Path, tmp_path: Path
) -> None:
    run = with_schema(trained, tmp_path, identifiers=identifiers, bad_rows=1)
    (tmp_path / "new.csv").write_text("id,color,shop,price\na,r,shop1,1\nb,r\nc,r,shop1,dear\nd,b,shop1,\n")
    with pytest.raises(DataError, match=r"new\.csv.* 3.*it has 2 field"):
        predicted(run, tmp_path / "new.csv")
    assert not (tmp_path / "new.out").exists()
    shutil.rmtree(run)
    run = with_schema(trained, tmp_path, identifiers=identifiers, bad_rows=2)
    if allowed:
        assert [row["id"] for row in predicted(run, tmp_path / "new.csv")] == ["a", "d"]
    else:  # which rows the others are could not be told
        with pytest.raises(DataError, match="it has 2 field"):
            predicted(run, tmp_path / "new.csv")


def with_schema(trained: Path, folder: Path, **changes: Any) -> Path:
    """A copy of the run whose schema is another."""
    run = folder / "run"
    shutil.copytree(trained, run)
    (place,) = run.glob("*/log/schema.json")
    kept = read_json(place)
    write_json(place, {"schema": kept["schema"] | changes})
    return run


def test_rows_without_identifiers_are_numbered(trained: Path, tmp_path: Path) -> None:
    run = with_schema(trained, tmp_path, identifiers=[])
    (tmp_path / "new.csv").write_text("color,shop,price\nr,shop1,1\nb,shop1,1\n")
    assert [row["row"] for row in predicted(run, tmp_path / "new.csv")] == ["1", "2"]


def test_what_cannot_be_predicted_is_named(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Name the folder of a run and a file"):
        predict(PredictOptions(name=str(trained)))
    with pytest.raises(DataError, match=r"none\.csv is missing"):
        predicted(trained, tmp_path / "none.csv")
    (tmp_path / "new.csv").write_text("id,color,shop\na,r,shop1\n")
    with pytest.raises(DataError, match="column 'price' of the schema is not among the columns"):
        predicted(trained, tmp_path / "new.csv")
    (tmp_path / "new.csv").write_text("id,color,shop,price\n")
    with pytest.raises(DataError, match="has no rows"):
        predicted(trained, tmp_path / "new.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="holds no run on clicks"):
        predicted(tmp_path / "empty", tmp_path / "new.csv")
