"""Suggested blocks and heads of models that nobody here wrote, and training by ``taps="blocks"``."""

import pytest
import torch
import torch.nn.functional as F

import bpfree

pytestmark = pytest.mark.models

VOCABULARY, LENGTH, WIDTH = 23, 6, 8
SMALL = {"num_hidden_layers": 3, "num_attention_heads": 2, "hidden_size": WIDTH, "intermediate_size": 16}
SPECIAL = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
TOKENS = (torch.arange(4)[:, None] * 3 + 5 * torch.arange(LENGTH)) % VOCABULARY
IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
CLASSES = torch.arange(4) % 3


def _transformers():
    return pytest.importorskip("transformers", reason="needs transformers: pip install bpfree[models]")


def gpt2(kind="GPT2LMHeadModel", **options):
    t = _transformers()
    sizes = {"vocab_size": VOCABULARY, "n_embd": WIDTH, "n_layer": 3, "n_head": 2, "n_positions": LENGTH}
    return getattr(t, kind)(t.GPT2Config(**sizes, **SPECIAL, **options))


def llama():
    t = _transformers()
    return t.LlamaForCausalLM(t.LlamaConfig(vocab_size=VOCABULARY, num_key_value_heads=2, **SMALL, **SPECIAL))


def bert(kind):
    t = _transformers()
    config = t.BertConfig(vocab_size=VOCABULARY, max_position_embeddings=LENGTH, num_labels=3, pad_token_id=0, **SMALL)
    return getattr(t, kind)(config)


def vit():
    t = _transformers()
    return t.ViTForImageClassification(t.ViTConfig(image_size=16, patch_size=8, num_labels=3, **SMALL))


def t5():
    t = _transformers()
    sizes = {"d_model": WIDTH, "d_kv": 4, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    return t.T5ForConditionalGeneration(t.T5Config(vocab_size=VOCABULARY, decoder_start_token_id=0, **SPECIAL, **sizes))


def resnet():
    t = _transformers()
    config = t.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[2, 3], layer_type="basic", num_labels=3)
    return t.ResNetForImageClassification(config)


TEXT = {"input_ids": TOKENS, "labels": TOKENS}
PICTURES = {"pixel_values": IMAGES, "labels": CLASSES}
OURS = {
    "GPT-2": (gpt2, [f"transformer.h.{i}" for i in range(2)], "transformer.h.2", TEXT),
    "Llama": (llama, [f"model.layers.{i}" for i in range(2)], "model.layers.2", TEXT),
    "BERT, words": (
        lambda: bert("BertForMaskedLM"),
        [f"bert.encoder.layer.{i}" for i in range(2)],
        "bert.encoder.layer.2",
        TEXT,
    ),
    "BERT, classes": (
        lambda: bert("BertForSequenceClassification"),
        [f"bert.encoder.layer.{i}" for i in range(3)],
        "classifier",
        {"input_ids": TOKENS, "labels": CLASSES},
    ),
    "ViT": (vit, [f"vit.layers.{i}" for i in range(3)], "classifier", PICTURES),
    "T5": (
        t5,
        ["encoder.block.0", "encoder.block.1", "decoder.block.0"],
        "decoder.block.1",
        TEXT,
    ),
    "ResNet": (
        resnet,
        [f"resnet.encoder.stages.{i}.layers.{j}" for i, j in ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2))],
        "classifier.1",
        PICTURES,
    ),
}


