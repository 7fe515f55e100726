"""Records and results say whether they are as they were written."""

from __future__ import annotations

import json
import random
import sqlite3
import warnings
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from bpfree.errors import BpfreeWarning
from bpfree.lab.disk import checksums, files
from bpfree.lab.errors import DamageError, LedgerError
from bpfree.lab.queue import record_attributes
from bpfree.lab.queue.ledger import Ledger
from bpfree.lab.tables import result, seal
from lab.damage.alter import flipped
from lab.damage.kinds import KINDS, RUNS, document, ledger, read_ledger, records
from lab.damage.search import outcome

ROOT = Path(__file__).parents[3]


def test_a_checksum_is_of_values_and_not_of_their_order() -> None:
    assert checksums.checksum({"a": 1.5, "b": [1, None]}) == checksums.checksum({"b": [1, None], "a": 1.5})
    others = [{"a": 1.5000000000000002}, {"a": "1.5"}, {"a": [1.5]}, {"A": 1.5}, {"a": -1.5}, {"a": None}]
    assert len({checksums.checksum(value) for value in [{"a": 1.5}, *others]}) == 7
    sealed = checksums.sealed({"a": 1})
    assert checksums.is_whole(sealed)
    assert checksums.unsealed(sealed) == {"a": 1}
    assert not checksums.is_whole(sealed | {"b": 2})
    assert not checksums.is_whole({"a": 1})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("1.5", "1.25"), "is damaged: its checksum"),
        (lambda text: text.replace('"checksum"', '"checksun"'), "has no checksum"),
        (lambda text: text[:-3], "is not readable as JSON"),
        (lambda text: text.replace("1.5", "[" * 10**5), "is not readable as JSON .*nested too deeply"),
        (lambda text: "[1]", "has no checksum"),
    ],
)
def test_a_changed_file_is_named(change: Any, said: str, tmp_path: Path) -> None:
    path = files.write_json(tmp_path / "a.json", {"x": 1.5, "name": "é"})
    assert files.read_json(path) == {"x": 1.5, "name": "é"}
    path.write_text(change(path.read_text()))
    with pytest.raises(DamageError, match=rf"a\.json {said}.*Delete it and repeat"):
        files.read_json(path)


@pytest.mark.parametrize("place", ["50.25", '"mean":50.25', '"label"', '"Made up"', '"keys"', "bpfree-table/1"])
def test_a_table_with_another_number_is_refused_and_says_which_record(place: str, tmp_path: Path) -> None:
    path = document(tmp_path)
    text = path.read_text()
    at = text.rindex(place) + len(place) - 2
    path.write_text(text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :])
    with pytest.raises(DamageError, match=r"made-up\.json is damaged: (record \d is not|its checksum is not).*backup"):
        result.of_format(path, result.FORMAT)


def test_records_that_were_swapped_or_left_out_are_noticed(tmp_path: Path) -> None:
    path = document(tmp_path)
    content = json.loads(path.read_text())
    for found in (content["records"][:2], content["records"][::-1], []):
        path.write_text(json.dumps({**content, "records": found}))
        with pytest.raises(DamageError, match="its checksum is not"):
            result.records(path)


def test_files_of_before_are_sealed_once_and_their_numbers_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = document(tmp_path)
    sealed = path.read_text()
    content = result.of_format(path, result.FORMAT)
    path.write_text(json.dumps(content))
    with pytest.raises(DamageError, match=r"has no checksum.*`python -m bpfree\.lab\.tables\.seal .*made-up\.json`"):
        result.records(path)
    plain = tmp_path / "comparison.json"
    plain.write_text('{"format": "bpfree-comparison/1", "runs": [1.5]}')
    assert seal.main([str(path), str(plain)]) == 0
    assert path.read_text() == sealed
    assert files.read_json(plain)["runs"] == [1.5]
    assert seal.main([str(path), str(plain)]) == 0
    path.write_text(sealed.replace("50.25", "51.25"))
    assert seal.main([str(path), str(tmp_path / "none.json")]) == 1
    said = capsys.readouterr()
    assert said.out.count(": sealed") == said.out.count("had its checksum") == 2
    assert "made-up.json is damaged" in said.err
    assert "none.json cannot be read" in said.err


def test_the_committed_results_are_whole() -> None:
    found = sorted((ROOT / "results").rglob("*.json"))
    assert len(found) > 30
    for path in found:
        files.read_json(path) if path.name == "comparison.json" else result.of_format(path, result.FORMAT)


