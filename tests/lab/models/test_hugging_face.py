"""Models of transformers by the lab's commands: where feedback enters, what is refused, and the identity of runs."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import bpfree
from bpfree.lab.commands import main
from bpfree.lab.commands.compare import plan_runs
from bpfree.lab.errors import SettingsError
from bpfree.lab.models.hugging_face import CausalLM
from bpfree.lab.options.command_line import command_line
from bpfree.lab.options.training import CompareOptions
from bpfree.lab.settings.identity import HUGGING_FACE
from bpfree.lab.settings.model import ModelSettings, with_import_path
from bpfree.lab.settings.trust import names_code, vouched
from bpfree.lab.tables.work import works
from support import tiny_text
from support.cli import compare_options

pytestmark = pytest.mark.models
transformers = pytest.importorskip("transformers", reason="needs transformers: pip install bpfree[models]")

CONTEXT, WORDS = 16, 60
GPT2 = {"model_type": "gpt2", "n_layer": 3, "n_embd": 16, "n_head": 2, "n_positions": CONTEXT, "vocab_size": WORDS}
LLAMA = {
    "model_type": "llama", "num_hidden_layers": 3, "hidden_size": 16, "intermediate_size": 24,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": CONTEXT, "vocab_size": WORDS,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2,
    "llama": LLAMA,
    "mistral": LLAMA | {"model_type": "mistral", "sliding_window": 4},
    "qwen2": LLAMA | {"model_type": "qwen2"},
    "olmo": LLAMA | {"model_type": "olmo"},
    "gpt_neox": LLAMA | {"model_type": "gpt_neox"},
    "opt": LLAMA | {"model_type": "opt", "ffn_dim": 24, "word_embed_proj_dim": 16},
}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return write(tmp_path / "gpt2.json", GPT2)


def write(path: Path, values: dict[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))
    return path


def built(path: Path, classes: int = WORDS, context: int = 8, **arguments: Any) -> Any:
    torch.manual_seed(0)
    return ModelSettings(f"hf:{path}", arguments).build((context,), classes)


def saved(folder: Path, values: dict[str, Any], **changes: Any) -> Any:
    """Write a model with weights; return it."""
    torch.manual_seed(1)
    model = transformers.AutoModelForCausalLM.from_config(
        transformers.AutoConfig.for_model(**(values | {"bos_token_id": 0, "eos_token_id": 0} | changes))
    )
    model.save_pretrained(folder)
    return model


# -- places of feedback ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CONFIGS)
def test_blocks_are_tapped_and_the_error_is_taken_at_the_last(kind: str, tmp_path: Path) -> None:
    """By autograd: what lies above the last tap has the gradient of backpropagation, and the blocks below have not."""
    settings = ModelSettings(f"hf:{write(tmp_path / 'config.json', CONFIGS[kind])}")
    taps, error_at = settings.suggestion("taps"), settings.suggestion("error_at")
    assert [name[-1] for name in (*taps, error_at)] == ["0", "1", "2"]
    gradients = []
    for rule in (bpfree.BP(), bpfree.DFA()):
        torch.manual_seed(0)
        model = settings.build((8,), 12)
        model.eval()
        with bpfree.attach(model, rule, taps=taps, error_at=error_at, seed=0) as attachment:
            tokens = torch.randint(0, 12, (3, 9), generator=torch.Generator().manual_seed(0))
            F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
            if rule == bpfree.DFA():
                # 16 x 16 numbers of 4 bytes, which taps share: the error is as wide as the stream.
                assert "Feedback memory: 1.0 KiB" in str(attachment)
        gradients.append({name: weight.grad for name, weight in model.named_parameters()})
    exact, direct = gradients
    head = model.model.get_output_embeddings().weight
    tied = head is model.model.get_input_embeddings().weight
    same = {name for name in exact if torch.allclose(exact[name], direct[name], atol=1e-6)}
    (of_head,) = [name for name, weight in model.named_parameters() if weight is head]
    assert (of_head in same) == (not tied), "a tied matrix has the embedding's part by feedback"
    assert {name for name in exact if name.startswith(error_at)} <= same
    # Matrices: the bias of keys has no gradient, as it changes no weight of attention.
    assert not any(name.startswith(taps[0]) and exact[name].dim() > 1 for name in same)
    assert all(direct[name] is not None for name in exact)


def test_a_tied_matrix_gets_the_heads_exact_gradient_and_the_embeddings_by_feedback(config: Path) -> None:
    """Untied with the same weights: the two gradients are apart, and the tied one is their sum."""
    found: dict[bool, dict[str, torch.Tensor]] = {}
    for tied in (True, False):
        settings = ModelSettings(f"hf:{config}", {"config": {"tie_word_embeddings": tied}})
        torch.manual_seed(0)
        model = settings.build((8,), WORDS).eval()
        embedding = model.model.get_input_embeddings().weight
        head = model.model.get_output_embeddings().weight
        assert (embedding is head) == tied
        with torch.no_grad():
            generator = torch.Generator().manual_seed(3)
            for _, weight in sorted(model.named_parameters()):
                if weight is not head or tied:
                    weight.copy_(torch.randn(weight.shape, generator=generator) * 0.2)
            if not tied:
                head.copy_(embedding)
        places = {"taps": settings.suggestion("taps"), "error_at": settings.suggestion("error_at")}
        bpfree.attach(model, bpfree.DFA(), **places, seed=0)
        tokens = torch.arange(27).view(3, 9) % WORDS
        F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten()).backward()
        found[tied] = {"embedding": embedding.grad, "head": head.grad}
    parts = found[False]
    assert parts["embedding"].abs().max() > 1e-6
    assert torch.allclose(found[True]["head"], parts["embedding"] + parts["head"], atol=1e-6)


def test_a_model_without_blocks_is_told_what_to_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "config.json", GPT2 | {"n_layer": 1})  # one block does not repeat
    with pytest.raises(SettingsError, match=r"no repeated blocks.* in GPT2LMHeadModel.*--taps and --error-at"):
        ModelSettings(f"hf:{path}").suggestion("taps")
    monkeypatch.setattr(transformers.GPT2LMHeadModel, "get_output_embeddings", lambda self: None)
    with pytest.raises(SettingsError, match=r"no vocabulary head.*--error-at"):
        ModelSettings(f"hf:{write(path, GPT2)}").suggestion("error_at")


# -- weights and configs -----------------------------------------------------------------------------------------------


def test_without_weights_the_seed_draws_them_as_transformers_does(config: Path) -> None:
    first, again = built(config), built(config)
    torch.manual_seed(0)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2, bos_token_id=0, eos_token_id=0))
    for name, weight in theirs.state_dict().items():
        assert torch.equal(weight, first.model.state_dict()[name]), name
        assert torch.equal(weight, again.model.state_dict()[name]), name
    assert first.model.config.bos_token_id is None  # 50,256 by default, of a vocabulary that is not this one


def test_the_vocabulary_is_the_texts_where_there_are_no_weights(config: Path) -> None:
    model = built(config, classes=33)
    assert model(torch.zeros(2, 8, dtype=torch.long)).shape == (2, 8, 33)
    assert model.model.config.vocab_size == 33


def test_training_begins_at_the_weights_of_the_folder(tmp_path: Path) -> None:
    theirs = saved(tmp_path / "whole", GPT2)
    model = built(tmp_path / "whole")
    assert model.training
    assert all(part.training for part in model.modules()), "loaded models are in evaluation mode, without dropout"
    tokens = torch.arange(16).view(2, 8)
    assert torch.equal(model.eval()(tokens), theirs.eval()(tokens).logits)


def test_weights_of_any_precision_are_trained_in_single(tmp_path: Path) -> None:
    saved(tmp_path / "half", LLAMA | {"dtype": "bfloat16"})
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    assert {weight.dtype for weight in built(tmp_path / "half").parameters()} == {torch.float32}
    config = tmp_path / "half" / "config.json"
    assert {weight.dtype for weight in built(config).parameters()} == {torch.float32}


def test_values_that_follow_from_others_follow_from_the_changed_ones(tmp_path: Path) -> None:
    path = write(tmp_path / "llama.json", LLAMA)
    model = built(path, config={"hidden_size": 32}).model
    assert (model.config.hidden_size, model.config.head_dim) == (32, 8)
    # The same value under the name that other models have for it.
    assert len(built(write(path, GPT2), config={"num_hidden_layers": 2}).model.transformer.h) == 2


def test_rows_beyond_the_vocabulary_are_not_predicted(tmp_path: Path) -> None:
    saved(tmp_path / "padded", GPT2)
    assert built(tmp_path / "padded", classes=50)(torch.zeros(1, 8, dtype=torch.long)).shape == (1, 8, 50)


# -- what is refused ---------------------------------------------------------------------------------------------------


REFUSED: dict[str, tuple[dict[str, Any] | None, dict[str, Any], str]] = {
    "no file": (None, {}, "there is no such folder or file here. Nothing is downloaded"),
    "no type": ({"n_layer": 2}, {}, "no model of the type None.*model_type"),
    "code of its own": (
        {"model_type": "mine", "auto_map": {"AutoConfig": "code.Mine"}}, {}, "code that comes with a model is never run"
    ),
    "no causal model": ({"model_type": "t5"}, {}, "no causal language model of the type 't5'"),
    "sees later tokens": (
        {"model_type": "bert", "num_hidden_layers": 2, "hidden_size": 16, "intermediate_size": 16,
         "num_attention_heads": 2, "vocab_size": WORDS}, {}, "lets tokens see later ones.*is_decoder",
    ),
    "a value's kind": (GPT2 | {"n_layer": "two"}, {}, "config cannot be made.*n_layer"),
    "heads that do not divide the width": (GPT2, {"config": {"n_head": 3}}, ".*[Dd]ivi"),
    "an unknown value": (GPT2, {"config": {"n_layr": 3}}, "n_layr is no value.* Did you mean 'n_layer'"),
    "other files": (GPT2, {"content": "0" * 64}, "config or weights have changed"),
    "attention from elsewhere": (
        GPT2 | {"attn_implementation": "somebody/attention"}, {}, "attn_implementation may name code to be downloaded"
    ),
    "experts from elsewhere, inside": (
        GPT2 | {"text_config": {"_experts_implementation": "somebody/experts"}}, {}, "_experts_implementation may name"
    ),
    "quantized": (GPT2 | {"quantization_config": {"quant_method": "awq"}}, {}, "quantized, which cannot be trained"),
}  # fmt: skip


@pytest.mark.parametrize("values", [GPT2 | {"n_head": 3}, GPT2 | {"n_embd": 0}, LLAMA | {"num_key_value_heads": 0}])
def test_values_that_do_not_fit_each_other_are_named_before_a_run_is_planned(
    values: dict[str, Any], tmp_path: Path
) -> None:
    path = write(tmp_path / "config.json", values)
    with pytest.raises(SettingsError, match=f"^--model hf:{path}: no model can be made of this config"):
        CausalLM.suggested_taps(str(path))


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_trained_is_named(case: str, tmp_path: Path) -> None:
    values, arguments, said = REFUSED[case]
    path = tmp_path / "config.json"
    if values is not None:
        write(path, values)
    with pytest.raises(SettingsError, match=f"^--model.*{said}"):
        built(path, **arguments)


def test_files_that_are_no_config_are_named(tmp_path: Path) -> None:
    for content in ("{", "[1]", "\udc80"):
        (tmp_path / "config.json").write_text(content, errors="surrogateescape")
        with pytest.raises(SettingsError, match=r"config\.json is (not readable as JSON|no config)"):
            built(tmp_path)
    with pytest.raises(SettingsError, match=r"the folder holds no config\.json"):
        built(write(tmp_path / "other" / "settings.json", GPT2).parent)


def test_a_context_longer_than_the_models_is_named(config: Path) -> None:
    built(config, context=CONTEXT)
    with pytest.raises(SettingsError, match=r"reads 16 tokens at most, and sequences have 17: lower --text.context"):
        built(config, context=CONTEXT + 1)
    with pytest.raises(SettingsError, match=r"takes tokens of shape \(context,\), not \(1, 8, 8\)"):
        ModelSettings(f"hf:{config}").build((1, 8, 8), 10)


def test_weights_that_do_not_fit_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "whole"
    saved(folder, GPT2)
    with pytest.raises(SettingsError, match="its weights know 60 tokens, and the text has 61"):
        built(folder, classes=61)
    for changed, said in (({"n_layer": 4}, r"missing: transformer\.h\.3"), ({"n_layer": 2}, "unexpected: transformer")):
        with pytest.raises(SettingsError, match=f"weights do not fit the config .*{said}"):
            built(folder, config=changed)
    with pytest.raises(SettingsError, match="its weights cannot be read"):
        built(folder, config={"n_embd": 32})
    (folder / "model.safetensors").write_bytes(b"0" * 100)
    with pytest.raises(SettingsError, match="its weights cannot be read"):
        built(folder)


def test_without_transformers_the_extra_is_named(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(SettingsError, match=r"needs transformers: pip install 'bpfree\[transformers\]'"):
        built(config)


# -- names -------------------------------------------------------------------------------------------------------------


def test_a_short_name_is_a_class_and_a_path() -> None:
    full = {"class_path": HUGGING_FACE, "init_args": {"path": "some/gpt2.json"}}
    assert with_import_path("hf:some/gpt2.json") == full
    assert f"{CausalLM.__module__}.{CausalLM.__qualname__}" == HUGGING_FACE
    given = {"class_path": "hf:some/gpt2.json", "init_args": {"config": {"n_layer": 2}}}
    assert with_import_path(given)["init_args"] == {"path": "some/gpt2.json", "config": {"n_layer": 2}}
    assert with_import_path("MLP") == "bpfree.lab.models.MLP"


def test_a_runs_name_knows_the_files_and_not_where_they_lie(tmp_path: Path) -> None:
    def name(path: Path, **arguments: Any) -> str:
        return tiny_text.settings(model=ModelSettings(f"hf:{path}", arguments).describe()).name({})

    saved(tmp_path / "one", GPT2)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    first = name(tmp_path / "one")
    assert name(tmp_path / "two") == first
    assert name(tmp_path / "one" / "config.json") != first  # without the weights
    assert name(tmp_path / "one", config={"attn_pdrop": 0.0}) != first
    weights = tmp_path / "two" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(bytes(content))
    assert name(tmp_path / "two") != first


def test_a_path_is_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "gpt2").mkdir()
    assert not names_code(["train", "--model", "hf:gpt2.small"])
    assert names_code(["train", "--model", "gpt2.Small"])
    vouched(tmp_path / "r.yaml", {"model": with_import_path("hf:gpt2.small")}, trust=False)
    vouched(tmp_path / "r.yaml", {"model": "hf:gpt2.small"}, trust=False)


# -- commands ----------------------------------------------------------------------------------------------------------


def test_train_and_compare_take_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_text.folder(tmp_path / "corpus")
    write(tmp_path / "gpt2.json", GPT2)
    text = ["--data", "text", "--data-dir", "corpus", "--text.vocabulary", "280", "--text.context", "16"]
    short = ["--steps", "4", "--evaluations", "2", "--batch-size", "4", "--threads", "1"]
    words = [*text, *short, "--model", "hf:gpt2.json", "--model.config.n_layer", "2"]
    assert main(["compare", *words, "--rules", "BP", "DFA", "--seeds", "1", "--out", "compared"]) == 0
    written = json.loads((tmp_path / "compared" / "comparison.json").read_text())
    assert written["settings"]["taps"] == ["model.transformer.h.0"]
    assert written["settings"]["error_at"] == "model.transformer.h.1"
    (tmp_path / "asked.yaml").write_text("model: {class_path: 'hf:gpt2.json', init_args: {config: {n_layer: 2}}}\n")
    monkeypatch.setattr("bpfree.lab.running.runs._train", None)  # the same runs again: nothing is trained
    again = ["compare", *text, *short, "--config", "asked.yaml", "--rules", "BP", "DFA", "--seeds", "1"]
    assert main([*again, "--out", "compared"]) == 0


def test_recipes_take_it_and_know_the_files_wherever_they_lie(tmp_path: Path) -> None:
    corpus = tiny_text.folder(tmp_path / "corpus")
    first, second = (write(tmp_path / name / "gpt2.json", GPT2) for name in ("one", "two"))

    def key(path: Path, **arguments: Any) -> str:
        model = {"class_path": f"hf:{path}", "init_args": arguments}
        settings = {"data": "text", "rule": "DFA", "model": model, "text": {"vocabulary": 280, "context": 16}}
        (work,) = works("cell", settings, seeds=1, data_dir=str(corpus))
        assert work.settings.taps == [f"model.transformer.h.{block}" for block in range(2)]
        return work.key

    assert key(first) == key(second)
    assert key(first, config={"resid_pdrop": 0.0}) != key(first)
    third = write(tmp_path / "three" / "gpt2.json", GPT2 | {"resid_pdrop": 0.0})
    assert key(third) != key(first)


def test_the_command_that_a_comparison_writes_down_asks_for_the_same(config: Path) -> None:
    asked = CompareOptions(data="text", model=ModelSettings(f"hf:{config}", {"config": {"n_layer": 2}}))
    again = compare_options(*shlex.split(command_line("compare", asked))[2:])
    assert plan_runs(again) == plan_runs(asked)
