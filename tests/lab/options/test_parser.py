"""The command line: networks by name, and messages about values that do not fit."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from bpfree.lab.cli import main
from bpfree.lab.options.training import CompareOptions
from bpfree.lab.settings.argument_errors import Mistake
from support.cli import compare_options


@pytest.fixture
def namesake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another package's class that is called like one of ours, as torch_geometric has them."""
    (tmp_path / "elsewhere.py").write_text("from torch import nn\n\nclass MLP(nn.Module):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    __import__("elsewhere")


@pytest.mark.usefixtures("namesake")
def test_a_networks_name_means_ours(tmp_path: Path) -> None:
    config = tmp_path / "asked.yaml"
    for model in ("MLP", "{class_path: MLP, init_args: {hidden: [5]}}"):
        config.write_text(f"model: {model}\n")
        found = compare_options("--config", str(config)).model
        assert found is not None
        assert found.class_path == "bpfree.lab.models.MLP"
    for words in (["--model", "MLP"], ["--model=MLP"]):
        found = compare_options(*words, "--model.hidden", "[5]").model
        assert found is not None
        assert found.class_path == "bpfree.lab.models.MLP"
        assert found.init_args["hidden"] == [5]


def test_a_network_on_graphs_is_found_in_a_new_process(tmp_path: Path) -> None:
    pytest.importorskip("torch_geometric")
    (tmp_path / "asked.py").write_text(
        "import sys\n"
        "assert not {'torch_geometric', 'bpfree.lab.models'} & set(sys.modules)\n"
        "from bpfree.lab.commands import make_parser; from bpfree.lab.options.parser import with_model\n"
        "words = with_model(['train', '--data', 'cora', '--model', 'GAT'])\n"
        "print(make_parser()[0].parse_args(words).train.model.class_path)"
    )
    words = [sys.executable, str(tmp_path / "asked.py")]  # copies of a process that has imported all are not new
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["bpfree.lab.models.GAT"]


def test_arguments_go_to_the_network_of_the_data_that_a_file_names(tmp_path: Path) -> None:
    config = tmp_path / "asked.yaml"
    config.write_text("data: text\n")
    found = compare_options("--config", str(config), "--model.blocks", "2").model
    assert found is not None
    assert found.class_path == "bpfree.lab.models.CausalTransformer"
    assert found.init_args["blocks"] == 2


def test_null_in_a_file_is_as_if_the_option_were_not_there(tmp_path: Path) -> None:
    names = [entry.name for entry in fields(CompareOptions)]
    (tmp_path / "asked.yaml").write_text("".join(f"{name}: null\n" for name in names))
    found, plain = compare_options("--config", str(tmp_path / "asked.yaml")), CompareOptions()
    optional = {name for name in names if getattr(found, name) is None}
    assert {name: getattr(found, name) for name in names if name not in optional} == {
        name: getattr(plain, name) for name in names if name not in optional
    }
    # What may be absent is: so a scale of a recipe takes back a number of passes.
    assert {"epochs", "steps", "lr"} <= optional


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--epochs x", "--epochs: a whole number is needed, not x."),
        ("--batch-size 1.5", "--batch-size: a whole number is needed, not 1.5."),
        ("--lr abc", "--lr: a number is needed, not abc."),
        ("--settings.DFA.lr x", "--settings: lr: a number is needed, not x."),
        ("--text.measured_on dev", "--text.measured_on: dev is not known. Valid: 'validation', 'test'."),
        ("--schedule cosin", "--schedule: cosin is not known. Did you mean 'cosine'?"),
        ("--model MLP --model.hiden x", "--model: MLP has no argument 'hiden'. Did you mean 'hidden'?"),
        (
            "--model.hidden 8 --model MLP",
            "--model: the network's name comes before its argument: --model NAME --model.hidden VALUE.",
        ),
        ("--data.size 8", "--data: a name is taken here, which has no argument 'size'."),
        ("--model MLP --model.hidden x", "--model: hidden: a list in brackets is needed, not x."),
        ("--model MLP --model.batch_norm x", "--model: batch_norm: true, false or uniform is needed, not x."),
        ("--model VGG16 --model.batch_norm x", "--model: batch_norm: true or false is needed, not x."),
        (
            "--model CNNN",
            "--model: CNNN is no network of bpfree. Did you mean 'CNN'? One of your own is named by its import path, "
            "my_file.MyNetwork.",
        ),
        (
            "--settings.DFA.rule DFFA",
            "--settings: rule: DFFA is no rule of bpfree. Did you mean 'DFA'? One of your own is named by its import "
            "path, my_file.MyRule.",
        ),
        (
            "--settings.Mine.rule no_such_file.Mine",
            "--settings: rule: no_such_file.Mine cannot be imported: No module named 'no_such_file'. A file of your "
            "own must lie in this folder, or be installed.",
        ),
        (
            "--model no_such_file.Net",
            "--model: no_such_file.Net cannot be imported: No module named 'no_such_file'. A file of your own must lie "
            "in this folder, or be installed.",
        ),
        (
            "--settings.Mine.rule bpfree.errors.Mine",
            "--settings: rule: bpfree.errors.Mine cannot be imported: module 'bpfree.errors' has no attribute 'Mine'.",
        ),
        (
            "--settings.Mine.rule torch.nn.Linear",
            "--settings: rule: torch.nn.Linear is no rule: a class derived from bpfree.Rule is needed.",
        ),
        ("--model bpfree.DFA", "--model: bpfree.DFA is no network: a class derived from torch.nn.Module is needed."),
    ],
)
def test_a_value_of_the_wrong_kind_is_told_in_one_line(
    words: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["compare", *words.split()])
    assert end.value.code == 2
    assert capsys.readouterr().err.splitlines()[0] == f"bpfree compare: error: {said}"


def test_an_argument_called_as_its_setting_keeps_its_place() -> None:
    found = Mistake(("model", "width", "model"), "a number is needed, not x.")
    assert found.within("model") == "width: model: a number is needed, not x."
    assert found.within("settings") == "model: width: model: a number is needed, not x."
