"""The learning rules, one file a family, and the table of their names."""

from bpfree.mechanisms.base import Rule
from bpfree.rules.backprop import BP, Shallow
from bpfree.rules.direct import DFA, DRTP
from bpfree.rules.forward_only import PEPITA, ForwardGradient
from bpfree.rules.layerwise import FA, KolenPollack, SignSymmetry, WeightMirror
from bpfree.rules.learned import DKP, FDFA, LMS, GrAPE

RULES: dict[str, type[Rule]] = {
    rule.__name__: rule
    for rule in (
        BP,
        Shallow,
        DFA,
        DRTP,
        GrAPE,
        FDFA,
        LMS,
        DKP,
        FA,
        SignSymmetry,
        KolenPollack,
        WeightMirror,
        PEPITA,
        ForwardGradient,
    )
}
"""Every rule by its name."""

__all__ = [
    "BP",
    "DFA",
    "DKP",
    "DRTP",
    "FA",
    "FDFA",
    "LMS",
    "PEPITA",
    "RULES",
    "ForwardGradient",
    "GrAPE",
    "KolenPollack",
    "Shallow",
    "SignSymmetry",
    "WeightMirror",
]
