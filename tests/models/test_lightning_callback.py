"""The Lightning callback: it trains as a loop by hand, resumes bit for bit, measures alignment, and goes."""

import os
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bpfree
from bpfree import errors
from support.rule_contract import assert_equal, hooks

# Lightning warns of loaders without workers and of short epochs: both are meant here.
pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore")]
lightning = pytest.importorskip("lightning", reason="needs lightning: pip install bpfree[lightning]")

from bpfree.lightning import LearningRule  # noqa: E402

RATE, DECAY = 0.05, 0.01


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3))


class Learner(lightning.LightningModule):
    """A small net that knows nothing of rules."""

    def __init__(self, optimizer="SGD"):
        super().__init__()
        self.net, self.optimizer = net(), optimizer

    def training_step(self, batch, index):
        loss = F.cross_entropy(self.net(batch[0]), batch[1])
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, index):
        self.net(batch[0])

    test_step = validation_step

    def configure_optimizers(self):
        return optimizer_of(self.optimizer, self.parameters())


def optimizer_of(name, parameters):
    options = {"momentum": 0.9} if name == "SGD" else {}
    return getattr(torch.optim, name)(list(parameters), lr=RATE, weight_decay=DECAY, **options)


def batches():
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(32) % 3
    x = torch.randn(3, 6, generator=generator)[y] + 0.3 * torch.randn(32, 6, generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=8)


class SeededSteps(lightning.Callback):
    """Lightning's file holds no random state: every batch begins with its own."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        torch.manual_seed(100 * trainer.current_epoch + batch_idx)


def fit(module, callback, epochs=2, ckpt_path=None, **options):
    silent = dict.fromkeys(("enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    options = {"logger": False, **silent, **options}
    callbacks = [SeededSteps()] if callback is None else [SeededSteps(), callback]
    trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", callbacks=callbacks, **options)
    trainer.fit(module, batches(), ckpt_path=ckpt_path)
    return trainer


def by_hand(rule, optimizer="SGD", epochs=2, clip=None, accumulate=1, drtp=False, **options):
    """Weights and feedback after a plain loop with ``bpfree.attach``."""
    model = net()
    attachment = bpfree.attach(model, rule, **options)
    stepper = optimizer_of(optimizer, [*model.parameters(), *attachment.parameters()])
    for epoch in range(epochs):
        for number, (x, y) in enumerate(batches()):
            torch.manual_seed(100 * epoch + number)
            if drtp:
                attachment.targets(y)
            (F.cross_entropy(model(x), y) / accumulate).backward()
            if (number + 1) % accumulate == 0:
                if clip is not None:
                    nn.utils.clip_grad_norm_([*model.parameters(), *attachment.parameters()], clip)
                stepper.step()
                stepper.zero_grad()
    return model, attachment


LOOPS = {
    "DFA": (bpfree.DFA(), {}),
    "FDFA": (bpfree.FDFA(), {}),
    "DKP": (bpfree.DKP(), {"optimizer": "Adam"}),
    "KolenPollack": (bpfree.KolenPollack(), {}),
    "KolenPollack, AdamW": (bpfree.KolenPollack(), {"optimizer": "AdamW"}),
    "KolenPollack, clipped": (bpfree.KolenPollack(), {"clip": 0.05}),
    "KolenPollack, accumulated": (bpfree.KolenPollack(), {"accumulate": 2}),
    "DFA, taps": (bpfree.DFA(), {"taps": nn.Tanh, "seed": 4}),
}


@pytest.mark.parametrize(("rule", "options"), LOOPS.values(), ids=LOOPS)
def test_it_trains_as_a_loop_by_hand(rule, options):
    attaching = {name: value for name, value in options.items() if name in ("taps", "seed")}
    model, attachment = by_hand(rule, **options)
    module, callback = Learner(options.get("optimizer", "SGD")), LearningRule(rule, **attaching)
    fit(
        module,
        callback,
        gradient_clip_val=options.get("clip"),
        accumulate_grad_batches=options.get("accumulate", 1),
    )
    assert_equal(module.net.state_dict().values(), model.state_dict().values())
    ours, theirs = callback.attachment.state_dict(), attachment.state_dict()
    assert ours.keys() == theirs.keys()
    assert_equal(ours.values(), theirs.values())


def test_targets_come_from_the_batch():
    model, _ = by_hand(bpfree.DRTP(), drtp=True)
    module = Learner()
    fit(module, LearningRule(bpfree.DRTP(), targets=lambda batch: batch[1]))
    assert_equal(module.net.state_dict().values(), model.state_dict().values())
    with pytest.raises(errors.TargetsError):
        fit(Learner(), LearningRule(bpfree.DRTP()))


@pytest.mark.parametrize(
    "rule", [bpfree.DFA(), bpfree.GrAPE(), bpfree.SignSymmetry("batch"), bpfree.KolenPollack(), bpfree.DKP()], ids=str
)
def test_a_resumed_fit_is_the_uninterrupted_one(rule, tmp_path):
    whole, callback = Learner("Adam"), LearningRule(rule, seed=1)
    fit(whole, callback)
    half = fit(Learner("Adam"), LearningRule(rule, seed=1), epochs=1)
    half.save_checkpoint(tmp_path / "half.ckpt")
    # Another seed: everything comes from the file, which keeps the module's keys.
    resumed, other = Learner("Adam"), LearningRule(rule, seed=2)
    saved = torch.load(tmp_path / "half.ckpt", weights_only=True)
    assert saved["state_dict"].keys() == resumed.state_dict().keys()
    fit(resumed, other, ckpt_path=tmp_path / "half.ckpt")
    assert_equal(resumed.state_dict().values(), whole.state_dict().values())
    assert_equal(other.attachment.state_dict().values(), callback.attachment.state_dict().values())


def test_a_second_fit_goes_on_with_the_feedback_of_the_first():
    rule = bpfree.GrAPE()
    module, callback = Learner("SGD"), LearningRule(rule)
    trainer = fit(module, callback, epochs=1)
    learned = {name: tensor.clone() for name, tensor in callback.attachment.state_dict().items()}
    trainer.validate(module, batches(), verbose=False)
    trainer.test(module, batches(), verbose=False)
    assert_equal(callback.attachment.state_dict().values(), learned.values())
    started = []

    class Look(lightning.Callback):
        def on_train_start(self, trainer, pl_module):
            started.append({name: tensor.clone() for name, tensor in callback.attachment.state_dict().items()})

    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[callback, Look()], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, batches())
    assert_equal(started[0].values(), learned.values())
    another = Learner()
    lightning.Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[callback], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    ).fit(another, batches())  # fmt: skip
    assert callback.attachment.model is another.net


def test_the_model_is_plain_after_fit():
    module, callback = Learner(), LearningRule(bpfree.DFA())
    before = hooks(module)
    trainer = fit(module, callback, epochs=1)
    assert hooks(module) == before
    assert bpfree.attachments(module.net) == []
    first = callback.attachment
    trainer.validate(module, batches(), verbose=False)
    assert callback.attachment is first


def test_it_goes_too_when_training_fails():
    class Fails(Learner):
        def training_step(self, batch, index):
            raise KeyError("data")

    module, callback = Fails(), LearningRule(bpfree.DFA())
    before = hooks(module)
    with pytest.raises(KeyError):
        fit(module, callback)
    assert hooks(module) == before


# -- alignment ---------------------------------------------------------------------------------------------------------


class Counting(nn.Module):
    """A metric in miniature: counts its calls."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1


