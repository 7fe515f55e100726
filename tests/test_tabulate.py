"""Tables of large models: repeated blocks are one row."""

import pytest
import torch
from torch import nn

import bpfree
from bpfree.tabulate import fold, fold_names


@pytest.mark.parametrize(
    ("names", "folded"),
    [
        ([f"blocks.{i}.act" for i in range(24)], ["blocks.0-23.act"]),
        (["stem", *(f"h.{i}" for i in range(9, 13)), "head"], ["stem", "h.9-12", "head"]),
        (["act", *(f"act#{i}" for i in range(2, 8))], ["act", "act#2-7"]),
        # Two rows are not worth it, and what is left out must not seem to be there.
        (["b.0", "b.1"], ["b.0", "b.1"]),
        (["1", "3", "5", "7"], ["1", "3", "5", "7"]),
        (["b.0", "b.1", "b.3", "b.4"], ["b.0", "b.1", "b.3", "b.4"]),
        # A block of two kinds, one of three, and a block that is another one at the end.
        ([f"b.{i}.{part}" for i in range(3) for part in ("attn", "act")], ["b.0-2.attn", "b.0-2.act"]),
        ([f"s{i}.{j}" for i in range(3) for j in range(3)], ["s0-2.0", "s0-2.1", "s0-2.2"]),
        ([*(f"b.{i}.act" for i in range(4)), "b.4.gelu"], ["b.0-3.act", "b.4.gelu"]),
        (["a", "a", "a"], ["a", "a", "a"]),
        (["b.08", "b.09", "b.10"], ["b.08", "b.09", "b.10"]),
        ([], []),
    ],
    ids=str,
)
def test_names_of_repeated_blocks_become_ranges(names, folded):
    assert fold_names(names) == folded


def test_rows_fold_only_where_everything_else_is_alike():
    rows = [[f"b.{i}", "Nx8", f"b.{i - 1}.fc2, b.{i}.fc1"] for i in range(1, 5)]
    assert fold(rows) == [["b.1-4", "Nx8", "b.0-3.fc2, b.1-4.fc1"]]
    wider = [*rows, ["b.5", "Nx16", "b.4.fc2, b.5.fc1"]]
    assert fold(wider) == [["b.1-4", "Nx8", "b.0-3.fc2, b.1-4.fc1"], wider[-1]]
    other = [["b.0", "Nx8", "stem, b.0.fc1"], *rows]
    assert fold(other) == [other[0], ["b.1-4", "Nx8", "b.0-3.fc2, b.1-4.fc1"]]


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(width, width), nn.GELU(), nn.Linear(width, width)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


def test_the_table_of_a_deep_model_is_short():
    model = nn.Sequential(nn.Linear(4, 6), *(Residual(6) for _ in range(24)), nn.Linear(6, 3))
    attachment = bpfree.attach(model, bpfree.DFA())
    assert "taps: 1-24.act" in str(attachment)
    model(torch.randn(5, 4)).sum().backward()
    rows = [" ".join(line.split()) for line in str(attachment).splitlines()[3:]]
    assert rows[0] == "1.act Nx6 3 x 6 shared 0, 1.fc1"
    assert rows[1] == "2-24.act Nx6 3 x 6 shared 1-23.fc2, 2-24.fc1"
    assert rows[2] == "(output) exact gradient 24.fc2, 25"


def test_the_table_of_a_layerwise_rule_is_short():
    model = nn.Sequential(nn.Linear(4, 6), *(Residual(6) for _ in range(12)), nn.Linear(6, 3))
    text = str(bpfree.attach(model, bpfree.FA(), example_inputs=torch.randn(5, 4)))
    assert "1-12.fc1  Linear  6 x 6" in text
    assert "1-12.fc2  Linear  6 x 6" in text
    assert len(text.splitlines()) < 10


def learning(model, **options):
    """What the table says of each row's learners, after one pass."""
    with bpfree.attach(model, bpfree.DFA(), verify=False, **options) as attachment:
        model(torch.randn(2, 3, 8)).sum().backward()
        return [row[3] for row in attachment.mechanism.table()[1]]


def test_a_module_stands_for_all_its_layers():
    blocks = [nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(3)]
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(*blocks), nn.Sequential(nn.Linear(8, 3)))
    # The first linear layer is no part of a block, and a module that holds one layer does not stand for it.
    assert learning(model, taps=["1.0", "1.1", "1.2"]) == ["0, 1.0", "1.1", "1.2", "2.0"]
    assert learning(model, taps=["0"]) == ["0", "1, 2.0"]
    # Attention holds a matrix of its own and a layer: parts of a block are named one by one.
    assert learning(model, taps=["1.0.norm1", "1.2"])[:2] == ["0, 1.0.self_attn, 1.0.norm1", (
        "1.0.linear1, 1.0.linear2, 1.0.norm2, 1.1, 1.2"
    )]  # fmt: skip


class OwnMatrix(nn.Module):
    """The model has a parameter itself, and so has one of its modules beside a layer."""

    def __init__(self):
        super().__init__()
        self.scale, self.part = nn.Parameter(torch.ones(8)), nn.Linear(8, 8)
        self.part.inner, self.tap, self.head = nn.Linear(8, 8), bpfree.Tap(), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.part.inner(self.tap(self.scale * self.part(x))))


def test_a_part_of_a_module_does_not_stand_for_it():
    assert learning(OwnMatrix()) == ["(model), part", "part.inner, head"]
