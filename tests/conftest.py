"""What all tests share."""

import gc
import os

# Before torch is imported: waiting threads must not spin while other processes want the cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
import torch._dynamo  # early: it looks for the file of every module that is there, for a second if they are thousands

# Messages about what a compiled function changes are for logs that nobody reads.
torch._dynamo.config.side_effect_replay_policy = "silent"

# torch.manual_seed keeps a trace of its caller for every kind of device that nothing has used yet, which costs it a
# millisecond. There is nothing to keep for devices that are not there.
for devices in (torch.cuda, torch.xpu, torch.mtia):
    if not devices.is_available():
        devices.manual_seed_all = lambda seed: None


pytest_plugins = ["support.forks"]


def pytest_collection_finish():
    # The collector would go through a million objects of imported modules again and again, and find nothing.
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True, scope="module")
def _keep_what_is_imported():
    gc.collect()
    gc.freeze()  # what the files before have imported
    torch.compiler.reset()  # what they have compiled: at its limit of recompilations torch compiles no more


@pytest.fixture(autouse=True)
def _same_start():
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture
def double():
    """Models and data in double precision, so that exactness means 1e-12."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
