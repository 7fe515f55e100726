"""What is kept of a log: made once, known by its content and its schema, whole or not there."""

from __future__ import annotations

import errno
import random
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from bpfree.lab.data.clicks import ClickSettings, caching, known_checksums, load_clicks, pieces
from bpfree.lab.data.clicks import cache as cache_module
from bpfree.lab.errors import DataError, WriteError
from lab.damage.full_disk import largest_file
from support import killed_caching, plain_log
from support.plain_log import SCHEMA
from support.small_log import content, loaded, schema_file


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = {name: plain_log.made_up(size, seed) for seed, (name, size) in enumerate(SIZES.items())}
    return plain_log.write(tmp_path / "log", made)


SIZES = {"train": 120, "valid": 40, "test": 30}


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pieces that are encoded, in place of being found."""
    found: list[str] = []
    make = pieces._make

    def noted(path: Path, *arguments: Any) -> Any:
        found.append(path.name)
        return make(path, *arguments)

    monkeypatch.setattr(pieces, "_make", noted)
    return found


def everything(found: Any) -> list[Any]:
    return [found.describe(), found.sizes, *map(content, (found.train, found.validation, found.test))]


def test_a_log_is_cached_once(folder: Path, made: list[str], cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = everything(loaded(folder, SCHEMA))
    assert len(made) == 3
    said = capsys.readouterr().out
    assert said.startswith("190 rows, ")
    assert "  train                120, " in said
    assert f"{sum(first[1])} identifiers: age {first[1][0]}, price" in said
    assert everything(loaded(folder, SCHEMA)) == first
    assert len(made) == 3
    assert capsys.readouterr().out == ""
    assert everything(loaded(folder, SCHEMA, measured_on="test"))[1:] == first[1:]
    loaded(folder, SCHEMA | {"identifiers": ["user"]})  # for predictions alone
    assert len(made) == 3
    assert [path.is_dir() for path in sorted(cache.iterdir())] == [True, False]  # the cache and its lock


def test_another_content_or_schema_is_another_log_and_another_place_is_not(folder: Path, made: list[str]) -> None:
    loaded(folder, SCHEMA)
    moved = shutil.move(folder, folder.with_name("moved"))
    loaded(moved, SCHEMA)
    assert len(made) == 3
    for number, changes in enumerate(({"min_count": 3}, {"numeric": ["age"]}, {"categorical": ["user", "site"]})):
        loaded(moved, SCHEMA | changes)
        assert len(made) == 3 * (number + 2)
    (moved / "valid.csv").write_text(plain_log.as_text(plain_log.made_up(41, 9)))
    assert len(loaded(moved, SCHEMA).validation) == 41
    assert len(made) == 15
    files = {"train": "test.csv", "validation": "valid.csv", "test": "train.csv"}
    assert len(loaded(moved, SCHEMA | {"files": files}).train) == 30


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "a changed byte": lambda path: path.write_bytes(path.read_bytes()[:-1] + bytes([path.read_bytes()[-1] ^ 1])),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_cache_is_made_anew(how: str, folder: Path, cache: Path, made: list[str]) -> None:
    first = loaded(folder, SCHEMA)
    before = {path.name: path.read_bytes() for path in first.cache.folder.iterdir()}
    expected = everything(first)
    assert len(before) == 2 + 2 * 4
    for number, name in enumerate(("manifest.json", "labels.bin", "0001.bin", "0003.vocabulary")):
        DAMAGE[how](first.cache.folder / name)
        assert everything(loaded(folder, SCHEMA)) == expected
        assert len(made) == 3 * (number + 2)
        assert {path.name: path.read_bytes() for path in first.cache.folder.iterdir()} == before


def test_the_cache_of_another_log_is_not_taken(folder: Path, made: list[str]) -> None:
    first = loaded(folder, SCHEMA).cache.folder
    other = loaded(folder, SCHEMA | {"min_count": 3}).cache.folder
    shutil.rmtree(first)
    shutil.copytree(other, first)
    assert loaded(folder, SCHEMA).cache.facts["schema"]["min_count"] == 2
    assert len(made) == 9


def test_an_interruption_is_taken_up(
    folder: Path, made: list[str], small_pieces: None, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """Whatever call raises, at whatever time: the next one goes on, and the cache is as if nothing had been."""
    expected = loaded(folder, SCHEMA).cache.folder
    whole = {path.name: path.read_bytes() for path in expected.iterdir()}
    count = len(made)
    assert count > 5
    for name, module in (("write_piece", pieces), ("learn", caching), ("write_ids", caching), ("write_json", caching)):
        for turn in (0, 3):
            shutil.rmtree(cache)
            made.clear()
            call, calls = getattr(module, name), [0]

            def interrupted(*arguments: Any, call: Any = call, calls: list[int] = calls, turn: int = turn) -> Any:
                calls[0] += 1
                if calls[0] > turn:
                    raise KeyboardInterrupt
                return call(*arguments)

            if (name, turn) == ("write_json", 3):
                continue
            with monkeypatch.context() as patch:
                patch.setattr(module, name, interrupted)
                with pytest.raises(KeyboardInterrupt):
                    loaded(folder, SCHEMA)
            assert not expected.exists()
            before = len(set(made))
            made.clear()
            assert {path.name: path.read_bytes() for path in loaded(folder, SCHEMA).cache.folder.iterdir()} == whole
            assert len(made) == (0 if name != "write_piece" else count - turn), (name, turn, before)


def test_a_damaged_piece_is_made_anew(folder: Path, made: list[str], cache: Path, monkeypatch: Any) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(caching, "learn", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            loaded(folder, SCHEMA)
    found = sorted(cache.rglob("*.piece"))
    for path, how in zip(found, ("a changed byte", "cut short", "gone"), strict=True):
        DAMAGE[how](path)
    made.clear()
    loaded(folder, SCHEMA)
    assert made == [path.name for path in found]
    assert not list(cache.rglob("*.piece"))


def test_a_killed_process_leaves_what_the_next_one_goes_on_with(folder: Path, tmp_path: Path) -> None:
    """Killed twice; ``python benchmarks/clicks.py --kills 20`` does it more often."""
    schema = schema_file(folder, SCHEMA)
    assert killed_caching.run(folder, schema, tmp_path / "whole", None)
    draw = random.Random(0)
    for _ in range(2):
        killed_caching.run(folder, schema, tmp_path / "killed", 0.1 + 0.5 * draw.random(), pause=0.05)
    killed_caching.run(folder, schema, tmp_path / "killed", None)
    assert killed_caching.files(tmp_path / "killed") == killed_caching.files(tmp_path / "whole")


def error_of(folder: Path, size: int) -> str:
    """What is said where no file can be larger than ``size`` bytes."""
    settings = ClickSettings(schema=schema_file(folder, SCHEMA))
    try:
        with largest_file(size):
            load_clicks(folder, settings)
    except WriteError as error:
        return str(error)
    return ""


def test_a_full_disk_is_named_and_repeating_goes_on(folder: Path, cache: Path, small_pieces: None) -> None:
    whole = everything(loaded(folder, SCHEMA))
    outcomes = set[bool]()
    for size in (0, 100, 300, 700, 1500, 3000):
        shutil.rmtree(cache)
        said = error_of(folder, size)
        outcomes.add(bool(said))
        if said:
            assert "could not be written (File too large)" in said
            assert "XDG_CACHE_HOME/bpfree/clicks; what is done is kept, and repeating" in said
            assert not [path for path in cache.iterdir() if not path.suffix]
        assert everything(loaded(folder, SCHEMA)) == whole
        assert not list(cache.rglob("*.new")) + list(cache.rglob("*.part"))
    assert True in outcomes


@pytest.mark.parametrize("call", ["bpfree.lab.data.clicks.piece_file.os.replace", "pathlib.Path.replace"])
def test_whatever_call_is_refused(call: str, folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(call, full)
        with pytest.raises(WriteError, match=r"could not be written \(No space left on device\).* as much again"):
            loaded(folder, SCHEMA)
    assert not [path for path in cache.iterdir() if not path.suffix]
    assert len(loaded(folder, SCHEMA).train) == 120


def test_a_cache_that_cannot_be_made_is_named(folder: Path, cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file in the folder's place")
    with pytest.raises(WriteError, match=r"(?s)cannot be made .*XDG_CACHE_HOME"):
        loaded(folder, SCHEMA)


def test_one_process_makes_a_cache_and_the_others_wait(
    folder: Path, cache: Path, made: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fcntl = pytest.importorskip("fcntl")
    settings = ClickSettings(schema=schema_file(folder, SCHEMA))
    place = load_clicks(folder, settings).cache.folder
    shutil.rmtree(place)
    made.clear()
    with ThreadPoolExecutor() as pool:
        with place.with_suffix(".lock").open("a") as lock:  # released before the pool waits for its threads
            fcntl.flock(lock, fcntl.LOCK_EX)
            others = [pool.submit(load_clicks, folder, settings) for _ in range(2)]
            said, end = "", time.monotonic() + 300
            while said.count("another process reads this log; waiting for it") < 2:
                assert time.monotonic() < end
                time.sleep(0.01)
                said += capsys.readouterr().out
            assert not any(other.done() for other in others)
            assert made == []
        assert [everything(other.result()) for other in others] == [everything(load_clicks(folder, settings))] * 2
    assert len(made) == 3


def test_large_files_are_not_read_again(folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_checksums, "_LARGE", 10)
    monkeypatch.setattr(known_checksums, "_RECENT", -1)
    first = known_checksums.file_checksum(folder / "train.csv")
    read: list[Path] = []
    computed = known_checksums._computed
    monkeypatch.setattr(known_checksums, "_computed", lambda path: read.append(path) or computed(path))
    assert known_checksums.file_checksum(folder / "train.csv") == first
    assert read == []
    (folder / "train.csv").write_bytes((folder / "train.csv").read_bytes())
    assert known_checksums.file_checksum(folder / "train.csv") == first
    assert read == [folder / "train.csv"]
    entry = next((cache / "checksums").iterdir())
    entry.write_text("{}")
    assert known_checksums.file_checksum(folder / "train.csv") == first
    with pytest.raises(DataError, match=r"nowhere\.csv cannot be read"):
        known_checksums.file_checksum(folder / "nowhere.csv")


def test_a_file_that_changed_just_now_is_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_checksums, "_LARGE", 10)
    path = folder / "train.csv"
    for content_ in (b"abcdefghijk", b"abcdefghijl", b"abcdefghijm"):
        path.write_bytes(content_)
        assert known_checksums.file_checksum(path) == known_checksums._computed(path)


def test_names_of_files_differ() -> None:
    names = {cache_module.ids_name(n) for n in range(300)} | {cache_module.vocabulary_name(n) for n in range(300)}
    assert len(names) == 600
