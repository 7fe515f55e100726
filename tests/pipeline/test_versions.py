"""Graphs that outlive an update: the weights that they were made with, and nothing that was overwritten."""

import pytest
import torch
from torch import nn

from bpfree.pipeline.versions import Versions


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Sigmoid(), nn.Linear(4, 2)).double()


X = torch.arange(6.0).reshape(2, 3).double()


def test_a_gradient_is_that_of_the_weights_of_its_pass():
    plain, model = net(), net()
    plain(X).square().sum().backward()
    versions = Versions(model)
    for parameter in model.parameters():  # as a move to another precision or device does
        parameter.data = parameter.data.clone()
    with versions.recorded():
        loss = model(X).square().sum()
    versions.keep()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    loss.backward()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad)


def test_what_was_overwritten_is_told():
    versions, model = Versions(net()), net()
    with versions.recorded():
        hidden = model[1](model[0](X))
    with pytest.raises(RuntimeError, match=r"modified by an inplace operation.*is at version 1; expected version 0"):
        hidden.mul_(2).sum().backward()


def test_a_weight_that_changed_without_being_kept_is_told():
    model = net()
    versions = Versions(model)
    with versions.recorded():
        loss = model(X).sum()
    with torch.no_grad():
        model[2].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
