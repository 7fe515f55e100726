"""``bpfree generate``: what a run on text keeps, how it is found again, and what is written to the terminal."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bpfree.lab.commands import main
from bpfree.lab.commands.generate import generate, prompt_tokens
from bpfree.lab.data.text import Vocabulary
from bpfree.lab.disk.checksums import sealed
from bpfree.lab.errors import DamageError, RunError, SettingsError, TrustError
from bpfree.lab.kept.text import find_text_run, load_text_run
from bpfree.lab.models import CausalTransformer
from bpfree.lab.options.generate import GenerateOptions
from bpfree.lab.tasks.generation import text_pieces
from support import tiny_text

TEXT = ["--data", "text", "--text.vocabulary", "280", "--text.context", "16", "--threads", "1"]
SHORT = ["--steps", "30", "--evaluations", "3", "--batch-size", "8", "--alignment", "never", "--rule", "BP"]
SMALL = [f"--model.{name}={value}" for name, value in tiny_text.SMALL.items()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on text that is not there any more."""
    place = tmp_path_factory.mktemp("trained")
    corpus = tiny_text.folder(place / "corpus")
    words = ["train", *TEXT, *SHORT, "--data-dir", str(corpus), "--model", "CausalTransformer", *SMALL]
    assert main([*words, "--lr", "0.01", "--out", str(place / "run")]) == 0
    shutil.rmtree(corpus)
    return place / "run"


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    shutil.copytree(trained, tmp_path / "run")
    return tmp_path / "run"


def by_hand(folder: Path) -> tuple[CausalTransformer, Tokenizer]:
    """The model and its tokens, from the files alone."""
    model = CausalTransformer((16,), 280, **tiny_text.SMALL)
    (checkpoint,) = folder.glob("*/last.ckpt")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    model.load_state_dict({name[6:]: value for name, value in state.items() if name.startswith("model.")})
    return model.eval(), Tokenizer.from_file(str(checkpoint.with_name("tokenizer.json")))


def test_the_likeliest_text_is_that_of_a_loop_by_hand(trained: Path) -> None:
    shown = io.StringIO()
    options = GenerateOptions(name=str(trained), prompt="the cat sees", tokens=25, temperature=0)
    found = generate(options, Console(file=shown))
    model, tokenizer = by_hand(trained)
    tokens = tokenizer.encode("the cat sees").ids
    with torch.no_grad():
        for _ in range(25):
            tokens.append(int(model(torch.tensor([tokens[-16:]]))[0, -1].argmax()))
    assert "the cat sees" + found == tokenizer.decode(tokens)
    assert shown.getvalue() == f"the cat sees{found}\n"
    assert " fish ." in found or " trees ." in found or " him 🙂 ." in found  # it has learned the grammar


