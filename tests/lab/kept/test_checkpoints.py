"""Checkpoints: two are kept, and the one that is whole is continued from."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from bpfree.errors import BpfreeWarning
from bpfree.lab.errors import DamageError, RunError
from bpfree.lab.kept import checkpoints
from bpfree.lab.kept.checkpoints import WholeFiles, choose, damage_of, previous
from bpfree.lab.running.runs import Places, run
from lab.damage.alter import altered
from support import tiny_lab
from support.interrupted_runs import STEPS, Interrupting, crash


def numbers(record: dict) -> str:
    """What does not depend on the clock."""
    kept = [{name: value for name, value in epoch.items() if name != "seconds"} for epoch in record["epochs"]]
    return json.dumps([kept, record["accuracy"]])


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """Those of a run that was interrupted in its third epoch."""
    with pytest.raises(OSError, match="stopped here"):
        run(tiny_lab.settings(), tiny_lab.splits(), tmp_path, display=Interrupting(2 * STEPS + 3, crash))
    return Places.of(tiny_lab.settings(), tiny_lab.splits(), tmp_path)


def epoch(path: Path) -> int:
    return torch.load(path, weights_only=True)["epoch"]


def test_two_are_kept_while_a_run_lasts_and_none_after_it(places: Places, tmp_path: Path) -> None:
    assert places.checkpoints() == [places.checkpoint, previous(places.checkpoint)]
    assert [epoch(path) for path in places.checkpoints()] == [1, 0]
    run(tiny_lab.settings(), tiny_lab.splits(), tmp_path)
    assert list(places.folder.glob("*.ckpt")) == []


@pytest.mark.parametrize("way", ["flipped", "truncated", "missing"])
def test_the_one_before_is_continued_from_where_the_last_is_not_whole(
    way: str, places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if way == "missing":  # as if the process had been killed between the two moves
        places.checkpoint.unlink()
    else:
        altered(places.checkpoint, way)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        found = run(tiny_lab.settings(), tiny_lab.splits(), tmp_path)
    assert numbers(found) == numbers(run(tiny_lab.settings(), tiny_lab.splits(), tmp_path / "uninterrupted"))
    said = capsys.readouterr().err
    assert ("last.ckpt is damaged" in said and "continues from" in said and "last-before.ckpt" in said) == (
        way != "missing"
    )


def test_a_run_of_which_no_checkpoint_is_whole_is_named(places: Places, tmp_path: Path) -> None:
    for path in places.checkpoints():
        altered(path)
    with pytest.raises(RunError, match=r"DFA, seed 0: .*last\.ckpt is damaged .*last-before\.ckpt .*Delete them"):
        run(tiny_lab.settings(), tiny_lab.splits(), tmp_path)
    for path in places.checkpoints():
        path.unlink()
    run(tiny_lab.settings(), tiny_lab.splits(), tmp_path)


def test_everybody_who_reads_checkpoints_reads_these(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    WholeFiles().save_checkpoint({"weights": torch.arange(6.0), "epoch": 2}, path)
    assert torch.load(path, weights_only=True)["weights"].tolist() == [0, 1, 2, 3, 4, 5]
    with zipfile.ZipFile(path) as packed:
        assert packed.testzip() is None
    assert damage_of(path) == ""


def test_the_checksum_is_of_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    WholeFiles().save_checkpoint({"weights": torch.arange(6.0)}, path)
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        assert damage_of(path), place
    for size in range(0, len(whole), 31):
        path.write_bytes(whole[:size])
        assert damage_of(path), size


def test_a_checkpoint_of_another_program_is_not_taken_for_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"weights": torch.zeros(3)}, path)
    with pytest.raises(DamageError, match=r"a\.ckpt is damaged .*Delete it to start this run anew"):
        choose([path])
    with pytest.raises(DamageError, match=r"a\.ckpt is damaged .*or anew"):
        WholeFiles().load_checkpoint(path)


def test_choosing_says_what_it_leaves(tmp_path: Path) -> None:
    paths = [tmp_path / "a.ckpt", tmp_path / "b.ckpt"]
    for path in paths:
        WholeFiles().save_checkpoint({"epoch": 1}, path)
    assert choose(paths) == paths[0]
    assert choose([]) is None
    altered(paths[0])
    with pytest.warns(BpfreeWarning, match=r"a\.ckpt is damaged .*continues from .*b\.ckpt, which is older"):
        assert choose(paths) == paths[1]


def packed(content: bytes, how: int) -> bytes:
    """A zip file with one part."""
    found = io.BytesIO()
    with zipfile.ZipFile(found, "w", how) as file:
        file.writestr("archive/data.pkl", content)
    return found.getvalue()


@pytest.mark.parametrize("how", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_would_unpack_to_more_is_refused_though_its_checksum_fits(how: int, tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    path.write_bytes(packed(bytes(10**6), how))
    checkpoints._seal(path)
    with pytest.raises(DamageError, match="declares more than it holds"):
        WholeFiles().load_checkpoint(path)


def test_a_zip_file_of_a_later_format_is_named_though_its_checksum_fits(tmp_path: Path) -> None:
    content = bytearray(packed(b"", zipfile.ZIP_STORED))
    content[content.rfind(b"PK\1\2") + 6] = 255  # the version that is needed to unpack it
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    checkpoints._seal(path)
    with pytest.raises(DamageError, match=r"a\.ckpt is damaged \(zip file version 25\.5\)"):
        WholeFiles().load_checkpoint(path)


def test_a_pickle_in_a_checkpoint_runs_nothing(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    path = tmp_path / "a.ckpt"

    class Marker:
        def __reduce__(self) -> tuple:
            return Path.touch, (marker,)

    torch.save({"epoch": Marker()}, path)
    checkpoints._seal(path)
    assert damage_of(path) == ""
    with pytest.raises(DamageError, match=r"a\.ckpt cannot be read"):
        WholeFiles().load_checkpoint(path, weights_only=True)
    assert not marker.exists()
