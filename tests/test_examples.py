"""The examples: each runs at its small setting, and what it prints makes the point that it is there for."""

import multiprocessing
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from support.scripts import Script

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
EXAMPLES = {path.stem: path for path in sorted((ROOT / "examples").glob("*.py"))}
NEEDS = {
    "analog": "aihwkit_lightning",
    "fine_tuning": "matplotlib",
    "gpt2": "transformers",
    "graph": "torch_geometric",
    "mnist": "matplotlib",
    "optical": "matplotlib",
    "spiking": "snntorch",
}
"""The package beside bpfree[lab] that an example needs."""


def run(name, folder, *arguments, without=None):
    """Do what ``python examples/NAME.py ARGUMENTS`` does in ``folder``; return the exit code and what was printed."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs a fork server, which this system lacks")
    plain = {"MPLBACKEND": "agg"}
    if name == "streaming":  # a copy of a process may have memory to spare that no limit takes
        done = subprocess.run(
            [sys.executable, EXAMPLES[name], *arguments],
            cwd=folder,
            env=os.environ | plain,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return done.returncode, done.stdout
    script = Script(EXAMPLES[name], *arguments, log=folder / "log.txt", environment=plain, without=without)
    text = script.output(300)
    return script.returncode, text


def reached(text):
    """Return the first number with a unit of each line, by what stands before it."""
    lines = re.findall(r"^(.+?):? +([\d.]+) (?:%|nats)", text, re.MULTILINE)
    return {" ".join(label.split()): float(number) for label, number in lines}


def check_mnist(text):
    found = reached(text)
    assert found["Shallow()"] + 5 < found["DFA()"] < found["FDFA()"]
    cosines = dict(re.findall(r"^(\w+)\(.* ([\d.]+, [\d.]+)$", text, re.MULTILINE))
    lower, upper = ([float(one) for one in cosines[rule].split(", ")] for rule in ("DFA", "FDFA"))
    assert 0.2 < max(lower) < min(upper) < 1


def check_own_rule(text):
    found = reached(text)
    assert found["Shallow()"] + 3 < found["TopDFA(k=1)"] < found["TopDFA(k=2)"] < found["DFA()"]
    assert found["OneBitFA()"] > found["Shallow()"] + 3


def check_optical(text):
    found = reached(text)
    assert found["noise 8"] + 10 < found["Shallow()"] + 2 < found["noise 0.25"] < found["BP()"]


def check_gpt2(text):
    found = reached(text)
    assert found["BP()"] < found["FDFA(beta=0.05)"] < min(found["DFA()"], found["Shallow()"]) - 0.1


def check_graph(text):
    found = reached(text)
    assert found["Shallow()"] + 10 < found["DFA()"] < found["DFA, errors spread over the edges"]
    assert found["FDFA()"] > found["Shallow()"] + 10


def check_analog(text):
    found = reached(text)
    assert found["Shallow()"] + 2 < found["DFA()"] < found["FDFA()"] < found["BP()"]


def check_spiking(text):
    found = reached(text)
    assert found["Shallow()"] + 5 < found["DFA()"] < found["FDFA()"] < found["BP()"]


def check_fine_tuning(text):
    found = reached(text)
    assert found["Shallow() on turned digits"] + 10 < found["FDFA() on turned digits"]
    assert found["trained by backpropagation"] > 80


def check_streaming(text):
    took = {way: float(mib) for way, mib in re.findall(r"^(.+?) +with.* took (\d+) MiB$", text, re.MULTILINE)}
    assert took.keys() == {"backpropagation", "streamed DFA"}
    assert took["streamed DFA"] <= 40 < took["backpropagation"]
    assert re.search(r"^backpropagation with 40 MiB *: fails: can't allocate memory", text, re.MULTILINE)
    before, after = map(float, re.search(r"^streamed DFA.* loss ([\d.]+) to ([\d.]+)", text, re.MULTILINE).groups())
    assert after < before


def check_pipeline(text):
    found = reached(text)
    assert found["frozen control"] + 5 < found["two processes"] == pytest.approx(found["one process"], abs=0.2)
    assert float(text.split()[-1]) < 1e-5
    sent = sorted(line for line in text.splitlines() if line.startswith("process"))
    (activations, nothing), (none, errors) = [map(float, re.findall(r"([\d.]+) MiB", line)) for line in sent]
    assert nothing == none == 0 < 10 * errors < activations


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_makes_its_point(name, tmp_path):
    if name in NEEDS:
        pytest.importorskip(NEEDS[name], reason=f"needs {NEEDS[name]}: it comes with bpfree[examples]")
    code, text = run(name, tmp_path, "--quick")
    assert code == 0, text
    globals()[f"check_{name}"](text)
    if "plt.savefig" in EXAMPLES[name].read_text():
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_read_at_once(name):
    assert len(EXAMPLES[name].read_text().splitlines()) < 60


@pytest.mark.parametrize("name", NEEDS)
def test_a_missing_package_is_named_with_what_installs_it(name, tmp_path):
    code, text = run(name, tmp_path, "--quick", without=NEEDS[name])
    assert (code, text.count("\n")) == (1, 1)
    assert re.search(rf"{NEEDS[name]}.*: pip install 'bpfree\[examples\]'$", text)


def test_a_missing_folder_is_named_with_what_it_should_hold(tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib: it comes with bpfree[examples]")
    code, text = run("mnist", tmp_path, "--data-dir", str(tmp_path / "nowhere"))
    assert code == 1
    assert re.search(r"DataError: .*nowhere is not a folder. Name the one that holds the files of mnist", text)


def test_the_table_of_examples_names_each():
    table = (ROOT / "examples" / "README.md").read_text()
    assert set(re.findall(r"^\| \[`(\w+)\.py`\]\(\1\.py\)", table, re.MULTILINE)) == set(EXAMPLES)
