import warnings

import pytest

from bpfree import BpfreeWarning
from bpfree.lab.process.quiet import quiet


def test_what_bpfree_warns_of_is_one_line_and_is_said_once(capsys):
    for _ in range(2):  # two runs of a comparison
        with quiet():
            warnings.warn("tap '3' stands still.", BpfreeWarning, stacklevel=1)
    assert capsys.readouterr().err == "bpfree: tap '3' stands still.\n"


def test_others_warnings_come_through_as_they_were():
    with pytest.warns(UserWarning, match="somebody's"), quiet():
        warnings.warn("somebody's", UserWarning, stacklevel=1)


def test_warnings_are_told_as_before_when_the_run_has_ended():
    with quiet():
        pass
    with pytest.warns(BpfreeWarning, match="later"):
        warnings.warn("later", BpfreeWarning, stacklevel=1)
