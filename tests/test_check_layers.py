"""Served layers are checked against autograd with B := W: right ones pass, wrong ones are named."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import bpfree
from bpfree.verification.layers import check_layers


class Masked(nn.Linear):
    def forward(self, x):
        return F.linear(x, self.weight.tril(), self.bias)


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), nn.BatchNorm2d(4), nn.ReLU(inplace=True),
        nn.ConvTranspose2d(4, 2, 2, stride=2), nn.Flatten(), nn.Dropout(0.3), nn.Linear(128, 6), nn.Tanh(),
        Masked(6, 6), nn.Tanh(), nn.Linear(6, 3),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("rule", "options"),
    [(bpfree.FA(), {}), (bpfree.KolenPollack(), {}), (bpfree.SignSymmetry("batch"), {}), (bpfree.WeightMirror(), {}),
     (bpfree.DFA(), {"within": bpfree.FA()})],
    ids=str,
)  # fmt: skip
def test_right_layers_pass_and_no_number_moves(rule, options):
    model, x = net(), torch.randn(5, 2, 4, 4)
    attachment = bpfree.attach(model, rule, **options)
    torch.manual_seed(3)
    random, buffers = torch.get_rng_state(), [buffer.clone() for buffer in model.buffers()]
    state = {key: value.clone() for key, value in attachment.state_dict().items()}
    assert check_layers(attachment, (x,), {}) == []
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(*pair) for pair in zip(model.buffers(), buffers, strict=True))
    after = attachment.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[key], state[key]) for key in state)


def test_a_hook_that_changes_the_gradient_is_found():
    model, x = net(), torch.randn(5, 2, 4, 4)
    attachment = bpfree.attach(model, bpfree.FA())
    handle = model[6].register_full_backward_hook(
        lambda module, into, out: (into[0] * 2,) if into[0] is not None else None
    )
    with pytest.warns(UserWarning, match="Full backward hook is firing"):
        (finding,) = check_layers(attachment, (x,), {})
    assert (finding.check, finding.where) == ("layers", "6")
    assert "off by 5.0e-01" in finding.found
    handle.remove()
    assert check_layers(attachment, (x,), {}) == []


def test_a_layer_whose_weight_is_not_what_it_says_is_found(monkeypatch):
    """A formula that is wrong, as a kind that torch changes would have it."""
    from bpfree.layers import kinds

    monkeypatch.setattr(kinds, "_linear", lambda grad, weight, shape: 1.5 * grad.matmul(weight))
    attachment = bpfree.attach(net(), bpfree.FA())
    found = check_layers(attachment, (torch.randn(5, 2, 4, 4),), {})
    assert [finding.where for finding in found] == ["6", "10"]
    assert all("off by 5.0e-01" in finding.found for finding in found)


def test_rules_without_served_layers_have_nothing_to_check():
    attachment = bpfree.attach(net(), bpfree.DFA())
    assert check_layers(attachment, (torch.randn(5, 2, 4, 4),), {}) == []