class Measured(Learner):
    def __init__(self):
        super().__init__()
        self.metric = Counting()

    def training_step(self, batch, index):
        self.metric(batch[0])
        return super().training_step(batch, index)


def test_alignment_is_logged_and_changes_no_number(tmp_path):
    logger = lightning.pytorch.loggers.CSVLogger(tmp_path)
    module, callback = Measured(), LearningRule(bpfree.DFA(), alignment_every=3)
    trainer = fit(module, callback, logger=logger, log_every_n_steps=1)
    logger.save()
    header, *lines = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
    names = header.split(",")
    assert {"alignment/1", "alignment/4", "loss"} <= set(names)
    rows = [dict(zip(names, line.split(","), strict=True)) for line in lines]
    measured = {int(row["step"]): float(row["alignment/4"]) for row in rows if row["alignment/4"]}
    assert sorted(measured) == [3, 6]
    assert len([row for row in rows if row["loss"]]) == 8  # not a time more than there were batches
    assert "alignment/1" in trainer.callback_metrics

    unmeasured = Measured()
    fit(unmeasured, LearningRule(bpfree.DFA()))
    assert_equal(module.state_dict().values(), unmeasured.state_dict().values())
    assert int(module.metric.calls) == 8

    # The same by hand, behind the sixth step: the weights, and the batch that was trained on last.
    model = net()
    attachment = bpfree.attach(model, bpfree.DFA())
    stepper, steps = optimizer_of("SGD", model.parameters()), 0
    for epoch in range(2):
        for number, (x, y) in enumerate(batches()):
            torch.manual_seed(100 * epoch + number)
            stepper.zero_grad()
            F.cross_entropy(model(x), y).backward()
            stepper.step()
            steps += 1
            if steps == 6:
                found = bpfree.alignment(attachment, lambda x=x, y=y: F.cross_entropy(model(x), y), jacobian=False)
    assert measured[6] == pytest.approx(found.taps[1].cosine_mean, abs=1e-6)


class ByHand(Learner):
    automatic_optimization = False

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, index):
        self.optimizers().zero_grad()
        self.manual_backward(F.cross_entropy(self.net(batch[0]), batch[1]))
        self.optimizers().step()


def test_manual_optimization_has_no_training_step_to_measure():
    module = ByHand()
    before = hooks(module)
    with pytest.raises(errors.LoopError, match=r"bpfree\.alignment\(callback\.attachment"):
        fit(module, LearningRule(bpfree.DFA(), alignment_every=2))
    assert hooks(module) == before
    fit(module, LearningRule(bpfree.Shallow()), epochs=1)
    assert torch.equal(module.net[0].weight, net()[0].weight)
    assert not torch.equal(module.net[5].weight, net()[5].weight)


