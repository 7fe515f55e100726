"""Language modelling: a causal model, perplexity, and the same care for runs and reports as for pictures."""

from __future__ import annotations

import io
import itertools
import json
import math
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

import bpfree
from bpfree.lab import report
from bpfree.lab.commands import main, make_parser
from bpfree.lab.commands.compare import compare, plan_runs
from bpfree.lab.data.text import NOT_COUNTED, Order, Sequences, Text
from bpfree.lab.disk.checksums import sealed
from bpfree.lab.errors import RunError, SettingsError
from bpfree.lab.models import CausalTransformer
from bpfree.lab.options.command_line import command_line
from bpfree.lab.options.parser import read_options, with_model
from bpfree.lab.options.training import CompareOptions
from bpfree.lab.running import runs
from bpfree.lab.running.runs import Places, run
from bpfree.lab.settings import RunSettings
from bpfree.lab.settings.model import ModelSettings
from bpfree.lab.summary import summarize
from bpfree.lab.tasks import LANGUAGE
from bpfree.lab.tasks.generation import Sampling, continuation
from bpfree.lab.tasks.language import LanguageModel
from support import tiny_text
from support.cli import compare_options
from support.interrupted_runs import Interrupting, assert_equal, crash

pytestmark = pytest.mark.long

SMALL = tiny_text.SMALL


@pytest.fixture
def text(tmp_path: Path) -> Text:
    return tiny_text.text(tmp_path / "corpus")


# -- the model ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_no_token_sees_a_later_one(norm: str, positions: str) -> None:
    torch.manual_seed(0)
    model = CausalTransformer((12,), 50, **SMALL, norm=norm, positions=positions).double()
    tokens = torch.randint(0, 50, (3, 12))
    before = model(tokens)
    assert before.shape == (3, 12, 50)
    for place in (1, 7, 11):
        changed = tokens.clone()
        changed[:, place] = (changed[:, place] + 1) % 50
        after = model(changed)
        assert torch.equal(after[:, :place], before[:, :place])
        assert not torch.isclose(after[:, place:], before[:, place:]).all(2).any()
    # A shorter sequence is the beginning of a longer one.
    assert torch.allclose(model(tokens[:, :5]), before[:, :5])


def test_equal_tokens_at_other_places_are_told_apart() -> None:
    for positions in ("learned", "sinusoidal"):
        logits = CausalTransformer((6,), 50, **SMALL, positions=positions)(torch.zeros(1, 6, dtype=torch.long))[0]
        assert not torch.isclose(logits[0], logits[1], atol=1e-4).all()


def test_sizes_of_the_published_layout() -> None:
    model = CausalTransformer((128,), 4000)
    norm, attention, feed = 2 * 128, 128 * 384 + 384 + 128 * 128 + 128, 128 * 512 + 512 + 512 * 128 + 128
    expected = 4000 * 128 + 128 * 128 + 4 * (2 * norm + attention + feed) + 128 * 4000 + 4000
    assert sum(weight.numel() for weight in model.parameters()) == expected
    firsts = [block.attention.into.weight for block in model.blocks]
    assert not any(torch.equal(one, other) for one, other in itertools.pairwise(firsts))
    with pytest.raises(SettingsError, match="multiple of heads"):
        CausalTransformer((8,), 50, width=10, heads=4)
    with pytest.raises(SettingsError, match="tokens of shape"):
        CausalTransformer((1, 8, 8), 50)


def test_branches_of_pre_norm_are_scaled() -> None:
    torch.manual_seed(0)
    block = CausalTransformer((4,), 50, blocks=4, width=8, heads=2, hidden=8, norm="pre").blocks[0]
    h = torch.randn(2, 4, 8)
    # 1 / sqrt(4): half of each branch is added to the stream.
    middle = h + block.attention(block.norm1(h)) / 2
    assert torch.allclose(block(h), middle + block.feed_forward(block.norm2(middle)) / 2)


