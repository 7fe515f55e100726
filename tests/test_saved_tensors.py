"""Hooks on saved tensors that are taken off whatever happens."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from bpfree.rerun.saved_tensors import hooked_saved_tensors


def top() -> object:
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def test_they_act_within_and_not_behind() -> None:
    packed, x = list[Tensor](), torch.ones(2, requires_grad=True)

    def pack(tensor: Tensor) -> Tensor:
        packed.append(tensor)
        return tensor

    with hooked_saved_tensors(pack, lambda tensor: 2 * tensor):
        inside = x.square().sum()
    inside.backward()  # type: ignore[no-untyped-call]
    assert len(packed) == 1
    torch.testing.assert_close(x.grad, torch.full((2,), 4.0))  # of 2 x, unpacked as 2 (2 x)
    x.square()
    assert len(packed) == 1
    assert top() is None


def test_a_context_of_the_same_functions_around_them_stays() -> None:
    with hooked_saved_tensors(torch.sin, torch.sin):
        before = top()
        with hooked_saved_tensors(torch.sin, torch.sin):
            pass
        assert top() == before
    assert top() is None


@pytest.mark.parametrize("outer", [False, True])
def test_an_interrupt_where_torch_takes_them_off(outer: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    around = saved_tensors_hooks(torch.clone, torch.clone)
    if outer:
        around.__enter__()
    before = top()
    try:
        with monkeypatch.context() as patched:
            patched.setattr(saved_tensors_hooks, "__exit__", interrupted)
            with pytest.raises(KeyboardInterrupt), hooked_saved_tensors(torch.sin, torch.sin):
                assert top() != before
        assert top() == before
    finally:
        if outer:
            around.__exit__(None, None, None)
    assert top() is None
