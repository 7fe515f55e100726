"""Train NeRF-Tiny on Lego by BP and by DFA, and draw both side by side, once around.

    python docs/figures/turntable.py DIR [RUNS]

DIR is the folder of the scene lego_100; RUNS, by default runs/turntable, keeps the trained nets. The settings are those
of ``bpfree table launay2020-figureA1 --scale reduced``. It takes two runs of some 20 minutes on one core, and the same
command resumes them.
"""

from __future__ import annotations

import sys
from pathlib import Path

from schemes import FOLDER

from bpfree.lab.commands import main

SETTINGS = (
    "--model NeRFTiny --model.samples 64 --batch-size 1024 --steps 5000 --evaluations 5 --schedule constant --lr 5e-3 "
    "--threads 1 --alignment never --scene.measured_on test --scene.views 20"
)
RULES = {"BP": "BP", "DFA": '{"class_path": "DFA", "init_args": {"feedback": {"normalization": "launay2020-code"}}}'}


def trained(rule: str, scene: str, runs: Path) -> str:
    """Return the folder of a net that the rule has trained."""
    out = runs / rule
    if not list(out.glob("*.json")):
        chosen = [f"--settings.{rule}.rule", RULES[rule]]
        command = ["train", "--data", "blender", "--data-dir", scene, "--rule", rule, *chosen, *SETTINGS.split()]
        resume = ["--resume"] if list(out.rglob("*.ckpt")) else []
        if status := main([*command, "--out", str(out), *resume]):
            sys.exit(status)
    return str(out)


if __name__ == "__main__":
    folders = [trained(rule, sys.argv[1], Path(*sys.argv[2:] or ["runs/turntable"])) for rule in RULES]
    moving = ["--motion", "turntable", "--frames", "40", "--width", "200", "--to", str(FOLDER / "turntable.gif")]
    sys.exit(main(["render", folders[0], "--beside", *folders[1:], *moving]))
