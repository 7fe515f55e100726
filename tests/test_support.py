"""Every rule under every feature, as tests/support/matrix.py declares it."""

import importlib.util

import pytest
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard

import bpfree
from support import local, on_ranks
from support.matrix import CELLS, FEATURES, ROWS, cell
from support.page import PAGE, page
from support.two_ranks import once_per_run, run_on_two_ranks

pytestmark = pytest.mark.long

LIGHTNING = importlib.util.find_spec("lightning") is not None


def rows(feature):
    """The rows that have a test; those that are declared not to hold must fail."""
    found = []
    for name, row in ROWS.items():
        known = cell(feature, name)
        gap = pytest.mark.xfail(strict=True, raises=(AssertionError, bpfree.BpfreeError), reason=known.reason)
        if known.status != "meaningless":
            found.append(pytest.param(row, id=name, marks=gap if known.status == "gap" else ()))
    return found


def cells(features):
    return [
        pytest.param(feature, *known.values, id=f"{feature}-{known.id}", marks=known.marks)
        for feature in features
        for known in rows(feature)
    ]


@pytest.mark.parametrize(("feature", "row"), cells(local.CHECKS))
def test_in_one_process(feature, row):
    local.CHECKS[feature](row)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    features = [name for name in on_ranks.ON_RANK if name != "lightning" or LIGHTNING]
    return once_per_run(tmp_path_factory, "support", lambda: run_on_two_ranks(on_ranks.run_rows, features))


@pytest.mark.parametrize(("feature", "row"), cells(on_ranks.ON_RANK))
def test_on_two_processes(outcomes, feature, row):
    if feature == "lightning" and not LIGHTNING:
        pytest.skip("needs lightning: pip install bpfree[lab]")
    on_ranks.check(feature, row, [found[feature, row.name] for found in outcomes])


def test_a_sharded_model_is_refused():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = fully_shard(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)))
        with pytest.raises(bpfree.errors.AlreadyShardedError, match="attach the rule first"):
            bpfree.attach(model, bpfree.DFA())
    finally:
        dist.destroy_process_group()


def test_every_rule_and_every_feature_is_there():
    assert {type(row.rule).__name__ for row in ROWS.values()} == set(bpfree.RULES)
    assert set(local.CHECKS) | set(on_ranks.ON_RANK) == set(FEATURES)
    assert all(feature in FEATURES and row in ROWS for feature, row in CELLS)
    assert all(known.reason for known in CELLS.values())


def test_the_page_is_up_to_date():
    assert PAGE.read_text() == page(), "run `make support`"
