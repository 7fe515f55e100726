"""The floating tensors of an output: found under their paths, and put back into an output of the same type."""

import dataclasses
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pack_sequence

from bpfree.error_values import error_tensors, replace_errors
from bpfree.errors import ErrorPlacementError

Pair = namedtuple("Pair", ["policy", "value"])
A, B, WHOLE = torch.ones(2), torch.zeros(3), torch.arange(3)
NEW = torch.full((2,), 7.0)


@dataclasses.dataclass(frozen=True)
class Frozen:
    logits: torch.Tensor
    tokens: torch.Tensor
    cache: Any = None


@dataclasses.dataclass(slots=True)
class Slotted:
    logits: torch.Tensor
    later: torch.Tensor = dataclasses.field(init=False)


class Output(OrderedDict):
    """Keys that are attributes too, as transformers' outputs have them."""

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        super().__setattr__(key, value)


def test_a_plain_tensor_is_one_error_without_a_key():
    assert error_tensors(A) == {"": A}
    assert replace_errors(A, {"": NEW}) is NEW
    assert error_tensors(WHOLE) == {}
    assert error_tensors(None) == error_tensors("text") == error_tensors(Frozen) == {}


@pytest.mark.parametrize(
    ("output", "paths"),
    [
        ((A, WHOLE, B), ["0", "2"]),
        ([A, None, B], ["0", "2"]),
        (Pair(A, B), ["policy", "value"]),
        ({"logits": A, 3: B, "n": 4}, ["logits", "3"]),
        (Frozen(A, WHOLE, (None, {"k": B})), ["logits", "cache.1.k"]),
        (Slotted(A), ["logits"]),
        (Output(loss=A, hidden=(B,)), ["loss", "hidden.0"]),
        (torch.return_types.max((A, WHOLE)), ["0"]),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, list) else "",
)
def test_containers_keep_their_type_and_all_else(output, paths):
    found = error_tensors(output)
    assert list(found) == paths
    assert [id(tensor) for tensor in found.values()] == [id(A), id(B)][: len(paths)]
    new = replace_errors(output, {paths[-1]: NEW})
    assert type(new) is type(output)
    assert error_tensors(new)[paths[-1]] is NEW
    # The rest is what it was, and so is the output that was given.
    assert all(error_tensors(new)[path] is found[path] for path in paths[:-1])
    assert all(error_tensors(output)[path] is found[path] for path in paths)


def test_outputs_with_attributes_show_the_replacement_there_too():
    new = replace_errors(Output(loss=A, logits=B), {"logits": NEW})
    assert new.logits is new["logits"] is NEW
    assert new.loss is A


def test_a_packed_sequence_stays_one():
    packed = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    new = replace_errors(packed, {"data": torch.zeros(4, 2)})
    assert torch.equal(torch.nn.utils.rnn.unpack_sequence(new)[0], torch.zeros(3, 2))


def test_a_tensor_in_two_places_is_one_error_and_replaced_in_both():
    output = {"last": A, "all": [B, A]}
    assert list(error_tensors(output)) == ["last", "all.0"]
    new = replace_errors(output, {"last": NEW})
    assert new["last"] is NEW
    assert new["all"][1] is NEW
    assert new["all"][0] is B


def test_nothing_to_replace_gives_the_output_itself():
    output = {"a": (A, [B])}
    assert replace_errors(output, {}) is output


def test_two_tensors_on_one_path_are_refused():
    with pytest.raises(ErrorPlacementError, match=r"'a\.b'.*Rename"):
        error_tensors({"a.b": A, "a": {"b": B}})
