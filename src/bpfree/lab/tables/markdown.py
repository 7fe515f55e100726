"""``RESULTS.md``: every measured table beside the paper's, made of the documents in a folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bpfree.lab.disk.files import write_text
from bpfree.lab.report.text import DASH, count, failures, mean_std, others, tolerances
from bpfree.lab.tables import terminal_view
from bpfree.lab.tables.result import COST_FORMAT, FORMAT, cautions, of_format, seeds_of_rows

_HEAD = """# Results

Made by `bpfree table`; the numbers of every run are in the JSON files beside this page. A cell is what was measured,
mean ± standard deviation over seeds, above what the paper gives; ✓ is within the tolerance, which stands below the
column's name (+∞: above by any amount), ✗ is not. A number of seeds in brackets is that of a cell that has other than
its row.
"""
_MARKS = {True: " ✓", False: " ✗", None: ""}


def write(folder: Path) -> Path:
    """Write the page of all documents in ``folder``; return its path."""
    paths = sorted(folder.glob("*.json"))
    documents, costs = (
        [content for path in paths if (content := of_format(path, name))] for name in (FORMAT, COST_FORMAT)
    )
    parts = [_HEAD, *map(section, documents), *([taken(costs)] if costs else [])]
    return write_text(folder / "RESULTS.md", "\n".join(parts))


def taken(costs: Sequence[Mapping[str, Any]]) -> str:
    """Return a table of the cost of whole tables, on the machine that measured a step and on a GPU."""
    lines = [
        ["table", "scale", "runs", "GiB", "hours, measured machine", "hours on a GPU"],
        ["---", "---", *["---:"] * 4],
    ]
    said: dict[str, None] = {}
    for document in costs:
        for name, scale in document["scales"].items():
            told = _in_cell(f"{name} ({scale['cut']})" if scale["cut"] else name)
            lines.append([_in_cell(document["name"]), told, f"{scale['runs']:,}", *terminal_view.hours(scale)])
            said[terminal_view.assumption(scale)] = None
    head = [
        "## What they take",
        "",
        "`bpfree table NAME --cost`: all runs of a table, from one measured step of each row.",
    ]
    return "\n".join([*head, *said, "", *(f"| {' | '.join(line)} |" for line in lines), ""])


def section(document: Mapping[str, Any]) -> str:
    """Return one table's part of the page."""
    source = ", ".join(str(value) for value in document["source"].values())
    command = " ".join(document["command"].replace("`", "'").split())
    lines = [f"## {_plain(document['title'])}", "", f"`{command}` · {_plain(source)}", ""]
    shown: list[Any] = []
    for name, entries in document["tables"].items():
        told = [{key: value for key, value in entry.items() if key != "scale"} for entry in entries]
        if told in shown:
            continue  # a scale of fewer seeds alone, and more have been run
        shown.append(told)
        cut = document["scales"][name]["cut"]
        lines += [f"Scale: {_plain(name)}{f' ({_plain(cut)})' if cut else ''}", "", *_table(entries), ""]
    cautious = cautions(document["records"])
    words = (("Deviations", document["deviations"]), ("Remarks", document["remarks"]), ("Caution", cautious))
    for heading, texts in words:
        lines += [f"{heading}:", "", *(f"- {_plain(text)}" for text in texts), ""] if texts else []
    return "\n".join([*lines, _effort(document["records"]), ""])


def _table(entries: Sequence[Mapping[str, Any]]) -> list[str]:
    columns = list(dict.fromkeys(entry["column"] for entry in entries))
    cells = {(entry["row"], entry["column"]): entry for entry in entries}
    seeds = seeds_of_rows(entries)
    allowed = tolerances(entries)
    headings = [_in_cell(column) + (f"<br>{allowed[column]}" if column in allowed else "") for column in columns]
    lines = [["", *headings, "seeds"], ["---", *["---:"] * (len(columns) + 1)]]
    for row in seeds:
        found = [cells.get((row, column)) for column in columns]
        lines.append([_in_cell(row), *(_cell(entry, seeds[row]) for entry in found), str(seeds[row])])
    return [f"| {' | '.join(line)} |" for line in lines]


def _plain(text: str) -> str:
    """Return a recipe's words in one line without HTML, links or pictures: a stranger may have written them."""
    line = " ".join(str(text).split())
    return line.replace("&", "&amp;").replace("<", "&lt;").replace("](", "]\\(")


def _in_cell(name: str) -> str:
    """Return a name for a table's cell, with escaped strokes, which would end the cell."""
    return _plain(name).replace("|", "\\|")


def _cell(entry: Mapping[str, Any] | None, seeds: int) -> str:
    if entry is None:
        return ""
    digits = entry.get("digits", 2)  # files of before it was told
    measured = mean_std(entry["mean"], entry["std"], digits) + _MARKS[entry["within"]]
    measured += failures(entry) or others(entry, seeds)
    paper = mean_std(entry["paper"], entry["paper_std"], digits)
    return measured if entry["paper"] is None else f"{measured}<br>{paper}"


def _effort(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the number, the hours and the machines of the runs, in words."""
    if not records:
        return "Not measured yet."
    hours = sum(record["duration"] for record in records) / 3600
    machines = dict.fromkeys(_machine(record["environment"]) for record in records)
    return f"{count(len(records), 'run')}, {hours:.2f} hours; {'; '.join(machines)}."


def _machine(environment: Mapping[str, Any]) -> str:
    threads = count(environment["threads"], "thread")
    computed = environment.get("gpu") or f"{environment['processor'] or DASH}, {threads}"
    return _plain(f"{computed}, torch {environment['torch']}")