# -- which module learns -----------------------------------------------------------------------------------------------


class Layers(lightning.LightningModule):
    """Layers in the LightningModule itself."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.below, self.act, self.above = nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)

    def forward(self, x):
        return self.above(self.act(self.below(x)))

    def training_step(self, batch, index):
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=RATE)


class Later(Learner):
    """A model that is there only when the strategy asks for it."""

    def __init__(self):
        super().__init__()
        del self.net

    def configure_model(self):
        if not hasattr(self, "net"):
            self.net = net()


@pytest.mark.parametrize(
    ("module", "model", "found"),
    [
        (Learner, None, "net"),
        (Learner, "net.0", "net.0"),
        (Layers, None, ""),
        (Later, None, "net"),
    ],
)
def test_which_module_gets_the_rule(module, model, found):
    learner = module()
    rule = bpfree.Shallow() if model is None else bpfree.BP()
    callback = LearningRule(rule, model=model)
    fit(learner, callback, epochs=1)
    assert callback.attachment.model is learner.get_submodule(found)


def test_layers_of_the_module_itself_learn_by_the_rule():
    trained, exact = Layers(), Layers()
    fit(trained, LearningRule(bpfree.Shallow()), epochs=1)
    fit(exact, None, epochs=1)
    assert torch.equal(trained.below.weight, Layers().below.weight)
    assert not torch.equal(exact.below.weight, Layers().below.weight)


class NoForward(Layers):
    forward = lightning.LightningModule.forward


class Functions(Learner):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3))


@pytest.mark.parametrize(
    ("module", "options", "error", "says"),
    [
        (NoForward, {}, errors.OptionError, r"several submodules that learn \(below, above\).*model='\.\.\.'"),
        (Learner, {"model": "nett"}, errors.OptionError, "Did you mean 'net'"),
        (Functions, {}, errors.TapSelectionError, r"bpfree\.Tap"),
        (Learner, {"taps": "blocks"}, errors.TapSelectionError, "Leave taps out"),
    ],
    ids=["no forward", "a wrong name", "no taps", "no blocks"],
)
def test_a_model_that_cannot_have_it_is_told(module, options, error, says):
    learner = module()
    before = hooks(learner)
    with pytest.raises(error, match=says):
        fit(learner, LearningRule(bpfree.DFA(), **options))
    assert hooks(learner) == before


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: LearningRule(bpfree.DFA), r"bpfree\.DFA\(\)"),
        (lambda: LearningRule(bpfree.DFA(), tap="net"), "Did you mean 'taps'"),
        (lambda: LearningRule(bpfree.DFA(), alignment_every=-1), "alignment_every"),
    ],
)
def test_options_that_mean_nothing(make, says):
    with pytest.raises(errors.OptionError, match=says):
        make()


def test_a_checkpoint_without_the_rule_is_refused_for_training_alone(tmp_path):
    trainer = fit(Learner(), None, epochs=1)
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    callback = LearningRule(bpfree.DFA())
    with pytest.raises(errors.StateError, match=r"written without this callback.*load_state_dict"):
        fit(Learner(), callback, ckpt_path=tmp_path / "plain.ckpt")
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    lightning.Trainer(accelerator="cpu", callbacks=[callback], **silent).test(
        Learner(), batches(), ckpt_path=tmp_path / "plain.ckpt", verbose=False
    )


def test_a_checkpoint_of_another_rule_is_refused(tmp_path):
    fit(Learner(), LearningRule(bpfree.DFA()), epochs=1).save_checkpoint(tmp_path / "dfa.ckpt")
    module = Learner()
    before = hooks(module)
    with pytest.raises(errors.StateError, match=r"that of DFA.*runs FA"):
        fit(module, LearningRule(bpfree.FA()), ckpt_path=tmp_path / "dfa.ckpt")
    assert hooks(module) == before


@mock.patch.dict(os.environ)  # Lightning leaves the addresses of its processes there, and accelerate would join them
def test_the_rule_on_the_module_itself_is_refused_under_a_strategy_that_wraps_it():
    from lightning.pytorch.strategies import DDPStrategy

    try:
        with pytest.raises(errors.LoopError, match=r"DDPStrategy runs its training_step.*one submodule"):
            fit(Layers(), LearningRule(bpfree.DFA()), strategy=DDPStrategy(process_group_backend="gloo"), devices=1)
        model, _ = by_hand(bpfree.DFA())
        wrapped = Learner()
        fit(
            wrapped,
            LearningRule(bpfree.DFA()),
            strategy=DDPStrategy(process_group_backend="gloo"),
            devices=1,
            use_distributed_sampler=False,
        )
        assert_equal(wrapped.net.state_dict().values(), model.state_dict().values())
    finally:
        torch.distributed.destroy_process_group()
