"""Files that ``bpfree train`` keeps beside a run's checkpoint: with them its model can be used without the data."""

from __future__ import annotations

from pathlib import Path

from bpfree.lab.data.clicks import Clicks
from bpfree.lab.data.samples import Data
from bpfree.lab.data.scenes import Scene
from bpfree.lab.data.text import Text
from bpfree.lab.kept.clicks import keep_clicks
from bpfree.lab.kept.scenes import keep_scene
from bpfree.lab.kept.text import keep_text
from bpfree.lab.settings import RunSettings


def keep(settings: RunSettings, data: Data, folder: Path) -> None:
    """Write down, in a run's folder, what ``bpfree generate``, ``predict`` or ``render`` needs; nothing for other data.

    Raises:
        WriteError: A file could not be written.
    """
    if isinstance(data, Text):
        keep_text(settings, data, folder)
    elif isinstance(data, Clicks):
        keep_clicks(settings, data, folder)
    elif isinstance(data, Scene):
        keep_scene(settings, data, folder)
