"""Train NeRF-Tiny on Lego by BP and by DFA, and draw both side by side, once around.

    python docs/figures/turntable.py DIR [RUNS]

DIR is the folder of the data, with nerf_synthetic/lego_100 in it; RUNS, by default runs/turntable, keeps the trained
nets. They are the first seeds of ``bpfree table launay2020-figureA1 --scale reduced``, each some 20 minutes of a core.
The same command resumes them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from rich.console import Console
from schemes import FOLDER

from bpfree.lab.commands import main
from bpfree.lab.display.terminal import Display
from bpfree.lab.recipe.locate import find
from bpfree.lab.recipe.reading import read
from bpfree.lab.running.runs import Places, run
from bpfree.lab.tables.cells import plan
from bpfree.lab.tables.work import Training


def trained(work: Training, data_dir: str, runs: Path) -> Path:
    """Return the folder of the net that a run has trained."""
    scene = work.data(data_dir)
    with Display(Console(), measured_on=scene.measured_on) as display:
        run(work.settings, scene, runs, display=display, keep_checkpoint=True)
    return Places.of(work.settings, scene, runs).folder


if __name__ == "__main__":
    recipe, (data_dir, *runs) = read(find("launay2020-figureA1")), sys.argv[1:]
    cells = plan(recipe, recipe.scale("reduced"), 1, ["BP/PSNR", "DFA/PSNR"], data_dir)
    bp, dfa = (str(trained(cell.works[0], data_dir, Path(*runs or ["runs/turntable"]))) for cell in cells)
    moving = ["--motion", "turntable", "--frames", "40", "--width", "200", "--to", str(FOLDER / "turntable.gif")]
    sys.exit(main(["render", bp, "--beside", dfa, *moving]))
