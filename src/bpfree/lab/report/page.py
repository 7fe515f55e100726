"""The HTML page: what stands where, and the file it is written to."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import vl_convert
from altair.utils.schemapi import debug_mode
from markupsafe import Markup

from bpfree.lab.disk.files import write_text
from bpfree.lab.report import alignment, charts, panels, series, tables
from bpfree.lab.report.filters import filters
from bpfree.lab.report.picture import vega_lite
from bpfree.lab.report.predictions import predictions
from bpfree.lab.report.style import Style, marks, on_screen
from bpfree.lab.report.template import HERE, rendered
from bpfree.lab.settings.length import Length
from bpfree.lab.summary import measured_beside
from bpfree.lab.tasks import compared


def write(comparison: Mapping[str, Any], path: Path) -> Path:
    """Write the report of `comparison`, the content of a comparison.json, to the HTML file `path`.

    The page holds everything it needs and opens from disk without a network.

    Returns:
        `path`.

    Raises:
        ReportError: if `comparison` is not of the format "bpfree-comparison/1".
    """
    series.check(comparison)
    return write_text(Path(path), html(comparison))


@debug_mode(False)  # else each part of a chart would be validated when it is made
def html(comparison: Mapping[str, Any]) -> str:
    """Return the page as text."""
    labels = series.labels(comparison)
    found = marks(labels, comparison["settings"].get("rules", {}))
    style = on_screen(found)
    learning = learning_charts(comparison, style)
    aligned = alignment_charts(comparison, style)
    hidden = embedding_charts(comparison, labels, style)
    predicted = {
        title: chart.properties(width="container", height=340)
        for title, chart in predictions(comparison, style).items()
    }
    return rendered(
        HERE / "page.html",
        found,
        comparison=comparison,
        task=compared(comparison),
        beside=measured_beside(compared(comparison), comparison["summary"]),
        length=Length.of(comparison["settings"]),
        tables=tables,
        series=series,
        learning=figures("learning", learning),
        alignment=alignment,
        aligned=figures("alignment", aligned),
        predicted=figures("predicted", predicted),
        samples={label: texts for label in labels if (texts := series.samples(comparison, label))},
        views={label: shown for label in labels if (shown := series.first(comparison, label, "views"))},
        hidden=figures("hidden", hidden),
        pictures=filter_pictures(comparison, labels),
        specs=embedded(
            specifications(
                {"learning": learning, "predicted": predicted, "alignment": aligned, "hidden": hidden}, style
            )
        ),
        bundle=bundle(),
    )


def learning_charts(comparison: Mapping[str, Any], style: Style) -> dict[str, Any]:
    """Return the two panels of learning curves, by title."""
    length = Length.of(comparison["settings"])
    return {
        title: charts.curves(rows, panel, style, length=length, interactive=True).properties(
            width="container", height=340
        )
        for title, rows, panel in panels.learning(comparison)
        if rows
    }


def alignment_charts(comparison: Mapping[str, Any], style: Style) -> dict[str, Any]:
    """Return the charts of alignment by title, all with the same axes."""
    rows = alignment.curves(comparison)
    panel = panels.cosine_panel([row for each in rows.values() for row in each])
    length = Length.of(comparison["settings"])
    return {
        title: charts.curves(each, panel, style, length=length, interactive=True).properties(
            width="container", height=210
        )
        for title, each in rows.items()
    }


def embedding_charts(comparison: Mapping[str, Any], labels: Sequence[str], style: Style) -> dict[str, Any]:
    """Return one scatter plot for each rule that has an embedding, by label."""
    found = {label: series.first(comparison, label, "embedding") for label in labels}
    return {
        label: charts.scatter(embedding, style).properties(width="container", height=230)
        for label, embedding in found.items()
        if embedding
    }


def filter_pictures(comparison: Mapping[str, Any], labels: Sequence[str]) -> dict[str, Any]:
    """Return the picture of the first layer's filters for each rule that has one, by label."""
    found = {
        label: filters(series.first(comparison, label, "filters"), series.first(comparison, label, "filters_shape"))
        for label in labels
    }
    return {label: picture for label, picture in found.items() if picture}


def figures(section: str, found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return identifier and title of each chart of a section."""
    return [(f"{section}-{i}", title) for i, title in enumerate(found)]


def specifications(sections: Mapping[str, Mapping[str, Any]], style: Style) -> dict[str, Any]:
    """Return every chart's Vega-Lite specification by the identifier of its place on the page."""
    found = {}
    for section, parts in sections.items():
        for i, chart in enumerate(parts.values()):
            # Whether all charts keep to Vega-Lite's schema is tested: asking takes a third of a page's time.
            found[f"{section}-{i}"] = charts.finish(chart, style).to_dict(validate=False)
            # The page names its Vega-Lite itself; an address in the data would only look like a link.
            del found[f"{section}-{i}"]["$schema"]
    return found


def embedded(value: Any) -> Markup:
    """Return `value` as JSON that cannot end the script element it stands in."""
    return Markup(json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"))


@functools.cache
def bundle() -> Markup:
    """Return Vega, Vega-Lite and Vega-Embed as one script (about 0.9 MB)."""
    script = vl_convert.javascript_bundle(vl_version=vega_lite())  # type: ignore[call-arg]  # its types ask for a snippet
    return Markup(script.replace("</script", "<\\/script").replace("<!--", "<\\!--"))
