"""What only the callbacks need is imported by them alone, and named with its extra where it is missing."""

import subprocess
import sys

import pytest

from bpfree.errors import BpfreeError, MissingPackageError
from bpfree.rule_keeper import missing_package

CODE = """
import sys
import bpfree
print(*(name for name in ("lightning", "transformers", "accelerate", "tensorboard") if name in sys.modules))
for name in ("lightning", "transformers"):
    sys.modules[name] = None
    try:
        __import__(f"bpfree.{name}")
    except bpfree.BpfreeError as error:
        print(error)
"""


def test_bpfree_imports_none_of_them_and_names_what_is_missing():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "",
        "lightning is not installed: pip install 'bpfree[lightning]'.",
        "transformers is not installed: pip install 'bpfree[transformers]'.",
    ]


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (ModuleNotFoundError("", name="lightning"), True),
        (ModuleNotFoundError("", name="lightning.pytorch"), True),
        (ModuleNotFoundError("", name="lightning_utilities"), False),
        (ImportError("cannot import name 'Callback'", name="lightning"), False),
    ],
)
def test_a_package_that_is_there_and_broken_speaks_for_itself(error, named):
    found = missing_package(error, "lightning")
    assert isinstance(found, MissingPackageError if named else type(error))
    assert isinstance(found, BpfreeError) == named
    assert isinstance(found, ImportError)
    assert named or found is error
