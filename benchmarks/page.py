"""One page of plots from the results of all benchmarks: it holds everything it needs and opens from disk.

python benchmarks/page.py [--results FOLDER] [--out FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import vl_convert
from markupsafe import Markup

from bpfree.lab.disk.files import write_text
from bpfree.lab.report.charts import finish
from bpfree.lab.report.picture import vega_lite
from bpfree.lab.report.style import Style, on_screen
from bpfree.lab.report.template import rendered
from plots import charts
from plots.measured import Measured
from plots.sections import sections
from plots.targets import Target, targets

HERE = Path(__file__).parent
LEAD = (
    "Steps, memory, growth and pipelines of learning rules beside backpropagation (BP), measured in turns within one "
    "process. Below 1, a rule is faster or smaller."
)


def html(measured: Measured) -> str:
    """The page as text."""
    style = on_screen(charts.MARKS)
    found = targets(measured)
    return rendered(
        HERE / "plots" / "page.html",
        charts.MARKS,
        lead=f"{LEAD} {kept(found)}",
        targets=found,
        sections=sections(measured, style),
        drawn=lambda chart: drawn(chart, style),
        runs=[run for runs in measured.runs.values() for run in runs],
    )


def kept(found: list[Target]) -> str:
    """How many targets are kept."""
    known = [target for target in found if target.met is not None]
    return f"{sum(bool(target.met) for target in known)} of {len(known)} measured targets are kept."


def drawn(chart: Any, style: Style) -> Markup:
    """The chart as SVG, in colours that follow the page."""
    return Markup(vl_convert.vegalite_to_svg(finish(chart, style).to_dict(), vl_version=vega_lite()))


def main() -> None:
    """Read the results, write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=HERE / "results", help="the folder with the JSON files")
    parser.add_argument("--out", type=Path, help="default: index.html in that folder")
    options = parser.parse_args()
    write_text(options.out or options.results / "index.html", html(Measured.of(options.results)))


if __name__ == "__main__":
    main()
