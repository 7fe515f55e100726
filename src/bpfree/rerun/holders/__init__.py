"""Places that keep things: a module's attributes, a list, an object, a variable of a closure.

A forward pass may change what lies in them. Each kind of place can be copied, compared and put back cheaply: a copy
holds the same objects, not copies of them.

``base.py``         what all kinds have in common
``attributes.py``   the attributes of objects and modules
``containers.py``   dictionaries, lists, deques, sets and bytearrays
``variables.py``    variables of closures, modules and classes
``functions.py``    functions, with the defaults of their arguments
``numbers.py``      generators of random numbers and numpy arrays
``unchanging.py``   tuples, methods and arguments: they do not change, but contain places that do
"""

from bpfree.rerun.holders.attributes import Attributes, ModuleAttributes, Slots
from bpfree.rerun.holders.base import Holder
from bpfree.rerun.holders.containers import MANY, Entries, Items, Members, RuleBuffers
from bpfree.rerun.holders.functions import Function, Partial
from bpfree.rerun.holders.numbers import Numbers, array_holder
from bpfree.rerun.holders.unchanging import Arguments, Collection, Fixed, Method, Unchanging
from bpfree.rerun.holders.variables import ClassScope, Closure, Variables

__all__ = [
    "MANY",
    "Arguments",
    "Attributes",
    "ClassScope",
    "Closure",
    "Collection",
    "Entries",
    "Fixed",
    "Function",
    "Holder",
    "Items",
    "Members",
    "Method",
    "ModuleAttributes",
    "Numbers",
    "Partial",
    "RuleBuffers",
    "Slots",
    "Unchanging",
    "Variables",
    "array_holder",
]
