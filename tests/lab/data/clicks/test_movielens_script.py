"""experiments/movielens.py takes three files out of a wheel, whole or not at all; the true wheel is not needed."""

from __future__ import annotations

import hashlib
import importlib
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[4]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT)
    found = importlib.import_module("experiments.movielens")
    made = {name: hashlib.sha256(name.encode()).hexdigest() for name in found.FILES}
    monkeypatch.setattr(found, "FILES", made)
    return found


def wheel(place: Path, script: Any, **changes: bytes | None) -> Path:
    """A wheel in which each file holds its name; others may be changed or left out."""
    path = place / "recbole-1.2.1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name in script.FILES:
            content = changes.get(name.rpartition(".")[2], name.encode())
            if content is not None:
                archive.writestr(f"{script.FOLDER}/{name}", content)
        archive.writestr(f"{script.FOLDER}/ml-100k.kg", "not needed")
    return path


def run(script: Any, monkeypatch: pytest.MonkeyPatch, *options: object) -> None:
    monkeypatch.setattr(sys, "argv", ["movielens.py", *map(str, options)])
    script.main()


def test_the_schemas_files_are_taken_and_no_others(tmp_path: Path, script: Any, monkeypatch: Any, capsys: Any) -> None:
    run(script, monkeypatch, tmp_path / "a" / "ml", "--wheel", wheel(tmp_path, script))
    found = {path.name: path.read_text() for path in (tmp_path / "a" / "ml").iterdir()}
    assert found == {name: name for name in ("ml-100k.inter", "ml-100k.user", "ml-100k.item")}
    assert "GroupLens' terms of use hold for them" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"item": b"other"}, r"ml-100k\.item in .* SHA-256 is another"), ({"user": None}, "is not the wheel of recbole")],
)
def test_another_wheel_is_refused(
    changes: dict[str, bytes | None], said: str, tmp_path: Path, script: Any, monkeypatch: Any
) -> None:
    with pytest.raises(SystemExit, match=said):
        run(script, monkeypatch, tmp_path / "ml", "--wheel", wheel(tmp_path, script, **changes))
    assert not (tmp_path / "ml").exists()


def test_what_is_no_wheel_is_refused(tmp_path: Path, script: Any, monkeypatch: Any) -> None:
    (tmp_path / "a.whl").write_text("nothing")
    for path in (tmp_path / "a.whl", tmp_path / "b.whl"):
        with pytest.raises(SystemExit, match=r"\.whl is not the wheel of recbole==1\.2\.1"):
            run(script, monkeypatch, tmp_path / "ml", "--wheel", path)


def test_pip_downloads_it(tmp_path: Path, script: Any, monkeypatch: Any) -> None:
    def pip(command: list[str], **_: Any) -> Any:
        assert command[1:4] == ["-m", "pip", "download"]
        assert command[-1] == "recbole==1.2.1"
        wheel(Path(command[command.index("--dest") + 1]), script)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(script.subprocess, "run", pip)
    run(script, monkeypatch, tmp_path / "ml")
    assert (tmp_path / "ml" / "ml-100k.inter").is_file()
    monkeypatch.setattr(script.subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, 1))
    with pytest.raises(SystemExit, match=r"pip could not download recbole==1\.2\.1 \(see above\)\. Take --wheel FILE"):
        run(script, monkeypatch, tmp_path / "other")
