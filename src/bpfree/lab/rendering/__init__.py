"""Volume rendering: the colours of rays through a field of colour and density.

``rays`` holds rays, ``sampling`` draws points on them, ``volume`` makes colours of what a field is at these points,
``passes`` renders rays through a coarse and a fine field, ``ndc`` maps rays of forward-facing scenes into a cube, and
``scores`` compares pictures.

Source: Mildenhall et al. 2020, "NeRF".
"""

from bpfree.lab.rendering.passes import Field, Passes, render
from bpfree.lab.rendering.rays import Rays
from bpfree.lab.rendering.sampling import draw_from_density, spread_evenly
from bpfree.lab.rendering.volume import Rendered, composite

__all__ = [
    "Field",
    "Passes",
    "Rays",
    "Rendered",
    "composite",
    "draw_from_density",
    "render",
    "spread_evenly",
]