@pytest.mark.parametrize("norm", ["post", "pre"])
def test_the_last_block_and_the_head_have_their_exact_gradient(norm: str) -> None:
    """The error is as wide as a block, and the last tap stands where it is taken."""
    gradients = []
    for rule in (bpfree.BP(), bpfree.DFA()):
        torch.manual_seed(0)
        model = CausalTransformer((8,), 50, **SMALL, norm=norm)
        taps, at = list(model.suggested_taps()), model.suggested_error_at
        with bpfree.attach(model, rule, taps=taps, error_at=at, seed=0) as attachment:
            tokens = torch.randint(0, 50, (3, 9))
            nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
            if rule == bpfree.DFA():
                assert [site.name for site in attachment.mechanism.sites] == ["blocks.0.tap"]
                assert "Feedback memory: 1.0 KiB" in str(attachment)  # 16 x 16 numbers of 4 bytes
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    exact, direct = gradients
    for name, gradient in exact.items():
        above = name.startswith(("blocks.1", "norm", "head"))
        assert torch.allclose(direct[name], gradient, atol=1e-7) == above, name


# -- perplexity --------------------------------------------------------------------------------------------------------


class Unigram(nn.Module):
    """The same logits everywhere: log(1/2), log(1/4), log(1/8), log(1/8)."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(-math.log(2) * torch.tensor([1.0, 2.0, 3.0, 3.0]))
        self.act = nn.Tanh()

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.logits.expand(*tokens.shape, 4)


class FourTokens:
    """Three sequences of three tokens; five words, and one more token, of two bits, that is in no sequence."""

    classes, words = 4, 5
    evaluation = Sequences(None, 3, torch.arange(3))

    def rest(self) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(1, 3, dtype=torch.long), torch.tensor([[NOT_COUNTED, NOT_COUNTED, 1]])


def test_perplexity_is_two_to_the_mean_number_of_bits() -> None:
    settings = tiny_text.settings("BP", taps=None, error_at=None)
    learner = LanguageModel(Unigram(), settings, FourTokens())
    # 1 + 1 + 2 and 3 + 3 + 2 bits, and 2 + 3 + 3 in a batch of its own: 20 bits for 9 tokens.
    for y in ([[0, 0, 1], [2, 3, 1]], [[1, 2, 3]]):
        learner.validation_step((torch.zeros(len(y), 3, dtype=torch.long), torch.tensor(y)))
    learner.on_validation_epoch_end()
    learner.gradients((torch.zeros(1, 3, dtype=torch.long), torch.tensor([[0, 0, 0]])), learner.learned)
    measured = learner.measured()
    assert measured["eval_perplexity"] == pytest.approx(2 ** (20 / 9))
    assert measured["eval_word_perplexity"] == pytest.approx(2 ** (22 / 5))
    assert measured["eval_loss"] == pytest.approx(20 / 9 * math.log(2))
    assert measured["train_perplexity"] == pytest.approx(2)


def test_a_model_that_gives_something_else_is_named(text: Text, tmp_path: Path) -> None:
    (tmp_path / "pooled.py").write_text(
        "from torch import nn\n\nclass Pooled(nn.Sequential):\n    def __init__(self, classes: int):\n"
        "        super().__init__(nn.Embedding(classes, 8), nn.Tanh(), nn.Linear(8, 3))\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        settings = tiny_text.settings(model=ModelSettings("pooled.Pooled").describe(), taps=None, error_at=None)
        with pytest.raises(RunError, match=r"gives \(8, 16, 3\) .*one logit for each token .*\(8, 16, 280\)"):
            run(settings, text, tmp_path / "runs")


def test_recovery_is_that_of_the_loss() -> None:
    def of(label: str, *perplexities: float) -> list[dict[str, Any]]:
        rest = {"label": label, "seconds_per_epoch": 1.0, "peak_memory_bytes": 1, "feedback_bytes": 0}
        rest["epochs"] = [{"alignment": []}]
        return [rest | {"seed": seed, "perplexity": value} for seed, value in enumerate(perplexities)]

    records = [*of("BP", 100, 100), *of("Shallow", 400, 400), *of("DFA", 100, 400)]
    found = summarize(records, ["BP", "Shallow", "DFA"], LANGUAGE.metric)
    assert [entry["perplexity_mean"] for entry in found] == [100, 400, 250]
    assert found[2]["perplexity_std"] == pytest.approx(300 / math.sqrt(2))
    # The mean loss lies half way between log 400 and log 100, the mean perplexity does not.
    assert [entry["recovery"] for entry in found] == pytest.approx([1, 0, 0.5])
    assert math.copysign(1, found[1]["recovery"]) == 1


# -- runs --------------------------------------------------------------------------------------------------------------


def test_the_record_counts_steps(text: Text, tmp_path: Path) -> None:
    record = run(tiny_text.settings(details=True), text, tmp_path)
    assert [(part["epoch"], part["step"]) for part in record["epochs"]] == [(1, 4), (2, 8), (3, 12)]
    for part in record["epochs"]:
        assert part["eval_perplexity"] == pytest.approx(math.exp(part["eval_loss"]))
        assert part["train_perplexity"] == pytest.approx(math.exp(part["train_loss"]))
        assert [tap["name"] for tap in part["alignment"]] == ["blocks.0.tap", "blocks.1.tap"]
        assert part["alignment"][1]["cosine_mean"] == pytest.approx(1)
        assert part["alignment"][0]["n_valid"] == 16 * 16  # tokens
    assert record["perplexity"] == record["epochs"][-1]["eval_perplexity"] < record["epochs"][0]["eval_perplexity"]
    assert "accuracy" not in record
    assert record["embedding"] is None


@pytest.mark.parametrize(("label", "order"), [("BP", "shuffled"), ("DFA", "shuffled"), ("uSF", "streams")])
def test_a_resumed_run_equals_the_uninterrupted_one(label: str, order: Order, text: Text, tmp_path: Path) -> None:
    text = replace(text, order=order)
    # 209 sequences are a pass of 27 steps: the parts of ten steps begin anywhere in a pass.
    settings = tiny_text.settings(label, steps=60, epochs=6)

    def state(place: str) -> dict[str, Any]:
        return torch.load(Places.of(settings, text, tmp_path / place).checkpoint, weights_only=True)

    whole = run(settings, text, tmp_path / "whole", keep_checkpoint=True)
    with pytest.raises(OSError, match="stopped here"):
        run(settings, text, tmp_path / "broken", display=Interrupting(33, crash))
    torch.rand(5)
    resumed = run(settings, text, tmp_path / "broken", keep_checkpoint=True)
    for part, other in zip(resumed["epochs"], whole["epochs"], strict=True):
        assert json.dumps(part | {"seconds": 0}) == json.dumps(other | {"seconds": 0})
    for part in ("state_dict", "optimizer_states", "lr_schedulers", "random_state"):
        assert_equal(state("broken")[part], state("whole")[part], part)


def test_every_rule_that_serves_layers_or_taps_trains(text: Text, tmp_path: Path) -> None:
    for label in ("FA", "sDFA", "Shallow"):
        record = run(tiny_text.settings(label, steps=30, epochs=1), text, tmp_path)
        assert record["perplexity"] < 200  # of 280


def test_steps_must_fall_into_equal_parts() -> None:
    with pytest.raises(SettingsError, match=r"--steps 13 are not 3 equal parts"):
        tiny_text.settings(steps=13)
    with pytest.raises(SettingsError, match=r"--steps 0"):
        tiny_text.settings(steps=0)
    with pytest.raises(SettingsError, match=r"--epochs 1 --steps 800: give one of the two"):
        plan_runs(CompareOptions(data="text", epochs=1, steps=800))
    with pytest.raises(SettingsError, match=r"--evaluations 0 must be"):
        plan_runs(CompareOptions(data="text", evaluations=0))


# -- comparisons -------------------------------------------------------------------------------------------------------


@pytest.fixture
def asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CompareOptions:
    tiny_text.folder(tmp_path / "corpus")
    monkeypatch.chdir(tmp_path)
    model = ModelSettings("CausalTransformer", SMALL)
    return CompareOptions(
        data="text", data_dir="corpus", text=tiny_text.HOW, steps=12, evaluations=3, batch_size=8, seeds=2,
        model=model, threads=1,
    )  # fmt: skip


def test_a_run_to_an_infinite_perplexity_is_read_again(asked: CompareOptions) -> None:
    asked = replace(asked, seeds=1, rules=["DFA"])
    compare(asked)
    (path,) = Path("runs/compare-text/runs").glob("*.json")
    record = json.loads(path.read_text())
    record["perplexity"] = record["epochs"][-1]["eval_perplexity"] = None  # infinity, in a file
    path.write_text(json.dumps(sealed(record)))
    shown = io.StringIO()
    assert compare(asked, Console(file=shown, width=160))["summary"][0]["perplexity_mean"] is None
    assert "validation perplexity not finite (finished before)" in shown.getvalue()


def test_compare_from_end_to_end(asked: CompareOptions) -> None:
    shown = io.StringIO()
    compare(asked, Console(file=shown, width=160))
    folder = Path("runs/compare-text")
    written = json.loads((folder / "comparison.json").read_text())
    assert (written["format"], written["task"]) == ("bpfree-comparison/1", "language")
    assert [entry["label"] for entry in written["summary"]] == ["BP", "Shallow", "DFA"]
    assert (written["settings"]["steps"], written["settings"]["evaluations"]) == (12, 3)
    assert "epochs" not in written["settings"]
    assert (written["settings"]["taps"], written["settings"]["error_at"]) == (["blocks.*.tap"], "below_head")
    assert written["settings"]["rules"]["DFA"]["lr"] == 1e-3
    assert written["settings"]["rules"]["DFA"]["schedule"] == "constant"
    assert written["data"]["name"] == "corpus"
    assert str(Path.cwd()) not in json.dumps(written)
    by_hand = [entry["perplexity"] for entry in written["runs"] if entry["label"] == "DFA"]
    assert written["summary"][2]["perplexity_mean"] == pytest.approx(sum(by_hand) / 2)
    for expected in (
        "DFA, seed 1, step 12/12: validation perplexity",
        "perplexity on 464 validation tokens",
        "s/4 steps",
    ):
        assert expected in shown.getvalue()
    page = (folder / "report.html").read_text(encoding="utf-8")
    for expected in (
        "Learning rules on corpus", "12 steps each", "Perplexity on the validation set", "lower is better",
        "per 4 steps", "of the logarithm of perplexity", "Tap blocks.0.tap", "3,344 tokens",
    ):  # fmt: skip
        assert expected in page, expected
    for absent in ("Accuracy", "t-SNE", "First-layer filters", "over epochs"):
        assert absent not in page.partition("<script")[0], absent
    spec = json.loads(page.partition('id="specs">')[2].partition("</script>")[0])["learning-0"]
    axis = spec["layer"][-1]["encoding"]["x"]
    assert axis["title"] == "step"
    assert "datum.value * 4" in axis["axis"]["labelExpr"]
    assert report.picture(written, folder / "report.png").stat().st_size > 10_000


def test_the_command_asks_for_the_same(asked: CompareOptions) -> None:
    again = compare_options(*shlex.split(command_line("compare", asked))[2:])
    assert plan_runs(again) == plan_runs(asked)
    assert again == replace(asked, model=again.model)


def test_taps_and_error_are_those_of_the_model_unless_named(asked: CompareOptions) -> None:
    first = plan_runs(asked)[0]
    assert (first.taps, first.error_at, first.task) == (["blocks.*.tap"], "below_head", "language")
    other = plan_runs(replace(asked, taps=["blocks.0.tap"], error_at="head"))[0]
    assert (other.taps, other.error_at) == (["blocks.0.tap"], "head")
    pictures = plan_runs(CompareOptions())[0]
    assert (pictures.taps, pictures.error_at, pictures.epochs, pictures.steps) == (None, None, 5, None)


def test_the_general_settings_are_those_of_the_experiment() -> None:
    first, control, _ = plan_runs(CompareOptions(data="text", seeds=1))
    assert (first.steps, first.epochs, first.batch_size) == (800, 8, 16)
    assert (first.rule.optimizer, first.rule.lr, first.rule.schedule) == ("Adam", 1e-3, "constant")
    assert control.rule.lr == 1e-3
    assert first.model["class_path"] == "bpfree.lab.models.CausalTransformer"
    cosine = plan_runs(CompareOptions(data="text", schedule="cosine", lr=2e-3))[0].rule
    assert (cosine.lr, cosine.schedule) == (2e-3, "cosine")


def test_arguments_of_a_model_go_to_the_one_that_is_meant() -> None:
    assert with_model(["compare", "--epochs", "3"]) == ["compare", "--epochs", "3"]
    for given, name in (
        (["--model.hidden", "[3]"], "MLP"),
        (["--data", "text", "--model.norm=pre"], "CausalTransformer"),
    ):
        assert with_model(["compare", *given]) == ["compare", "--model", f"bpfree.lab.models.{name}", *given]
    assert with_model(["compare", "--data=text", "--model.norm", "pre"]) == [
        "compare", "--model", "bpfree.lab.models.CausalTransformer", "--data", "text", "--model.norm", "pre"
    ]  # fmt: skip
    for given in (["--model", "CNN", "--model.hidden", "3"], ["--model=CNN", "--model.hidden", "3"]):
        assert with_model(["compare", *given]) == ["compare", "--model", "bpfree.lab.models.CNN", *given[-2:]]
    parser, commands = make_parser()
    parsed = parser.parse_args(["compare", "--model", "CausalTransformer"])
    options = read_options(commands["compare"], parsed["compare"], CompareOptions)
    assert options.model is not None
    assert options.model.describe()["init_args"]["activation"] == "relu"  # its own, not the MLP's tanh


def test_train_stops_and_resumes(asked: CompareOptions, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--data", "text", "--data-dir", "corpus", "--text.vocabulary", "280", "--text.context", "16"]
    words += ["--steps", "12", "--evaluations", "3", "--batch-size", "8", "--threads", "1", "--out", "there"]
    words += ["--model.blocks", "2", "--model.width", "16", "--model.heads", "2", "--model.hidden", "32"]
    ended = runs.EpochRecords.on_train_epoch_end

    def interrupted(self, trainer, module):
        ended(self, trainer, module)
        if trainer.current_epoch == 1:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs.EpochRecords, "on_train_epoch_end", interrupted)
        assert main(words) == 130
    assert main([*words, "--resume"]) == 0
    assert "DFA, seed 0: continued after step 4 of 12" in capsys.readouterr().out
    Path("corpus/valid.txt").write_text("a dog sees him .\n" * 40)
    assert main([*words, "--resume"]) == 1  # another text
    assert "holds no checkpoint of a run with these settings on these data. There are only others: DFA-seed0" in (
        capsys.readouterr().err
    )


# -- text that is written during training ------------------------------------------------------------------------------


def _weights(settings: RunSettings, text: Text, place: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    record = run(settings, text, place, keep_checkpoint=True)
    return record, torch.load(Places.of(settings, text, place).checkpoint, weights_only=True)


@pytest.mark.parametrize("label", ["BP", "DFA", "GrAPE", "FDFA"])
def test_text_is_written_at_each_evaluation_and_changes_no_number(label: str, text: Text, tmp_path: Path) -> None:
    """There is dropout: one number drawn from torch's state, or one module left in evaluation mode, would show."""
    with_text, state = _weights(tiny_text.settings(label, details=True), text, tmp_path / "with")
    without, other = _weights(tiny_text.settings(label), text, tmp_path / "without")
    for part in ("state_dict", "optimizer_states", "random_state"):
        assert_equal(state[part], other[part], part)
    samples = [part.pop("sample") for part in with_text["epochs"]]
    for part, other_part in zip(with_text["epochs"], without["epochs"], strict=True):
        assert part | {"seconds": 0} == other_part | {"seconds": 0}
    x, _ = text.evaluation.batch(torch.tensor([0]))
    assert {sample["prompt"] for sample in samples} == {text.vocabulary.decode_text(x[0, :8])}
    assert {(sample["temperature"], sample["seed"]) for sample in samples} == {(0.8, 0)}
    assert len({sample["text"] for sample in samples}) == 3  # it learns


def test_the_last_sample_is_what_the_trained_model_writes(text: Text, tmp_path: Path) -> None:
    settings = tiny_text.settings("BP", details=True)
    record, state = _weights(settings, text, tmp_path)
    model = ModelSettings(**settings.model).build(text.shape, text.classes)
    model.load_state_dict({name[6:]: value for name, value in state["state_dict"].items() if name[:6] == "model."})
    prompt = text.evaluation.batch(torch.tensor([0]))[0][0, :8]
    written = list(continuation(model, prompt, 16, 48, Sampling(temperature=0.8)))
    assert record["epochs"][-1]["sample"]["text"] == text.vocabulary.decode_text(torch.tensor(written))
