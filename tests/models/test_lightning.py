"""An attachment as a part of a LightningModule, under Lightning's automatic optimization."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bpfree
from support.rule_contract import assert_equal

# Lightning warns of loaders without workers and of short epochs: both are meant here.
pytestmark = [pytest.mark.models, pytest.mark.filterwarnings("ignore")]
lightning = pytest.importorskip("lightning", reason="needs lightning: pip install bpfree[lab]")

CLIP, RATE = 0.05, 0.01


class Learner(lightning.LightningModule):
    """A small net with dropout and a rule."""

    def __init__(self, seed=0, rule=None):
        super().__init__()
        torch.manual_seed(1)
        layers = nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 3)
        self.net = nn.Sequential(*layers)
        self.attachment = bpfree.attach(self.net, rule or bpfree.DFA(), seed=seed)

    def training_step(self, batch, index):
        x, y = batch
        self.attachment.targets(y)
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=RATE)


def batches():
    generator = torch.Generator().manual_seed(5)
    y = torch.arange(32) % 3
    x = torch.randn(3, 6, generator=generator)[y] + 0.3 * torch.randn(32, 6, generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=8)


def trainer(epochs, **options):
    silent = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return lightning.Trainer(max_epochs=epochs, accelerator="cpu", **silent, **options)


def test_it_trains_as_a_loop_written_by_hand():
    ours = Learner()
    torch.manual_seed(3)
    trainer(2, gradient_clip_val=CLIP).fit(ours, batches())

    plain = Learner()
    optimizer = plain.configure_optimizers()
    torch.manual_seed(3)
    for _ in range(2):
        for batch in batches():
            optimizer.zero_grad()
            plain.training_step(batch, 0).backward()
            norm = nn.utils.clip_grad_norm_(plain.parameters(), CLIP)
            assert norm > CLIP
            optimizer.step()
    for found, expected in zip(ours.state_dict().values(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("rule", [bpfree.DFA(), bpfree.FA(), bpfree.SignSymmetry("batch")], ids=str)
def test_its_state_travels_with_the_module(rule, tmp_path):
    first = Learner(seed=1, rule=rule)
    before = trainer(1)
    before.fit(first, batches())
    before.save_checkpoint(tmp_path / "half.ckpt")
    keys = set(first.state_dict())
    assert {key for key in keys if key.startswith("net.")} == {f"net.{key}" for key in first.net.state_dict()}
    assert any(key.startswith("attachment.") for key in keys)

    # Another seed, and no forward pass yet: everything comes from the file.
    second = Learner(seed=2, rule=rule)
    second.load_state_dict(torch.load(tmp_path / "half.ckpt", weights_only=True)["state_dict"])
    assert set(second.state_dict()) == keys
    assert_equal(second.state_dict().values(), first.state_dict().values())
    for learner in (first, second):
        torch.manual_seed(9)
        learner.train().zero_grad()
        learner.training_step(next(iter(batches())), 0).backward()
    assert_equal([p.grad for p in second.parameters()], [p.grad for p in first.parameters()])


class SeededSteps(lightning.Callback):
    """Lightning's file holds no random state: every step begins with its own."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        torch.manual_seed(trainer.global_step)


def test_a_resumed_fit_is_the_uninterrupted_one(tmp_path):
    def fit(learner, epochs, **options):
        run = trainer(epochs, callbacks=[SeededSteps()])
        run.fit(learner, batches(), **options)
        return run

    whole, resumed = Learner(seed=1), Learner(seed=2)
    fit(whole, 2)
    fit(Learner(seed=1), 1).save_checkpoint(tmp_path / "half.ckpt")
    fit(resumed, 2, ckpt_path=tmp_path / "half.ckpt")
    assert_equal(resumed.state_dict().values(), whole.state_dict().values())
    assert not torch.equal(whole.net[0].weight, Learner().net[0].weight)
