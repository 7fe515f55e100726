"""How the models of clicks start, what they cost, and what they refuse."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import bpfree.lab.models as models
from bpfree.lab.errors import SettingsError, TableSizeError
from bpfree.lab.models.clicks import tables
from bpfree.lab.models.clicks.afn import LogarithmicLayer
from bpfree.lab.settings.model import ModelSettings
from support.small_clicks import ARGUMENTS, NAMES, SHAPE, identifiers

every_model = pytest.mark.parametrize("name", NAMES)
CRITEO = tuple(50 if field < 13 else 2000 for field in range(39))


def rows(n: int) -> Tensor:
    return torch.stack([torch.randint(0, size, (n,)) for size in CRITEO], dim=1)


def logits(name: str, **arguments: Any) -> Tensor:
    hidden = {} if name == "FM" else {"hidden": [100, 100]}
    neurons = {"neurons": 200} if name == "AFN" else {}
    model = getattr(models, name)(CRITEO, **hidden, **neurons, **arguments)
    return model(rows(2000)).detach()


# -- initialization ----------------------------------------------------------------------------------------------------


@every_model
def test_first_predictions_are_near_one_half(name: str) -> None:
    assert logits(name).std() < 0.6
    assert (logits(name).sigmoid() - 0.5).abs().max() < 0.45


@pytest.mark.parametrize("name", ["FM", "DeepFM", "AFN", "AutoInt"])
def test_torchfms_first_logits_are_of_deviation_sqrt_fields(name: str) -> None:
    """The sum of one standard normal number for each field."""
    found = logits(name, initialization="torchfm")
    assert found.std() == pytest.approx(math.sqrt(39), rel=0.1)
    assert ((found.sigmoid() > 0.99) | (found.sigmoid() < 0.01)).float().mean() > 0.4


def test_vectors_do_not_depend_on_the_number_of_identifiers() -> None:
    """So that batch normalization, which adds 1e-5 to variances, has a signal: torchfm's shrink."""
    few, many = models.FM((50, 50)), models.FM((100_000, 100_000))
    torch.testing.assert_close(few.embedding.weight.std(), many.embedding.weight.std(), atol=0, rtol=0.1)
    theirs = models.FM((100_000, 100_000), initialization="torchfm").embedding.weight
    torch.testing.assert_close(theirs.abs().max(), torch.tensor(math.sqrt(6 / 200_016)), atol=0, rtol=1e-3)


def test_logarithmic_neurons_are_torchfms_and_not_the_papers() -> None:
    layer = LogarithmicLayer(2, 1)
    layer.weight.data.fill_(1.0)
    for factors, expected in [((0.5, 0.5), 1.25), ((-0.5, 0.5), 1.25), ((0.0, 3.0), 3.0)]:
        found = layer(torch.tensor(factors).view(1, 2, 1)).item()
        assert found == pytest.approx(expected, abs=1e-5)


# -- sizes -------------------------------------------------------------------------------------------------------------


@every_model
def test_tables_that_do_not_fit_are_refused_before_anything_is_allocated(name: str) -> None:
    """A thousand million million identifiers; torch itself would say that a tensor is too large, or fail in memory."""
    width = ARGUMENTS[name]["width"]
    numbers = width if name == "DeepCross" else width + 1
    with pytest.raises(TableSizeError, match=f"{4 * 10**15 * numbers:,} bytes") as said:
        getattr(models, name)((10**15 - 7, 7), **ARGUMENTS[name])
    assert "1,000,000,000,000,000 identifiers" in str(said.value)
    assert "frequency threshold" in str(said.value)


def test_the_size_is_compared_with_the_memory_that_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = 4 * sum(SHAPE) * 7
    monkeypatch.setattr(tables, "available_bytes", lambda: exact)
    models.FM(SHAPE, width=6)
    monkeypatch.setattr(tables, "available_bytes", lambda: exact - 1)
    with pytest.raises(TableSizeError, match=f"{exact:,} bytes"):
        models.FM(SHAPE, width=6)
    with torch.device("meta"):  # allocates nothing
        assert models.FM(SHAPE, width=6).embedding.weight.is_meta
    monkeypatch.setattr(tables, "available_bytes", lambda: None)  # nothing is known
    models.FM(SHAPE, width=6)


@pytest.mark.skipif(not Path("/proc/meminfo").is_file(), reason="only Linux says what memory is available")
def test_the_memory_that_is_left_is_that_of_the_machine_or_less() -> None:
    lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total = int(lines["MemTotal"].split()[0]) * 1024
    assert 0 < tables.available_bytes() <= total


def test_a_container_may_have_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_free_of_group", lambda: 12345)
    assert tables.available_bytes() == 12345


def test_the_error_keeps_its_name_where_a_run_builds_the_model() -> None:
    with pytest.raises(TableSizeError, match=r"^--model FM: the tables of"):
        ModelSettings("FM").build((10**15,), 1)


# -- from settings -----------------------------------------------------------------------------------------------------


@every_model
def test_settings_name_them_and_the_data_give_the_sizes(name: str) -> None:
    settings = ModelSettings(name, ARGUMENTS[name])
    described = settings.describe()
    assert described["class_path"] == f"bpfree.lab.models.{name}"
    assert "shape" not in described["init_args"]
    assert ModelSettings(**described).describe() == described
    model = settings.build(SHAPE, 1)
    assert model.embedding.weight.shape == (sum(SHAPE), 6)
    assert model(identifiers()).shape == (12,)


# -- what is refused ---------------------------------------------------------------------------------------------------


@every_model
@pytest.mark.parametrize("shape", [(), (3, 0), (3, -2)])
def test_fields_need_identifiers(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(SettingsError, match="number of identifiers of each field"):
        getattr(models, name)(shape, **ARGUMENTS[name])


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("FM", {"width": 0}, "width 0 must be at least 1"),
    ("FM", {"initialization": "torchFM"}, "Did you mean 'torchfm'"),
    ("DeepFM", {"hidden": []}, "width of one block or more"),
    ("DeepFM", {"hidden": [4, 0]}, "width of one block or more"),
    ("DeepCross", {"layers": 0}, "layers 0 must be at least 1"),
    ("AFN", {"neurons": 0}, "neurons 0 must be at least 1"),
    ("AFN", {"placement": "correct"}, "Did you mean 'corrected'"),
    ("AutoInt", {"heads": 3}, "must be a multiple of heads, 3"),
    ("AutoInt", {"heads": 0}, "heads 0 must be at least 1"),
]


@pytest.mark.parametrize(("name", "arguments", "said"), WRONG)
def test_arguments_that_mean_nothing_are_refused(name: str, arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        getattr(models, name)(SHAPE, **(ARGUMENTS[name] | arguments))


@every_model
def test_identifiers_of_another_vocabulary_are_refused(name: str) -> None:
    """One too large would be taken for one of the next field."""
    model = getattr(models, name)(SHAPE, **ARGUMENTS[name])
    for field, wrong in [(0, 5), (1, -1), (3, 11)]:
        ids = identifiers()
        ids[4, field] = wrong
        with pytest.raises(SettingsError, match=f"field {field} has the identifier {wrong}, but the model knows 0 to"):
            model(ids)
    with pytest.raises(SettingsError, match="built for 4 fields"):
        model(identifiers()[:, :3])
    with pytest.raises(SettingsError, match="built for 4 fields"):
        model(identifiers()[0])


@every_model
def test_no_row_gives_no_logit(name: str) -> None:
    model = getattr(models, name)(SHAPE, **ARGUMENTS[name]).eval()
    assert model(identifiers()[:0]).shape == (0,)