def change(path: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(statement, values)


def texts(path: Path, key: str) -> list[tuple[int, str]]:
    with closing(sqlite3.connect(path)) as connection:
        asked = "SELECT trial_user_attribute_id, value_json FROM trial_user_attributes WHERE key = ? ORDER BY 1"
        return connection.execute(asked, (key,)).fetchall()


@pytest.mark.parametrize("key", [record_attributes.RECORD, "epoch 1", "key"])
def test_a_record_with_another_number_does_not_count_and_is_named(key: str, tmp_path: Path) -> None:
    path = ledger(tmp_path)
    number, text = texts(path, key)[1]
    other = text.replace("51.25", "51.75") if key != "key" else text.replace("b", "c")
    assert other != text
    change(path, "UPDATE trial_user_attributes SET value_json = ? WHERE trial_user_attribute_id = ?", other, number)
    with pytest.warns(BpfreeWarning, match=r"record 1 \(row b, seed 0\) is damaged: .*It does not count"):
        state = Ledger(str(path), "made up").state(RUNS)
    assert set(state.records) == {"a", "c"}
    assert {record["accuracy"] for record in state.records.values()} == {50.25, 52.25}


def test_a_damaged_record_is_taken_from_the_results_or_measured_again(tmp_path: Path) -> None:
    path = ledger(tmp_path)
    change(path, "UPDATE trial_user_attributes SET value_json = replace(value_json, '51.25', '51.5')")
    found = Ledger(str(path), "made up")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BpfreeWarning)
        found.ask(RUNS, again=True)
        assert found.state(RUNS).unfinished == {"b"}
        with found.claim(RUNS) as claim:
            assert claim.work.key == "b"
            claim.finish(records()[1])
        assert found.state(RUNS).records["b"]["accuracy"] == 51.25
        change(path, "UPDATE trial_user_attributes SET value_json = replace(value_json, '52.25', '52.5')")
        other = Ledger(str(path), "made up")
        assert set(other.state(RUNS).records) == {"a", "b"}
        other.adopt({record["key"]: record for record in records()})
        assert other.state(RUNS).records["c"]["accuracy"] == 52.25


def test_a_missing_part_of_a_record_is_noticed(tmp_path: Path) -> None:
    path = ledger(tmp_path)
    change(path, "DELETE FROM trial_user_attributes WHERE key = 'epoch 1' AND trial_id = 1")
    change(path, "DELETE FROM trial_user_attributes WHERE key = ? AND trial_id = 2", record_attributes.RECORD)
    with pytest.warns(BpfreeWarning, match="is damaged: ") as said:
        assert set(Ledger(str(path), "made up").state(RUNS).records) == {"c"}
    assert len({str(one.message) for one in said}) == 2


def test_a_checksum_whose_name_is_damaged_is_missed(tmp_path: Path) -> None:
    path = ledger(tmp_path)
    change(path, "UPDATE trial_user_attributes SET value_json = replace(value_json, 'checksum', 'cheCksum')")
    with pytest.warns(BpfreeWarning, match="its checksum is not that of what stands in it"):
        assert not Ledger(str(path), "made up").state(RUNS).records


def test_records_of_before_there_were_checksums_count() -> None:
    record = records()[0]
    plain = {name: value for name, value in record.items() if name != "epochs"}
    epochs = {f"epoch {number}": epoch for number, epoch in enumerate(record["epochs"], start=1)}
    assert record_attributes.joined({"record": plain, **epochs}) == record
    with pytest.raises(DamageError, match="checksum"):
        record_attributes.joined({"record": plain | {"checksum": "0"}, **epochs})


def test_large_records_keep_their_checksum_through_their_parts() -> None:
    record = records()[0] | {"filters": [[0.1 * i for i in range(5000)]] * 3}
    attributes = record_attributes.split(record)
    assert record_attributes.joined(attributes) == record
    part = next(name for name in attributes if name.startswith("part of filters"))
    text = attributes[part]
    with pytest.raises(DamageError, match="checksum"):
        record_attributes.joined(attributes | {part: text.replace("0.1", "0.2", 1)})


@pytest.mark.parametrize("how", ["header", "middle", "half", "text", "attributes"])
def test_a_ledger_that_is_no_database_any_more_is_named(how: str, tmp_path: Path) -> None:
    path = ledger(tmp_path)
    content = path.read_bytes()
    changed = {
        "header": b"no" + content[2:],
        "middle": content[:8192] + bytes(4096) + content[12288:],
        "half": content[: len(content) // 2],
        "text": b"notes of mine\n" * 400,
    }
    if how == "attributes":
        change(path, "UPDATE trials SET state = 'COMPLEUE'")
    else:
        path.write_bytes(changed[how])
    with pytest.raises(LedgerError, match=r"the ledger.* is damaged .*Move it away.*measured anew"):
        read_ledger(path)


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.sealed and name != "ledger"])
def test_a_bit_that_is_another_is_noticed(name: str, tmp_path: Path) -> None:
    kind = KINDS[name]
    path = kind.make(tmp_path)
    whole, content = kind.read(path), path.read_bytes()
    for number in range(40):
        path.write_bytes(flipped(content, random.Random(number)))
        # As before it is where 1e5 becomes 1E5.
        assert outcome(kind, path, whole) in ("named", "as before")
