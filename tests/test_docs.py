"""The documentation: its code runs, its links lead somewhere, its numbers and figures are those of committed runs."""

import importlib.util
import json
import re
from pathlib import Path
from statistics import mean, stdev

import pytest

import bpfree
import bpfree.pipeline

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("**/*.md"))]
CODE = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#]+)|(?:src|srcset)=\"([^\"]+)\"|^```\{image\} (\S+)", re.MULTILINE)
MEAN = re.compile(r"(-?[\d.]+) ± ([\d.]+)")


def name(page):
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", [page for page in PAGES if CODE.search(page.read_text())], ids=name)
def test_the_code_of_a_page_runs_from_top_to_bottom(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write checkpoints
    code = "\n".join(CODE.findall(page.read_text()))
    exec(compile(code, page.name, "exec"), {"__name__": page.stem})


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page):
    for target in filter(None, (one for match in LINK.findall(page.read_text()) for one in match)):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_the_readme_is_read_in_a_minute():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 90
    assert "pip install" in readme
    assert len(re.findall(r"<img |!\[", readme)) <= 3
    rules = readme.split("## Which rule when")[1].split("\n## ")[0]
    assert len(re.findall(r"^\| (?!you want|---)", rules, re.MULTILINE)) <= 10


def test_every_rule_has_a_page():
    overview = (DOCS / "rules" / "README.md").read_text()
    pages = re.findall(r"^\| \[`(\w+)\(.*?\)`\]\(([\w-]+\.md)\)", overview, re.MULTILINE)
    assert {rule for rule, _ in pages} == set(bpfree.RULES)


@pytest.mark.parametrize("module", [bpfree, bpfree.pipeline], ids=lambda module: module.__name__)
def test_every_public_name_is_on_a_page_of_the_reference(module):
    reference = "\n".join(page.read_text() for page in (DOCS / "api").glob("*.rst"))
    for public, value in vars(module).items():
        if not public.startswith("_") and getattr(value, "__name__", public) == public:
            known = re.search(rf"^\.\. (auto\w+|data):: {module.__name__}\.{public}\b", reference, re.MULTILINE)
            assert known, f"{public}: add it to a page of docs/api"


TABLES = {
    "## MNIST": "mnist",
    "### He's initialization": "depth-he",
    "### PyTorch's initialization": "depth",
}


@pytest.mark.parametrize("heading", TABLES)
def test_accuracies_on_the_page_of_results_are_those_of_the_runs(heading):
    part = (DOCS / "results.md").read_text().split(heading)[1].split("\n#")[0]
    runs = json.loads((ROOT / "results" / TABLES[heading] / "comparison.json").read_text())["runs"]
    for label in {run["label"] for run in runs}:
        accuracies = [run["accuracy"] for run in runs if run["label"] == label]
        row = next(line for line in part.splitlines() if line.startswith(f"| {label} |"))
        found = tuple(map(float, MEAN.search(row).groups()))
        assert found == pytest.approx((mean(accuracies), stdev(accuracies)), abs=0.00501), label


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_figure_of_a_step_is_the_one_that_its_script_draws(scheme):
    path = DOCS / "figures" / "step.py"
    spec = importlib.util.spec_from_file_location("step_figure", path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert path.with_name(f"step-{scheme}.svg").read_text() == script.svg(scheme)


def test_the_chart_of_depth_is_drawn_from_the_committed_runs(monkeypatch):
    pytest.importorskip("matplotlib", reason="needs matplotlib: it comes with bpfree[lab]")
    monkeypatch.syspath_prepend(DOCS / "figures")
    import depth

    lines = {round(float(line.get_ydata()[-1]), 2) for line in depth.figure("light").axes[0].lines}
    assert lines == {93.5, 93.37, 93.33, 83.33, 67.53}  # docs/results.md