@pytest.mark.parametrize(("build", "taps", "error_at", "inputs"), OURS.values(), ids=OURS)
def test_models_of_transformers(build, taps, error_at, inputs):
    torch.manual_seed(3)
    model = build()
    suggestion = bpfree.suggest_taps(model)
    # transformers 4 has the ViT's blocks one level further down.
    found = [name.replace("vit.encoder.layer.", "vit.layers.") for name in suggestion.taps]
    assert (found, suggestion.error_at) == (taps, error_at)
    assert f"{len(taps)} blocks of {type(model).__name__}" in str(suggestion)

    exact = _gradients(model, inputs)
    attachment = bpfree.attach(model, bpfree.DFA(), taps="blocks")
    found = _gradients(model, inputs)
    lowest = f"{next(iter(attachment.taps))}."
    above = [name for name in exact if name.startswith(f"{error_at}.") and exact[name] is not None]
    assert above
    for name in above:
        torch.testing.assert_close(found[name], exact[name])
    below = [name for name in exact if name.startswith(lowest) and exact[name] is not None and exact[name].dim() > 1]
    assert below
    for name in below:
        assert found[name].abs().max() > 0
        assert F.cosine_similarity(found[name].flatten(), exact[name].flatten(), 0) < 0.9


def _gradients(model, inputs):
    """By name; dropout is off, so that they can be compared."""
    model.eval().zero_grad()
    model(**inputs).loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


def test_a_base_model_takes_the_error_behind_its_last_norm():
    suggestion = bpfree.suggest_taps(gpt2("GPT2Model"))
    assert (suggestion.taps, suggestion.error_at) == (("h.0", "h.1", "h.2"), "ln_f")


# -- graph nets ----------------------------------------------------------------------------------------------------


def _graph():
    edges = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 2], [1, 2, 3, 4, 5, 0, 3, 5]])
    return torch.randn(6, 4, generator=torch.Generator().manual_seed(2)), torch.cat([edges, edges.flip(0)], 1)


GRAPHS = {
    "GCN": ("GCN", {}, ["convs.0", "convs.1"], "convs.2"),
    "GIN": ("GIN", {}, ["convs.0", "convs.1"], "convs.2"),
    "GAT, norms between": ("GAT", {"norm": "batch_norm"}, ["convs.0", "convs.1"], "convs.2"),
    "GraphSAGE, jumping knowledge": ("GraphSAGE", {"jk": "cat"}, ["convs.0", "convs.1", "convs.2"], "lin"),
}


@pytest.mark.parametrize(("kind", "options", "taps", "error_at"), GRAPHS.values(), ids=GRAPHS)
def test_graph_nets(kind, options, taps, error_at):
    geometric = pytest.importorskip("torch_geometric.nn", reason="needs torch_geometric: pip install bpfree[models]")
    torch.manual_seed(4)
    model = getattr(geometric, kind)(4, 8, 3, 2, **options)
    suggestion = bpfree.suggest_taps(model)
    assert (list(suggestion.taps), suggestion.error_at) == (taps, error_at)

    bpfree.attach(model, bpfree.DFA(), taps="blocks")
    F.cross_entropy(model(*_graph()), torch.arange(6) % 2).backward()
    lowest = next(p for p in model.convs[0].parameters() if p.dim() > 1)
    assert lowest.grad.abs().max() > 0


# -- pictures ------------------------------------------------------------------------------------------------------

TIMM = {
    "resnet18": ([f"layer{i}.{j}" for i in range(1, 5) for j in range(2)], "fc"),
    "vit_tiny_patch16_224": ([f"blocks.{i}" for i in range(12)], "head"),
    "convnext_atto": (
        [f"stages.{i}.blocks.{j}" for i, depth in enumerate((2, 2, 6, 2)) for j in range(depth)],
        "head.fc",
    ),
    "regnetx_002": (["s1", "s2", *(f"s3.b{i}" for i in range(1, 5)), *(f"s4.b{i}" for i in range(1, 8))], "head.fc"),
}


@pytest.mark.parametrize(("name", "taps", "error_at"), [(name, *known) for name, known in TIMM.items()], ids=TIMM)
def test_models_of_timm(name, taps, error_at):
    timm = pytest.importorskip("timm", reason="needs timm, which is in no extra: pip install timm")
    suggestion = bpfree.suggest_taps(timm.create_model(name))
    assert (list(suggestion.taps), suggestion.error_at) == (taps, error_at)
