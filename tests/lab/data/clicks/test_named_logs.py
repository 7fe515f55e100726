"""The logs whose schemas the package has: Criteo's, Avazu's, and MovieLens in RecBole's files."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import pytest
import torch

from bpfree.lab.data.clicks import Clicks, load_clicks
from bpfree.lab.data.clicks.vocabulary import Vocabulary
from bpfree.lab.errors import DataError
from support import plain_log
from support.small_log import content, loaded

DATA = Path(__file__).parents[5] / "shared" / "data"


def rows_of(path: Path, separator: str, names: list[str] | None = None) -> list[plain_log.Row]:
    with path.open(newline="", encoding="utf-8") as stream:
        reader = csv.reader(stream, delimiter=separator, quoting=csv.QUOTE_NONE)
        columns = names or [name.partition(":")[0] for name in next(reader)]
        return [dict(zip(columns, row, strict=True)) for row in reader]


def check(found: Clicks, rows: list[plain_log.Row], label: str) -> None:
    """Ids of training are told back as values; the rows that these are say what the vocabularies must be."""
    schema = found.schema
    fields = (*schema.numeric, *schema.categorical)
    total = len(rows)
    sizes = [len(part) for part in (found.train, found.validation, found.test)]
    assert sizes == [round(0.8 * total), round(0.9 * total) - round(0.8 * total), total - round(0.9 * total)]
    # Which rows are of which part is drawn; a vocabulary of all rows tells them apart by what they hold.
    ids = [content(part)[0] for part in (found.train, found.validation, found.test)]
    values = [Vocabulary.load(found.cache.vocabulary_file(number)).values.to_list() for number in range(len(fields))]

    def known(row: plain_log.Row) -> tuple[int, ...]:
        found_ = []
        for name, kept in zip(fields, numbers, strict=True):
            value = plain_log.bin_of(row[name]) if name in schema.numeric else row[name]
            found_.append(1 if value in (None, "") else kept.get(value, 0))
        return tuple(found_)

    numbers = [{value: number for number, value in enumerate(kept, start=2)} for kept in values]
    expected = sorted(known(row) for row in rows)
    assert sorted(tuple(row) for part in ids for row in part) == expected
    for number, kept in enumerate(values):
        counts = torch.bincount(torch.tensor([row[number] for row in ids[0]]), minlength=len(kept) + 2).tolist()[2:]
        assert all(count >= schema.min_count for count in counts)
        order = [(-count, plain_log.order(value)) for count, value in zip(counts, kept, strict=True)]
        assert order == sorted(order)
    clicks = sum(sum(content(part)[1]) for part in (found.train, found.validation, found.test))
    assert clicks == sum(float(row[label]) >= (schema.label.threshold or 1) for row in rows)


@pytest.mark.skipif(not (DATA / "criteo").is_dir(), reason="the rows of Criteo are not there")
@pytest.mark.parametrize("name", ["criteo", "criteo-10k"])
def test_criteo(name: str) -> None:
    found = load_clicks(DATA / "criteo", name=name)
    names = ["label", *(f"I{n}" for n in range(1, 14)), *(f"C{n}" for n in range(1, 27))]
    files = ["train.txt"] if name == "criteo" else ["train.txt", "test.txt"]
    rows = [row for file in files for row in rows_of(DATA / "criteo" / file, "\t", names)]
    assert list(found.names) == names[1:]
    check(found, rows, "label")
    assert (found.schema.min_count, found.schema.split.seed) == (10, 42)


@pytest.mark.skipif(not (DATA / "avazu").is_dir(), reason="the rows of Avazu are not there")
def test_avazu() -> None:
    found = load_clicks(DATA / "avazu", name="avazu")
    check(found, rows_of(DATA / "avazu" / "train.csv", ","), "click")
    assert len(found.names) == 22
    assert found.describe()["n_train"] == 7199


def movielens(folder: Path) -> Path:
    """Ratings, users and films as RecBole writes them; user 3 and film 9 have no row of their own."""
    folder.mkdir(exist_ok=True)
    rows = [f"{1 + n % 3}\t{7 + n % 3}\t{1 + n % 5}\t{88125 + n}" for n in range(100)]
    (folder / "ml-100k.inter").write_text(
        "\n".join(["user_id:token\titem_id:token\trating:float\ttimestamp:float", *rows])
    )
    (folder / "ml-100k.user").write_text(
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n1\t24\tM\tpoet\t1\n2\t53\tF\tother\t2\n"
    )
    (folder / "ml-100k.item").write_text(
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
        '7\tA "B\t1995\tDrama War\n8\tC\tV\tWar\n'
    )
    return folder


def test_movielens(tmp_path: Path) -> None:
    found = load_clicks(movielens(tmp_path / "ml"), name="movielens")
    users = {"1": ("24", "M", "poet"), "2": ("53", "F", "other"), "3": ("", "", "")}
    films = {"7": ("1995", "Drama War"), "8": ("V", "War"), "9": ("", "")}
    rows = []
    for row in rows_of(tmp_path / "ml" / "ml-100k.inter", "\t"):
        user, film = users[row["user_id"]], films[row["item_id"]]
        joined = zip(("age", "gender", "occupation", "release_year", "class"), (*user, *film), strict=True)
        rows.append(row | dict(joined))
    check(found, rows, "rating")
    assert found.sizes == (4, 5, 5, 4, 4, 4, 4)


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("ml-100k.user", "1\t30\tM\tpoet\t1\n", r"several rows of user_id 1"),
        ("ml-100k.user", "4\t30\n", r"ml-100k\.user, line 4: 2 field\(s\) and not 5"),
        ("ml-100k.user", "4\told\tM\tpoet\t1\n", r"age of user_id 4 is no number: 'old'"),
    ],
)
def test_a_table_to_join_that_is_wrong(file: str, line: str, said: str, tmp_path: Path) -> None:
    folder = movielens(tmp_path / "ml")
    with (folder / file).open("a") as stream:
        stream.write(line)
    with pytest.raises(DataError, match=said):
        load_clicks(folder, name="movielens")


def test_a_table_to_join_that_is_missing(tmp_path: Path) -> None:
    folder = movielens(tmp_path / "ml")
    (folder / "ml-100k.item").unlink()
    with pytest.raises(DataError, match=r"ml-100k\.item is missing"):
        load_clicks(folder, name="movielens")


def test_tables_that_lie_among_the_files_of_a_log_are_no_log(tmp_path: Path) -> None:
    rows = [{"click": str(n % 2), "user": f"u{n % 5}"} for n in range(50)]
    (tmp_path / "log.csv").write_text(plain_log.as_text(rows))
    users = [{"user": f"u{n}", "age": str(10 * n)} for n in range(4)]
    (tmp_path / "users.csv.gz").write_bytes(gzip.compress(plain_log.as_text(users).encode()))
    schema = {"label": "click", "numeric": ["age"], "categorical": ["user"], "min_count": 1}
    found = loaded(tmp_path, schema | {"join": {"file": "users.csv", "key": "user"}})
    ages = {row["user"]: row["age"] for row in users}
    joined = [row | {"age": ages.get(row["user"], "")} for row in rows]
    ages_of = {user: age for age, user in content(found.train)[0]}
    assert len(ages_of) == 5  # one age a user
    assert min(ages_of.values()) == 1  # and none for the last one
    assert len(set(ages_of.values())) == len({plain_log.bin_of(row["age"]) for row in joined})
    assert set(found.checksums) == {"log.csv", "users.csv.gz", "schema"}