def test_the_command_writes_the_same_for_the_same_seed(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def written(*words: str) -> str:
        assert main(["generate", str(trained), "--tokens", "12", *words]) == 0
        return capsys.readouterr().out

    first = written("--prompt", "a [bold] dog", "--top-k", "5")
    assert first.startswith("a [bold] dog")
    assert written("--prompt", "a [bold] dog", "--top-k", "5") == first
    assert written("--prompt", "a [bold] dog", "--top-k", "5", "--seed", "1") != first
    assert written("--prompt", "a [bold] dog", "--temperature", "0") != first
    assert len(written()) > 1  # from the end of a line
    long = "the cat sees fish . " * 9
    assert written("--prompt", long).startswith("(the prompt has")


@pytest.mark.parametrize("place", ["", "folder", "record", "checkpoint"])
def test_a_run_is_found_by_its_folder_record_or_checkpoint(place: str, trained: Path) -> None:
    (record,) = trained.glob("*.json")
    folder = trained / record.stem
    named = {"": trained, "folder": folder, "record": record, "checkpoint": folder / "last.ckpt"}[place]
    assert find_text_run(named) == folder


def test_what_is_no_run_is_named(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(RunError, match="Name the folder of a run"):
        generate(GenerateOptions())
    with pytest.raises(RunError, match=r"nothing: there is no such run"):
        generate(GenerateOptions(name=str(tmp_path / "nothing")))
    (folder,) = (path for path in copied.iterdir() if path.is_dir())
    shutil.copytree(folder, copied / "another")
    with pytest.raises(RunError, match=r"holds several runs. Name one of them: .*BP-seed0"):
        generate(GenerateOptions(name=str(copied)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match="Runs of compare and table keep no weights"):
        generate(GenerateOptions(name=str(tmp_path / "empty")))
    (folder / "last.ckpt").unlink()
    with pytest.raises(RunError, match="holds no checkpoint"):
        generate(GenerateOptions(name=str(folder)))


def test_damaged_files_are_named(copied: Path) -> None:
    (folder,) = (path for path in copied.iterdir() if path.is_dir())
    settings = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(settings | {"classes": 5}))
    with pytest.raises(DamageError, match=r"model\.json is damaged"):
        load_text_run(folder)
    settings["model"]["init_args"]["width"] = 32
    (folder / "model.json").write_text(json.dumps(sealed(settings)))
    with pytest.raises(DamageError, match=r"last\.ckpt does not hold the weights of the model"):
        load_text_run(folder)
    content = (folder / "last.ckpt").read_bytes()
    (folder / "last.ckpt").write_bytes(content[:-9])
    with pytest.raises(DamageError):
        load_text_run(folder)


def test_a_run_that_names_code_is_not_trusted(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder,) = (path for path in copied.iterdir() if path.is_dir())
    settings = json.loads((folder / "model.json").read_text())
    settings["model"]["class_path"] = "os.path.Mine"
    (folder / "model.json").write_text(json.dumps(sealed(settings)))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(copied))  # where no folder is marked
    with pytest.raises(TrustError, match=r"names code to run, os\.path\.Mine.*--trust"):
        load_text_run(folder)


def test_an_interrupted_run_writes_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = tiny_text.folder(tmp_path / "corpus")

    def stop(*_: object) -> None:
        raise OSError("stopped here")

    # Behind the last checkpoint, before the record.
    monkeypatch.setattr("bpfree.lab.running.runs.statistics.median", stop)
    words = ["train", *TEXT, *SHORT, "--data-dir", str(corpus), *SMALL]
    with pytest.raises(OSError, match="stopped here"):
        main([*words, "--out", str(tmp_path / "run")])
    assert generate(GenerateOptions(name=str(tmp_path / "run"), tokens=4))


@pytest.mark.parametrize(
    "wrong", ["--model.heads 5", "--taps nothing", "--lr 1e30", "--text.order streams --batch-size 4000"]
)
def test_a_run_that_is_refused_before_it_is_trained_leaves_nothing(wrong: str, tmp_path: Path) -> None:
    corpus = tiny_text.folder(tmp_path / "corpus")
    words = ["train", *TEXT, *SHORT, "--data-dir", str(corpus), "--model", "CausalTransformer", *SMALL]
    assert main([*words, *wrong.split(), "--out", str(tmp_path / "run")]) == 1
    assert not list((tmp_path / "run").rglob("*"))


@pytest.mark.parametrize("wrong", ["--temperature -1.0", "--top-k 0", "--tokens 0", "--seed -1"])
def test_values_that_mean_nothing_are_named(wrong: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", str(trained), *wrong.split()]) == 1
    assert capsys.readouterr().err.startswith(f"bpfree generate: {wrong} must")


# -- tokens and letters ------------------------------------------------------------------------------------------------


def words_only() -> Tokenizer:
    made = Tokenizer(models.WordLevel({"to": 0, "be": 1, "or": 2, "<unk>": 3}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return made


def letters_only() -> Tokenizer:
    """Byte pairs that drop what they do not know."""
    made = Tokenizer(models.BPE({"▁": 0, "t": 1, "o": 2, "▁t": 3, "▁to": 4}, [("▁", "t"), ("▁t", "o")]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    return made


@pytest.mark.parametrize("tokenizer", [words_only, letters_only])
def test_a_prompt_with_unknown_tokens_is_refused(tokenizer: object) -> None:
    vocabulary = Vocabulary(tokenizer())  # type: ignore[operator]
    assert len(prompt_tokens(vocabulary, "to to")) == 2
    with pytest.raises(SettingsError, match=r"--prompt: .* does not know '[xyz'\s,]+', '🙂'\. Leave it out"):
        prompt_tokens(vocabulary, "to xyz to 🙂")


@pytest.mark.parametrize("words", [None, pre_tokenizers.Metaspace()])
def test_letters_that_are_dropped_are_named_wherever_they_stand(words: pre_tokenizers.PreTokenizer | None) -> None:
    made = Tokenizer(models.BPE({" ": 0, "▁": 1, "t": 2, "o": 3}, []))
    if words is not None:
        made.pre_tokenizer = words
    assert Vocabulary(made).unknown("☃ to 日t🙂 o ☃") == ["☃", "日", "🙂"]
    assert Vocabulary(made).unknown("to to") == []


def test_an_empty_prompt_is_the_end_of_a_line_where_there_is_one() -> None:
    vocabulary = Vocabulary.trained(["to be"], 262)
    assert prompt_tokens(vocabulary, "").tolist() == [vocabulary.end_of_line]
    with pytest.raises(SettingsError, match="give at least one token"):
        prompt_tokens(Vocabulary(words_only()), "")


def test_bytes_know_every_letter() -> None:
    vocabulary = Vocabulary.trained(["to be"], 262)
    text = "tö 🙂\n\x00 \ufffd"
    assert vocabulary.decode_text(prompt_tokens(vocabulary, text)) == text


def test_letters_come_whole_and_blanks_stay() -> None:
    vocabulary = Vocabulary.trained(["to be"], 262)
    tokens = vocabulary.encode_text("🙂 ü\nto be").tolist()
    pieces = list(text_pieces(vocabulary, torch.tensor([5]), tokens))
    assert "".join(pieces) == "🙂 ü\nto be"
    assert pieces[0] == "🙂"  # of four bytes
    cut = list(text_pieces(vocabulary, torch.tensor([5]), tokens[:2]))
    assert "".join(cut) == "\ufffd"
    blanks = Vocabulary(letters_only())
    assert list(text_pieces(blanks, torch.tensor([4]), [4, 1, 2])) == [" to", "t", "o"]


# -- models of transformers --------------------------------------------------------------------------------------------

GPT2 = {"model_type": "gpt2", "n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 32}
WITHOUT = """
import sys
sys.modules["bpfree"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder = sys.argv[1]
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
tokens = tokenizer("the cat\\nsees", return_tensors="pt")
written = model.generate(**tokens, max_new_tokens=12, do_sample=False, pad_token_id=0)[0]
print(repr(tokenizer.decode(written)))
print(sorted(name for name in sys.modules if name.startswith("bpfree.")))
"""


@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of a model of transformers, and its text."""
    pytest.importorskip("transformers", reason="needs transformers: pip install bpfree[models]")
    place = tmp_path_factory.mktemp("hugging_face")
    corpus = tiny_text.folder(place / "corpus")
    (place / "gpt2.json").write_text(json.dumps(GPT2))
    words = ["train", *TEXT, *SHORT, "--data-dir", str(corpus), "--model", f"hf:{place / 'gpt2.json'}", "--lr", "0.01"]
    assert main([*words, "--out", str(place / "run")]) == 0
    (place / "gpt2.json").unlink()
    return place / "run", corpus


@pytest.mark.models
def test_the_saved_model_is_read_by_transformers_alone(hugging_face: tuple[Path, Path]) -> None:
    run, _ = hugging_face
    (model,) = run.glob("*/model")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, str(model)], capture_output=True, text=True, check=True,
        env={"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    ours = generate(GenerateOptions(name=str(run), prompt="the cat\nsees", tokens=12, temperature=0))
    assert done.stdout.splitlines() == [repr("the cat\nsees" + ours), "[]"]


@pytest.mark.models
def test_training_goes_on_from_the_saved_model_with_its_tokens(
    hugging_face: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, corpus = hugging_face
    (model,) = run.glob("*/model")
    few = ["--steps", "1", "--evaluations", "1", "--batch-size", "8", "--lr", "0", "--rule", "BP", "--threads", "1"]
    words = ["train", "--data", "text", "--data-dir", str(corpus), "--text.context", "16", *few]
    words += ["--model", f"hf:{model}", "--out", str(tmp_path / "tuned")]
    assert main([*words, "--text.tokenizer", str(model)]) == 0
    (before,), (after,) = (folder.glob("*.json") for folder in (run, tmp_path / "tuned"))
    first, second = (json.loads(path.read_text())["perplexity"] for path in (before, after))
    assert first == pytest.approx(second)  # with a learning rate of 0 it is the same model
    capsys.readouterr()
    assert main([*words, "--text.vocabulary", "270"]) == 1
    said = capsys.readouterr().err
    assert "the text's 270 tokens are not the 280 of the weights" in said
    assert f"--text.tokenizer {model}" in said


@pytest.mark.models
def test_a_saved_model_is_there_whole_or_not_at_all(
    hugging_face: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, corpus = hugging_face
    shutil.copytree(run, tmp_path / "run")
    (model,) = (tmp_path / "run").glob("*/model")
    (tmp_path / "gpt2.json").write_text(json.dumps(GPT2))
    shutil.rmtree(model)
    words = ["train", *TEXT, *SHORT, "--data-dir", str(corpus), "--lr", "0.01", "--out", str(tmp_path / "run")]
    words += ["--model", f"hf:{tmp_path / 'gpt2.json'}"]

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Vocabulary, "save", full)
        with pytest.raises(OSError, match="No space"):
            main(words)
    with monkeypatch.context() as patch:
        patch.setattr("bpfree.lab.models.hugging_face.CausalLM.save", full)
        assert main(words) == 1
    assert not model.exists()
    assert not list(model.parent.glob(".bpfree-*"))
    assert main(words) == 0  # the run has finished: its model is made of the checkpoint
    assert (model / "model.safetensors").is_file()
