"""Finding a tap's tensor in what a module returns, and putting another in its place."""

from collections import OrderedDict, namedtuple
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

from bpfree import errors
from bpfree.tap_values import put, take

Pair = namedtuple("Pair", "count hidden")


@dataclass(frozen=True)
class Frozen:
    hidden: Tensor
    length: int = field(default=3, init=False)


@dataclass
class Inner:
    states: list


class Data:
    """An object that is no container, as a graph library's batch is."""

    def __init__(self, x):
        self.x = x


def numbers():
    return torch.tensor([1.0, 2.0])


INTEGERS = torch.tensor([1, 2])
h = numbers()
CASES = [
    (h, None, lambda o: o),
    ((INTEGERS, h, numbers()), None, lambda o: o[1]),
    ((numbers(), h), 1, lambda o: o[1]),
    ((numbers(), h), -1, lambda o: o[-1]),
    ([numbers(), [INTEGERS, h]], (1, 1), lambda o: o[1][1]),
    (Pair(INTEGERS, h), None, lambda o: o.hidden),
    (Pair(numbers(), h), "hidden", lambda o: o.hidden),
    ({"ids": INTEGERS, "hidden": h}, None, lambda o: o["hidden"]),
    (OrderedDict(a=numbers(), b=h), "b", lambda o: o["b"]),
    ({"a": numbers(), "b": (numbers(), h)}, ("b", 1), lambda o: o["b"][1]),
    (Frozen(h), None, lambda o: o.hidden),
    (Inner([numbers(), h]), ("states", 1), lambda o: o.states[1]),
    (Data(h), "x", lambda o: o.x),
]


@pytest.mark.parametrize(("output", "key", "at"), CASES, ids=lambda case: type(case).__name__)
def test_the_tensor_is_found_and_another_put_in_its_place(output, key, at):
    assert take(output, key, "cell") is h
    other = numbers()
    result = put(output, key, other)
    assert type(result) is type(output)
    assert at(result) is other
    assert at(output) is h  # whoever else holds the output sees no change
    assert take(put(result, key, h), key, "cell") is h


def test_what_is_not_the_tap_stays_the_same_object():
    a, b, extra = numbers(), {"x": numbers()}, Frozen(numbers())
    result = put((a, h, b, extra), 1, numbers())
    assert (result[0] is a, result[2] is b, result[3] is extra) == (True, True, True)
    frozen = put(extra, None, h)
    assert frozen.length == 3


def test_packed_sequences_stay_packed():
    rnn, x = nn.LSTM(3, 4), torch.randn(5, 2, 3)
    output = rnn(pack_padded_sequence(x, torch.tensor([5, 2])))
    data = take(output, None, "rnn")
    assert data is output[0].data
    result = put(output, None, data * 2)
    assert isinstance(result[0], PackedSequence)
    assert torch.equal(result[0].batch_sizes, output[0].batch_sizes)
    assert result[1] is output[1]


def test_dictionaries_that_are_objects_and_tuples_too():
    ModelOutput = pytest.importorskip("transformers.modeling_outputs").BaseModelOutput
    output = ModelOutput(last_hidden_state=h, hidden_states=(numbers(), numbers()))
    for key in (None, 0, "last_hidden_state"):
        result = put(output, key, numbers())
        assert take(output, key, "encoder") is h
        assert type(result) is ModelOutput
        assert result[0] is result.last_hidden_state is result["last_hidden_state"] is not h
        assert result.hidden_states is output.hidden_states
    deeper = put(output, ("hidden_states", 1), h)
    assert deeper.hidden_states[1] is deeper["hidden_states"][1] is h


@pytest.mark.parametrize(
    ("output", "key", "says"),
    [
        ((INTEGERS, None), None, "'cell' is of type tuple; .* Choose a module inside it"),
        (INTEGERS, None, "'cell' is a tensor of torch.int64"),
        ((h, INTEGERS), 1, "has a tensor of torch.int64 at 1.* There are floating point tensors at: 0"),
        ((h, (INTEGERS, h)), 2, r"nothing at 2: of type tuple.* tensors at: 0, \(1, 1\)"),
        ({"a": h}, "b", "nothing at 'b': of type dict.* tensors at: 'a'"),
        (h, 0, "nothing at 0: a tensor of torch.float32 is there. Leave the key out"),
        ((h, None), (1, 0), r"nothing at 0: of type NoneType"),
        (Frozen(h), "state", "nothing at 'state': of type Frozen.* tensors at: 'hidden'"),
        ("words", None, "of type str"),
    ],
    ids=str,
)
def test_what_is_not_there_is_named(output, key, says):
    with pytest.raises(errors.TapOutputError, match=says):
        take(output, key, "cell")
