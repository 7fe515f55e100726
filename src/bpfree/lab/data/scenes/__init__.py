"""Scenes: photographs of one place, and where each was taken from.

``transforms`` reads the JSON files that Blender's scenes and Nerfstudio share, ``blender``, ``nerfstudio`` and ``llff``
make a scene of each format. ``cameras`` turns pixels into rays, ``photographs`` reads the pictures, and ``scene`` holds
both.
"""

from bpfree.lab.data.scenes.blender import load_blender
from bpfree.lab.data.scenes.cameras import Cameras
from bpfree.lab.data.scenes.llff import load_llff
from bpfree.lab.data.scenes.nerfstudio import load_nerfstudio
from bpfree.lab.data.scenes.scene import Scene, Views
from bpfree.lab.data.scenes.settings import SceneSettings

SCENES = {"blender": load_blender, "llff": load_llff, "nerfstudio": load_nerfstudio}
"""Format -> reader. A reader takes the folder given by the user (or None) and settings, and returns a scene."""
__all__ = [
    "SCENES",
    "Cameras",
    "Scene",
    "SceneSettings",
    "Views",
    "load_blender",
    "load_llff",
    "load_nerfstudio",
]
