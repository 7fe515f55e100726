"""Rules on a GPT-2 of transformers, which computes its own loss and returns an object that holds it."""

import warnings

import pytest
import torch
import torch.nn.functional as F

import bpfree
from support.by_hand import assert_same
from support.rule_contract import FALL, Subject, assert_equal, assert_rule_serves, cut, matrices, project, train

pytestmark = pytest.mark.models
transformers = pytest.importorskip("transformers", reason="needs transformers: pip install bpfree[models]")

VOCABULARY, LENGTH, BLOCKS = 13, 8, 3
# Counting in steps of 5 from several starts: the next token follows from the one before it.
TOKENS = (torch.arange(4)[:, None] * 3 + 5 * torch.arange(LENGTH)) % VOCABULARY
MACRO = {"taps": "transformer.h.?"}
INNER = {"taps": "transformer.h.*.mlp.act"}
HEAD, BELOW_HEAD = {"error_at": "lm_head"}, {"error_at": "transformer.ln_f"}


def subject(options, dropout=0.1, activation="gelu_new", tied=True):
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        n_embd=16,
        n_layer=BLOCKS,
        n_head=2,
        activation_function=activation,
        tie_word_embeddings=tied,
        use_cache=False,
        initializer_range=0.2,  # at the usual .02, layers this narrow hardly tell one token from another
        bos_token_id=0,
        eos_token_id=0,
        **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), dropout),
    )

    def build():
        torch.manual_seed(2)
        return transformers.GPT2LMHeadModel(config).train().to(torch.get_default_dtype())

    def loss(model):
        return model(input_ids=TOKENS, labels=TOKENS).loss

    # The last token has nothing after it: no target.
    targets = F.pad(F.one_hot(TOKENS[:, 1:], VOCABULARY), (0, 0, 0, 1)).float()
    return Subject(build, lambda model: model(input_ids=TOKENS).logits, loss, targets, options)


PLACES = {
    "blocks, logits": {**MACRO, **HEAD},
    "blocks, below the head": {**MACRO, **BELOW_HEAD},
    "activations, logits": {**INNER, **HEAD},
    "activations, below the head": {**INNER, **BELOW_HEAD},
}
by_place = pytest.mark.parametrize("options", PLACES.values(), ids=PLACES)


@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.Shallow()], ids=str)
@by_place
def test_a_rule_trains_it_and_leaves_no_trace(options, rule):
    assert_rule_serves(subject(options), rule)


@pytest.mark.parametrize("rule", [bpfree.DRTP(), bpfree.FA()], ids=str)
def test_rules_that_need_the_logits_or_layers(rule):
    # DRTP not at the blocks: its signal does not fade, and would push their sum, which is pre-norm, on and on.
    assert_rule_serves(subject(PLACES["activations, logits"]), rule)


def test_activations_that_are_torchs_own_are_the_default_taps():
    case = subject(HEAD, activation="relu")
    model = case.build()
    assert list(case.attach(model, bpfree.DFA()).taps) == [f"transformer.h.{i}.mlp.act" for i in range(BLOCKS)]
    assert case.gradients(model)[0] is not None


def _logits_error(logits):
    """dL/dlogits, one row a token: the mean cross-entropy of every token but the last with the one after it."""
    error = torch.zeros_like(logits)
    onehot = F.one_hot(TOKENS[:, 1:], VOCABULARY)
    error[:, :-1] = (logits[:, :-1].detach().softmax(-1) - onehot) / onehot[..., 0].numel()
    return error


def _expected(twin, attachment, hidden, below):
    """Gradients from the taps' activations and from what leaves below the head, ``below``, by autograd alone."""
    below_cut = below.detach().requires_grad_()
    logits = twin.lm_head(below_cut)
    error = _logits_error(logits)
    above = error @ twin.lm_head.weight.detach()
    at_head = attachment.mechanism.plan.error_name == "lm_head"
    sent = (error if at_head else above).flatten(0, 1)
    signals = [project(sent, B, h) for B, h in zip(matrices(attachment), hidden, strict=True)]
    outputs = [logits, below, *hidden]
    return torch.autograd.grad(outputs, list(twin.parameters()), [error, above, *signals])


# The model takes its loss in single precision, whatever its own.
SINGLE = 2e-6


@pytest.mark.parametrize("place", [HEAD, BELOW_HEAD], ids=str)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_gradients_with_taps_at_the_blocks(double, place, tied):
    case = subject({**MACRO, **place}, dropout=0.0, tied=tied)
    twin, model = case.build(), case.build()
    attachment = case.attach(model, bpfree.DFA())
    found = case.gradients(model, attachment)

    body = twin.transformer
    x, hidden = body.wte(TOKENS) + body.wpe(torch.arange(LENGTH)), []
    for block in body.h:
        hidden.append(block(x))
        x = hidden[-1].detach()
    assert_same(found, _expected(twin, attachment, hidden, body.ln_f(x)), SINGLE)


@pytest.mark.parametrize("place", [HEAD, BELOW_HEAD], ids=str)
def test_gradients_with_taps_inside_the_residual_branches(double, place):
    # The sums around the branches stay open, so a block hears every tap above it and the error itself.
    case = subject({**INNER, **place}, tied=False)
    twin, model = case.build(), case.build()
    attachment = case.attach(model, bpfree.DFA())
    found = case.gradients(model, attachment)

    cuts = cut(twin, [f"transformer.h.{i}.mlp.act" for i in range(BLOCKS)])
    torch.manual_seed(11)
    below = twin.transformer(TOKENS).last_hidden_state
    hidden = [each.kept[0] for each in cuts]
    assert_same(found, _expected(twin, attachment, hidden, below), SINGLE)


