"""Models of clicks: they map the identifiers of a row's fields to the logit of a click.

A row is an index into an array of the ``shape`` that a model is built for: field f has the identifiers 0 to
``shape[f] - 1``. ``tables`` holds what belongs to identifiers, ``layers`` the parts that several models share.

Launay et al. 2020, table 2, and their released code have:

==============  =====================================================================
``FM``          ``width=16``
``DeepFM``      ``width=10, hidden=[400, 400, 400], dropout=0.5``
``DeepCross``   ``width=16, layers=6, hidden=[1024, 1024]``
``AFN``         ``width=10, neurons=1500, hidden=[400, 400, 400]``, dropout 0.3 for BP
``AutoInt``     ``width=16, attention_width=32, heads=2, layers=3, hidden=[400, 400, 400]``
==============  =====================================================================

all with ``initialization="torchfm"``. AutoInt is in the code alone.
"""

from bpfree.lab.models.clicks.afn import AFN
from bpfree.lab.models.clicks.autoint import AutoInt
from bpfree.lab.models.clicks.deepcross import DeepCross
from bpfree.lab.models.clicks.deepfm import DeepFM
from bpfree.lab.models.clicks.fm import FM

__all__ = ["AFN", "FM", "AutoInt", "DeepCross", "DeepFM"]
