"""Radiance fields: networks that give colour and density at points of a scene.

``encoding`` turns coordinates into waves, ``net`` is one network, ``models`` are those that render rays.
"""

from bpfree.lab.models.radiance.encoding import Waves
from bpfree.lab.models.radiance.models import NeRF, NeRFReleased, NeRFTiny
from bpfree.lab.models.radiance.net import NeRFNet

__all__ = ["NeRF", "NeRFNet", "NeRFReleased", "NeRFTiny", "Waves"]