@by_place
def test_above_the_error_and_the_last_tap_gradients_are_backpropagations(options):
    case = subject(options, tied=False)
    exact, model = case.gradients(case.build()), case.build()
    found = case.gradients(model, case.attach(model, bpfree.DFA()))
    names = [name for name, _ in model.named_parameters()]
    lowest = names.index("transformer.h.0.ln_1.weight")
    # With taps in the branches the blocks' sums reach ln_f uncut, and what is above it is exact as well.
    exactly = [index for index, name in enumerate(names) if name.startswith(("lm_head", "transformer.ln_f"))]
    assert len(exactly) == 3
    assert_equal([found[index] for index in exactly], [exact[index] for index in exactly])
    assert not torch.allclose(found[lowest], exact[lowest])


def test_feedback_alignment_serves_the_transposed_layers_of_its_blocks(double):
    # Conv1D is a linear layer whose weight is (in, out). With B = W the way back is backpropagation's.
    case = subject({}, tied=False)
    exact = case.gradients(case.build())
    model = case.build()
    attachment = case.attach(model, bpfree.FA())
    random = [gradient.clone() for gradient in case.gradients(model, attachment)]
    assert len(list(attachment.feedback)) == 4 * BLOCKS + 1
    assert not torch.allclose(random[0], exact[0])
    for name in attachment.feedback:
        attachment.feedback[name].copy_(model.get_submodule(name).weight)
    assert_same(case.gradients(model, attachment), exact, SINGLE)


def test_weight_mirrors_learn_transposed_weights_too(double):
    case = subject({})
    model = case.build()
    attachment = case.attach(model, bpfree.WeightMirror(rate=0.1, decay=0.1))
    case.gradients(model, attachment)
    attachment.mechanism.mirror(100)
    for name in attachment.feedback:
        W, B = model.get_submodule(name).weight.detach(), attachment.feedback[name]
        assert F.cosine_similarity(W.flatten(), B.flatten(), 0) > 0.95


def test_a_model_that_returns_a_loss_needs_error_at():
    model = subject({}).build()
    with bpfree.attach(model, bpfree.DFA(), **MACRO), warnings.catch_warnings():
        warnings.simplefilter("error", bpfree.BpfreeWarning)  # one error says what to do, and no second one behind it
        with pytest.raises(bpfree.errors.ErrorPlacementError, match="error_at"):
            model(input_ids=TOKENS, labels=TOKENS)


def test_tokens_without_a_target_are_marked_as_the_loss_marks_them():
    # transformers' own mark for "no target" is the class -100; DRTP sends nothing there.
    case = subject(PLACES["blocks, logits"])
    model = case.build()
    attachment = case.attach(model, bpfree.DRTP())
    expected = [gradient.clone() for gradient in case.gradients(model, attachment)]
    case.targets = F.pad(TOKENS[:, 1:], (0, 1), value=-100)
    assert_equal(case.gradients(model, attachment), expected)


def test_the_table_knows_that_the_head_learns():
    case = subject(PLACES["blocks, below the head"], tied=False)
    model = case.build()
    attachment = case.attach(model, bpfree.DFA())
    assert case.gradients(model, attachment)[-1] is not None
    assert "No signal reaches lm_head" not in str(attachment)


@by_place
def test_its_own_checkpointing_changes_no_gradient(options):
    results = []
    for again in (False, True):
        case = subject(options)
        model = case.build()
        if again:
            _checkpoint_blocks(model)
        results.append(case.gradients(model, case.attach(model, bpfree.DFA())))
    assert_equal(*results)


def _checkpoint_blocks(model):
    # Renamed in transformers 5; the old name stays until 6.
    new = hasattr(model, "activation_checkpointing_enable")
    method = model.activation_checkpointing_enable if new else model.gradient_checkpointing_enable
    method({"use_reentrant": False})
    assert all(block.gradient_checkpointing for block in model.transformer.h)


def test_hidden_states_and_generated_text_are_the_models_own():
    case = subject(PLACES["blocks, logits"])
    model = case.build().eval()
    prompt = TOKENS[:, :3]
    plain = model(input_ids=TOKENS, output_hidden_states=True).hidden_states
    text = model.generate(prompt, max_new_tokens=4, do_sample=False, use_cache=True, pad_token_id=0)
    case.attach(model, bpfree.DFA())
    assert_equal(model(input_ids=TOKENS, output_hidden_states=True).hidden_states, plain)
    assert torch.equal(model.generate(prompt, max_new_tokens=4, do_sample=False, use_cache=True, pad_token_id=0), text)


def test_bf16_autocast():
    case = subject(PLACES["blocks, logits"])

    def loss(model):
        with torch.autocast("cpu", torch.bfloat16):
            return case.loss(model)

    model = case.build()
    losses = train(Subject(case.build, case.output, loss, case.targets), model, case.attach(model, bpfree.DFA()))
    assert losses[-1] < FALL * losses[0]
    assert {parameter.grad.dtype for parameter in model.parameters()} == {torch.float32}
