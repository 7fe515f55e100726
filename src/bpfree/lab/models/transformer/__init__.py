"""A decoder-only transformer for language modelling.

``placement`` says where its taps stand, ``attention`` holds the ways in which tokens see each other, ``positions`` the
vectors of places, ``block`` and ``model`` the rest.
"""

from bpfree.lab.models.transformer.model import CausalTransformer

__all__ = ["CausalTransformer"]
