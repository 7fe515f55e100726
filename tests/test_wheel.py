"""What is published: a wheel that works away from this repository, and a source package that it is built from.

Nothing here asks a network: the build uses the installed setuptools, and the environment that the wheel is installed
into sees the dependencies that this one has, through a .pth file. It does not see this repository: .pth files in a
folder that a .pth file names are not followed, so this environment's own editable install does not count.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ["src", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"]
"""What a package is built from."""


def run(*command: object, cwd: Path) -> str:
    """The output of a command that must succeed, in a folder away from the repository and with none of its paths."""
    outside = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run([*map(str, command)], cwd=cwd, env=outside, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the source package, and the wheel that is built from that package."""
    pytest.importorskip("build")
    folder = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(ROOT / name, folder / name)
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder, cwd=folder)
    return folder / "dist"


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, and an empty folder.

    Attributes:
        scripts: Where its programs are.
        folder: The current folder of what is run.
    """

    scripts: Path
    folder: Path

    def python(self, *words: object) -> str:
        return run(self.scripts / "python", *words, cwd=self.folder)


@pytest.fixture(scope="module")
def installed(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    place = tmp_path_factory.mktemp("installed")
    environment = place / "environment"
    venv.create(environment)
    scripts = environment / ("Scripts" if os.name == "nt" else "bin")
    (wheel,) = packages.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "--python", scripts / "python"]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=place)
    found = run(scripts / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=place)
    dependencies = [folder for folder in sys.path if Path(folder).name in ("site-packages", "dist-packages")]
    Path(found.strip(), "dependencies.pth").write_text("".join(f"{folder}\n" for folder in dependencies))
    (place / "empty").mkdir()
    return Installed(scripts, place / "empty")


def files(*, code: bool) -> set[str]:
    """The files of the package, from its folder on; ``code`` says whether Python files are meant."""
    found = [path for path in (ROOT / "src" / "bpfree").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    return {path.relative_to(ROOT / "src").as_posix() for path in found if (path.suffix == ".py") == code}


def test_wheel_and_source_package_have_every_file(packages: Path) -> None:
    (wheel,), (source,) = packages.glob("*.whl"), packages.glob("*.tar.gz")
    wanted = files(code=True) | files(code=False)
    assert {"bpfree/py.typed", "bpfree/lab/recipes/grape-table1.yaml", "bpfree/lab/report/page.css"} <= files(
        code=False
    )
    with zipfile.ZipFile(wheel) as opened:
        names = set(opened.namelist())
    assert {name for name in names if ".dist-info/" not in name} == wanted
    with tarfile.open(source) as archive:
        members = {name.partition("/")[2] for name in archive.getnames()}
    assert {f"src/{name}" for name in wanted} | {"README.md", "LICENSE", "pyproject.toml"} <= members
    assert not any(name.startswith("tests") for name in members)


def test_the_package_index_would_show_the_page(packages: Path) -> None:
    pytest.importorskip("twine")
    shown = run(sys.executable, "-m", "twine", "--no-color", "check", "--strict", *packages.iterdir(), cwd=packages)
    assert shown.count("PASSED") == 2


COMPARISON = (
    "compare --rules BP DFA --seeds 1 --epochs 1 --model.hidden '[8, 8]' --batch-size 500 --threads 1 --out there"
)
COMMANDS = ["demo", "compare", "train", "table", "tune", "report"]
ASKED = ["", *COMMANDS]
SESSION = """
import runpy, shlex, sys
import bpfree
print(bpfree.__file__, *sys.path, sep="\\n")
program, comparison, *asked = sys.argv[1:]
for words in (comparison, *asked):
    print(END, flush=True)
    sys.argv = [program, *shlex.split(words)]
    try:
        if words == comparison:
            runpy.run_path(program, run_name="__main__")
        else:
            runpy.run_module("bpfree.lab.cli", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code, words
"""
"""Does what ``bpfree WORDS`` does, then ``python -m bpfree.lab.cli WORDS`` for others: importing takes longest."""
END = "-- end --"


@pytest.fixture(scope="module")
def shown(installed: Installed) -> list[str]:
    """What a session of the wheel prints: where it comes from, a comparison, its recipes, and every help text."""
    asked = [COMPARISON, "table --list", *(f"{command} --help" for command in ASKED)]
    program = installed.scripts / "bpfree"
    return installed.python("-c", SESSION.replace("END", repr(END)), program, *asked).split(f"{END}\n")


def test_what_is_imported_is_the_wheel(installed: Installed, shown: list[str]) -> None:
    file, *places = shown[0].splitlines()
    assert Path(file).is_relative_to(installed.scripts.parent)
    assert not [path for path in places if path and Path(path).resolve() in (ROOT, ROOT / "src", ROOT / "tests")]


def test_the_wheel_compares_rules_and_draws_the_page(installed: Installed, shown: list[str]) -> None:
    assert "recovery" in shown[1]
    assert (installed.folder / "there" / "report.html").stat().st_size > 5e5


def test_the_wheel_knows_its_recipes(shown: list[str]) -> None:
    names = [Path(name).stem for name in files(code=False) if name.startswith("bpfree/lab/recipes/")]
    assert len(names) >= 15
    assert all(name in shown[2] for name in names)


def test_help_is_there_by_module_too(shown: list[str]) -> None:
    texts = shown[3:]
    assert len(texts) == len(ASKED)
    assert texts[0].startswith("usage: bpfree")
    for command, text in zip(COMMANDS, texts[1:], strict=True):
        assert text.startswith("usage: ")
        assert f" {command} " in text.partition("\n")[0]
        assert "--help" in text
