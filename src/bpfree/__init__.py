"""Train any PyTorch model without backpropagation, or with as little of it as a learning rule needs.

Example::

    attachment = bpfree.attach(model, bpfree.DFA(), seed=0)
    loss = F.cross_entropy(model(x), y)
    loss.backward()                      # the error goes straight to every tap
    optimizer.step()
    attachment.detach()                  # the model is as it was
"""

from importlib.metadata import version as _version

from bpfree.alignment import AlignmentReport as AlignmentReport
from bpfree.alignment import TapAlignment as TapAlignment
from bpfree.alignment import alignment as alignment
from bpfree.attach import attach as attach
from bpfree.attachment import Attachment as Attachment
from bpfree.axes.sites import Site as Site
from bpfree.errors import BpfreeError as BpfreeError
from bpfree.errors import BpfreeWarning as BpfreeWarning
from bpfree.feedback.options import Feedback as Feedback
from bpfree.layers.kinds import serve_layer as serve_layer
from bpfree.mechanisms.base import Rule as Rule
from bpfree.mechanisms.direct.delivery import Delivery as Delivery
from bpfree.mechanisms.direct.rule import DirectRule as DirectRule
from bpfree.mechanisms.layerwise.rule import LayerwiseRule as LayerwiseRule
from bpfree.mechanisms.learned.from_errors import ErrorLearnedRule as ErrorLearnedRule
from bpfree.mechanisms.learned.from_forward import ForwardLearnedRule as ForwardLearnedRule
from bpfree.mechanisms.learned.rule import LearnedRule as LearnedRule
from bpfree.mechanisms.learned.rule import Size as Size
from bpfree.registry import attachments as attachments
from bpfree.registry import detach_all as detach_all
from bpfree.rules import BP as BP
from bpfree.rules import DFA as DFA
from bpfree.rules import DKP as DKP
from bpfree.rules import DRTP as DRTP
from bpfree.rules import FA as FA
from bpfree.rules import FDFA as FDFA
from bpfree.rules import LMS as LMS
from bpfree.rules import PEPITA as PEPITA
from bpfree.rules import RULES as RULES
from bpfree.rules import ForwardGradient as ForwardGradient
from bpfree.rules import GrAPE as GrAPE
from bpfree.rules import KolenPollack as KolenPollack
from bpfree.rules import Shallow as Shallow
from bpfree.rules import SignSymmetry as SignSymmetry
from bpfree.rules import WeightMirror as WeightMirror
from bpfree.suggest import TapSuggestion as TapSuggestion
from bpfree.suggest import suggest_taps as suggest_taps
from bpfree.taps import Cut as Cut
from bpfree.taps import Tap as Tap
from bpfree.verification.verify import Verification as Verification
from bpfree.verification.verify import verify as verify

__version__ = _version("bpfree")
