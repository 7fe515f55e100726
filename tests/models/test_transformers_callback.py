"""The callback of transformers' Trainer: it trains as a loop by hand, resumes bit for bit, measures, and goes."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from bpfree import errors
from support.rule_contract import assert_equal, hooks

pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore")]
transformers = pytest.importorskip("transformers", reason="needs transformers: pip install bpfree[transformers]")
pytest.importorskip("accelerate", reason="needs accelerate: pip install bpfree[transformers]")

from bpfree.transformers import FILE, LearningRuleCallback  # noqa: E402

VOCABULARY, LENGTH, BATCH, BATCHES = 13, 6, 4, 6
RATE, DECAY = 0.05, 0.02
TOKENS = (torch.arange(BATCH * BATCHES)[:, None] * 3 + 5 * torch.arange(LENGTH)) % VOCABULARY
BLOCKS = {"taps": "blocks"}


def gpt2(dropout=0.0):
    torch.manual_seed(2)
    sizes = {"vocab_size": VOCABULARY, "n_positions": LENGTH, "n_embd": 16, "n_layer": 3, "n_head": 2}
    off = dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), dropout)
    special = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, **off, **special, initializer_range=0.2))


DATA = [{"input_ids": row, "labels": row} for row in TOKENS]


class InOrder(transformers.Trainer):
    """The data in their order, as a loop by hand reads them."""

    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trainer(folder, callback, model=None, kind=InOrder, **options):
    options = {"optim": "sgd", "max_grad_norm": 0.0, "max_steps": BATCHES, "lr_scheduler_type": "constant"} | options
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=BATCH, learning_rate=RATE, weight_decay=DECAY,
        save_strategy=options.pop("save_strategy", "no"), logging_steps=2, report_to=options.pop("report_to", "none"),
        disable_tqdm=True, use_cpu=True, seed=7, **options,
    )  # fmt: skip
    callbacks = [] if callback is None else [callback]
    made = kind(model=gpt2() if model is None else model, args=arguments, train_dataset=DATA, callbacks=callbacks)
    made.model_accepts_loss_kwargs = False  # else it counts tokens, and divides the model's loss by another number
    return made


def groups(model, attachment):
    """The Trainer's groups: what is no bias or norm decays; Kolen-Pollack's B as its W, all of them matrices."""
    names = [name for name, _ in model.named_parameters()]
    decayed = [p for name, p in model.named_parameters() if not (name.endswith("bias") or "ln_" in name)]
    others = [p for name, p in model.named_parameters() if name.endswith("bias") or "ln_" in name]
    assert len(names) == len(decayed) + len(others)
    mine = list(attachment.parameters())
    paired = not isinstance(attachment.rule, bpfree.DKP)
    return [
        {"params": decayed + (mine if paired else []), "weight_decay": DECAY},
        {"params": others + ([] if paired else mine), "weight_decay": 0.0},
    ]


OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=RATE),
    "adamw_torch": lambda groups: torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.999), eps=1e-8),
    "adamw_torch_fused": lambda groups: torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.999), eps=1e-8, fused=True),
}


def by_hand(rule, optim="sgd", clip=0.0, accumulate=1, targets=False, **options):
    """Weights and feedback after a plain loop with ``bpfree.attach``."""
    model = gpt2().train()
    attachment = bpfree.attach(model, rule, **(BLOCKS | options))
    optimizer = OPTIMIZERS[optim](groups(model, attachment))
    batches = TOKENS.view(BATCHES, BATCH, LENGTH)
    for step in range(0, BATCHES, accumulate):
        optimizer.zero_grad()
        for tokens in batches[step : step + accumulate]:
            if targets:
                attachment.targets(_next(tokens))
            (model(input_ids=tokens, labels=tokens).loss / accumulate).backward()
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
            for name in attachment.feedback if isinstance(rule, bpfree.KolenPollack) else ():
                B = attachment.feedback[name]
                if B.grad is not None:
                    B.grad = model.get_submodule(name).weight.grad.clone()
        optimizer.step()
    return model, attachment


def _next(tokens):
    return F.pad(tokens[:, 1:], (0, 1), value=-100)


LOOPS = {
    "DFA": (bpfree.DFA(), {}),
    "FDFA": (bpfree.FDFA(), {}),
    "FA": (bpfree.FA(), {}),
    "DKP": (bpfree.DKP(), {"optim": "adamw_torch"}),
    "KolenPollack": (bpfree.KolenPollack(), {}),
    "KolenPollack, fused": (bpfree.KolenPollack(), {"optim": "adamw_torch_fused"}),
    "KolenPollack, clipped": (bpfree.KolenPollack(), {"clip": 0.1}),
    "KolenPollack, accumulated": (bpfree.KolenPollack(), {"accumulate": 2}),
    "windows, KolenPollack within": (bpfree.DFA(), {"attach": {"window": 2, "within": bpfree.KolenPollack()}}),
}


@pytest.mark.parametrize(("rule", "options"), LOOPS.values(), ids=LOOPS)
def test_it_trains_as_a_loop_by_hand(rule, options, tmp_path):
    accumulate, clip, optim = options.get("accumulate", 1), options.get("clip", 0.0), options.get("optim", "sgd")
    model, attachment = by_hand(rule, optim, clip, accumulate, **options.get("attach", {}))
    callback = LearningRuleCallback(rule, **BLOCKS, **options.get("attach", {}))
    run = trainer(
        tmp_path, callback, optim=optim, max_grad_norm=clip, gradient_accumulation_steps=accumulate,
        max_steps=BATCHES // accumulate,
    )  # fmt: skip
    run.train()
    assert not torch.equal(run.model.transformer.wte.weight, gpt2().transformer.wte.weight)
    ours, theirs = callback.attachment.state_dict(), attachment.state_dict()
    assert ours.keys() == theirs.keys()
    assert_equal(run.model.state_dict().values(), model.state_dict().values())
    assert_equal(ours.values(), theirs.values())


def test_targets_come_from_the_inputs(tmp_path):
    options = {"taps": "transformer.h.*.mlp.act", "error_at": "lm_head"}
    model, _ = by_hand(bpfree.DRTP(), targets=True, **options)
    callback = LearningRuleCallback(bpfree.DRTP(), targets=lambda inputs: _next(inputs["labels"]), **options)
    run = trainer(tmp_path, callback)
    run.train()
    assert_equal(run.model.state_dict().values(), model.state_dict().values())
    with pytest.raises(errors.TargetsError):
        trainer(tmp_path, LearningRuleCallback(bpfree.DRTP(), **options)).train()


# -- checkpoints -------------------------------------------------------------------------------------------------------

RESUMED = [bpfree.GrAPE(), bpfree.KolenPollack(), bpfree.DKP()]
SAVING = {"save_strategy": "steps", "save_steps": 3, "optim": "adamw_torch", "kind": transformers.Trainer}


@pytest.mark.parametrize("rule", RESUMED, ids=str)
def test_a_resumed_run_is_the_uninterrupted_one(rule, tmp_path):
    whole, callback = gpt2(dropout=0.1), LearningRuleCallback(rule, seed=1, **BLOCKS)
    trainer(tmp_path, callback, whole, **SAVING).train()
    shutil.rmtree(tmp_path / f"checkpoint-{BATCHES}")
    # Other weights and another seed: everything comes from the folder, whose weights have the model's own keys.
    resumed, other = gpt2(dropout=0.1), LearningRuleCallback(rule, seed=2, **BLOCKS)
    with torch.no_grad():
        resumed.transformer.wte.weight.zero_()
    trainer(tmp_path, other, resumed, **SAVING).train(resume_from_checkpoint=True)
    assert_equal(resumed.state_dict().values(), whole.state_dict().values())
    assert_equal(other.attachment.state_dict().values(), callback.attachment.state_dict().values())


def test_a_checkpoint_elsewhere_is_named(tmp_path):
    whole = gpt2()
    trainer(tmp_path / "first", LearningRuleCallback(bpfree.GrAPE(), **BLOCKS), whole, **SAVING).train()
    moved = shutil.move(tmp_path / "first" / "checkpoint-3", tmp_path / "moved")
    with pytest.raises(errors.StateError, match=r"is not in .*resume_from_checkpoint=folder"):
        trainer(tmp_path / "second", LearningRuleCallback(bpfree.GrAPE(), **BLOCKS), **SAVING).train(moved)
    resumed = gpt2()
    callback = LearningRuleCallback(bpfree.GrAPE(), **BLOCKS)
    trainer(tmp_path / "third", callback, resumed, **SAVING, resume_from_checkpoint=moved).train(moved)
    assert_equal(resumed.state_dict().values(), whole.state_dict().values())


def test_the_state_of_other_weights_is_not_taken(tmp_path):
    # Two runs with checkpoints of one number; the second is continued from the first one's, moved to another place.
    for name, rate in (("first", RATE), ("second", 2 * RATE)):
        run = trainer(tmp_path / name, LearningRuleCallback(bpfree.GrAPE(), **BLOCKS), **SAVING)
        run.args.learning_rate = rate
        run.train()
    run = trainer(tmp_path / "second", LearningRuleCallback(bpfree.GrAPE(), **BLOCKS), **SAVING)
    with pytest.raises(errors.StateError, match=r"second/checkpoint-3 belongs to other weights"):
        run.train(str(tmp_path / "first" / "checkpoint-3"))


def test_a_checkpoint_without_the_rule_is_refused(tmp_path):
    trainer(tmp_path, None, **SAVING).train()
    model = gpt2()
    before = hooks(model)
    callback = LearningRuleCallback(bpfree.DFA(), **BLOCKS)
    with pytest.raises(errors.StateError, match=r"learning_rule\.pt.*written without this callback.*from_pretrained"):
        trainer(tmp_path, callback, model, **SAVING).train(resume_from_checkpoint=True)
    assert hooks(model) == before
    assert not (tmp_path / "checkpoint-3" / FILE).exists()


def test_a_checkpoint_of_another_rule_is_refused(tmp_path):
    trainer(tmp_path, LearningRuleCallback(bpfree.DFA(), **BLOCKS), **SAVING).train()
    with pytest.raises(errors.StateError, match=r"that of DFA.*runs FA"):
        trainer(tmp_path, LearningRuleCallback(bpfree.FA(), **BLOCKS), **SAVING).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("rule", [bpfree.GrAPE(), bpfree.KolenPollack()], ids=str)
def test_a_second_training_goes_on_with_the_feedback_of_the_first(rule, tmp_path):
    model, callback = gpt2(), LearningRuleCallback(rule, **BLOCKS)
    run = trainer(tmp_path, callback, model)
    run.train()
    learned = {name: tensor.clone() for name, tensor in callback.attachment.state_dict().items()}
    started = []

    class Look(transformers.TrainerCallback):
        def on_train_begin(self, *_, **__):
            started.append({name: tensor.clone() for name, tensor in callback.attachment.state_dict().items()})

    run.add_callback(Look())
    run.train()
    assert_equal(started[0].values(), learned.values())


def test_the_model_is_plain_after_training(tmp_path):
    model = gpt2()
    before = hooks(model)
    callback = LearningRuleCallback(bpfree.DFA(), alignment_every=2, **BLOCKS)
    trainer(tmp_path, callback, model).train()
    assert hooks(model) == before
    assert bpfree.attachments(model) == []


# -- alignment ---------------------------------------------------------------------------------------------------------


def test_alignment_is_logged_and_changes_no_number(tmp_path):
    model = gpt2(dropout=0.1)
    run = trainer(tmp_path, LearningRuleCallback(bpfree.DFA(), alignment_every=3, **BLOCKS), model)
    run.train()
    found = [entry for entry in run.state.log_history if "alignment/transformer.h.0" in entry]
    assert [entry["step"] for entry in found] == [3, 6]
    assert all(f"alignment/transformer.h.{i}" in found[0] for i in range(3))
    unmeasured = gpt2(dropout=0.1)
    trainer(tmp_path, LearningRuleCallback(bpfree.DFA(), **BLOCKS), unmeasured).train()
    assert_equal(model.state_dict().values(), unmeasured.state_dict().values())

    # The same by hand, without dropout: the weights behind the last step, and the last batch.
    run = trainer(tmp_path, LearningRuleCallback(bpfree.DFA(), alignment_every=BATCHES, **BLOCKS))
    run.train()
    model, attachment = by_hand(bpfree.DFA())
    last = TOKENS[-BATCH:]
    report = bpfree.alignment(attachment, lambda: model(input_ids=last, labels=last).loss, jacobian=False)
    found = next(entry for entry in run.state.log_history if "alignment/transformer.h.1" in entry)
    assert found["alignment/transformer.h.1"] == pytest.approx(report.taps[1].cosine_mean, abs=1e-6)


def test_alignment_reaches_the_loggers_of_report_to(tmp_path, monkeypatch):
    heard = []

    class Logger(transformers.TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            heard.append((state.global_step, dict(logs)))

    import bpfree.transformers as module

    monkeypatch.setattr(module, "_loggers", lambda args: [Logger])
    trainer(tmp_path, LearningRuleCallback(bpfree.DFA(), alignment_every=2, **BLOCKS)).train()
    assert [step for step, _ in heard] == [2, 4, 6]
    assert all(name.startswith("alignment/") for _, logs in heard for name in logs)


def test_tensorboard_gets_alignment(tmp_path, monkeypatch):
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    run = trainer(tmp_path, LearningRuleCallback(bpfree.DFA(), alignment_every=2, **BLOCKS), report_to="tensorboard")
    run.train()
    read = events.EventAccumulator(str(tmp_path / "tb")).Reload()
    assert [event.step for event in read.Scalars("train/alignment/transformer.h.0")] == [2, 4, 6]


def test_a_loss_of_the_trainers_own_is_to_be_named(tmp_path):
    def own_loss(outputs, labels, num_items_in_batch=None):
        return F.cross_entropy(outputs.logits.flatten(0, 1), labels.flatten())

    class Own(InOrder):
        def __init__(self, *args, **options):
            super().__init__(*args, compute_loss_func=own_loss, **options)

    with pytest.raises(errors.LoopError, match=r"returns none for the inputs input_ids.*loss="):
        trainer(tmp_path, LearningRuleCallback(bpfree.DFA(), alignment_every=2, **BLOCKS), kind=Own).train()
    loss = lambda model, inputs: model(**inputs).logits.square().mean()  # noqa: E731
    callback = LearningRuleCallback(bpfree.DFA(), alignment_every=2, loss=loss, **BLOCKS)
    run = trainer(tmp_path, callback, kind=Own)
    run.train()
    assert any("alignment/transformer.h.0" in entry for entry in run.state.log_history)


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_a_model_without_taps_is_told(tmp_path):
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(VOCABULARY, 4), nn.Linear(4, VOCABULARY)

        def forward(self, input_ids, labels):
            logits = self.head(self.words(input_ids))
            return {"loss": F.cross_entropy(logits.flatten(0, 1), labels.flatten()), "logits": logits}

    for options, says in (({}, r"bpfree\.Tap"), (BLOCKS, r"bpfree\.Tap")):
        with pytest.raises(errors.TapSelectionError, match=says):
            trainer(tmp_path, LearningRuleCallback(bpfree.DFA(), **options), Plain()).train()


def test_a_model_that_is_wrapped_already_is_refused(tmp_path):
    wrapped = nn.DataParallel(gpt2())
    with pytest.raises(errors.LoopError, match=r"inside a DataParallel already.*model\.module"):
        trainer(tmp_path, LearningRuleCallback(bpfree.DFA(), **BLOCKS), wrapped).train()
    assert bpfree.attachments(wrapped) == []


def test_replicas_and_shards_are_refused(tmp_path, monkeypatch):
    run = trainer(tmp_path, LearningRuleCallback(bpfree.DFA(), **BLOCKS))
    callback = run.callback_handler.callbacks[-2]
    for name, value, says in (
        ("n_gpu", 2, "replicas of the model on 2 GPUs.*torchrun"),
        ("fsdp", "full_shard", "FSDP shards the model"),
        ("deepspeed", {"zero": 3}, "DeepSpeed shards the model"),
    ):
        arguments = type("Arguments", (), {"n_gpu": 1, "fsdp": None, "deepspeed": None, name: value})
        with pytest.raises(errors.LoopError, match=says):
            callback.on_train_begin(arguments, run.state, run.control, model=run.model, optimizer=None)
    assert bpfree.attachments(run.model) == []


def test_an_optimizer_that_has_no_second_of_its_kind_is_named(tmp_path):
    class Bound(torch.optim.SGD):
        def __init__(self, model):
            super().__init__(model.parameters(), lr=RATE)

    model = gpt2()
    run = trainer(tmp_path, LearningRuleCallback(bpfree.KolenPollack(), **BLOCKS), model)
    run.optimizer = Bound(model)
    with pytest.raises(errors.LoopError, match="no second Bound can be made"):
        run.train()
    assert bpfree.attachments(model) == []


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LearningRuleCallback(bpfree.DFA), r"bpfree\.DFA\(\)"),
        (lambda: LearningRuleCallback(bpfree.DFA(), tap="net"), "Did you mean 'taps'"),
        (lambda: LearningRuleCallback(bpfree.DFA(), alignment_every=0.5), "alignment_every"),
    ],
)
def test_options_that_mean_nothing(make, says):
    with pytest.raises(errors.OptionError, match=says):
        make()


def test_the_trainers_own_files_are_what_they_were(tmp_path):
    trainer(tmp_path / "plain", None, **SAVING).train()
    trainer(tmp_path / "rule", LearningRuleCallback(bpfree.KolenPollack(), **BLOCKS), **SAVING).train()
    plain, ours = ({p.name for p in (tmp_path / name / "checkpoint-3").iterdir()} for name in ("plain", "rule"))
    assert ours - plain == {FILE}
    states = [
        json.loads((tmp_path / name / "checkpoint-3" / "trainer_state.json").read_text()) for name in ("plain", "rule")
    ]
    assert states[0].keys() == states[1].keys()
