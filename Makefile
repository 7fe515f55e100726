# `make demo` and `make test` each work alone on a fresh clone with Python 3.11 or later, pip and a package index.
.PHONY: demo test check docs notebooks support install format clean

PYTHON ?= python3
VENV := .venv
# Bytecode is kept, whatever the environment says: dozens of processes read the same files. It is made of what is
# imported, and not of all 20,000 files when they are installed, which takes a minute and a half.
RUN := OMP_WAIT_POLICY=PASSIVE PYTHONDONTWRITEBYTECODE= $(VENV)/bin
PIP := $(VENV)/bin/python -m pip install --quiet --no-compile --constraint constraints.txt

demo: $(VENV)/lab
	$(RUN)/bpfree demo

# One process imports and collects; three copies of it run file by file (tests/support/forks.py), because some wait for processes.
# Of pytest's plugins none is needed: their packages would be rewritten, assert by assert.
test: install
	PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 OMP_NUM_THREADS=1 $(RUN)/python -m pytest --forks 3

check: install
	$(RUN)/ruff format --check .
	$(RUN)/ruff check .
	$(RUN)/mypy

# A broken link or reference fails. Nothing here asks the network.
docs: $(VENV)/docs
	$(RUN)/python -m sphinx -q -W --keep-going -d build/doctrees docs build/site
	@echo "Open build/site/index.html"

# Makes notebooks of two examples and runs them: build/notebooks/*.ipynb, with their pictures.
notebooks: install
	mkdir -p build/notebooks
	cd build/notebooks && for name in mnist optical; do \
		../../$(VENV)/bin/jupytext --quiet --to ipynb --output $$name.ipynb ../../examples/$$name.py && \
		OMP_WAIT_POLICY=PASSIVE PYTHONDONTWRITEBYTECODE= ../../$(VENV)/bin/jupyter execute --inplace $$name.ipynb || exit 1; done

support: install
	PYTHONPATH=tests $(RUN)/python -m support.page

format: install
	$(RUN)/ruff format .
	$(RUN)/ruff check --fix .

install: $(VENV)/dev

# torch goes in first and pinned: another package's open range would bring the newest build, with gigabytes of CUDA.
$(VENV)/lab: pyproject.toml constraints.txt
	@test -x $(VENV)/bin/python || $(PYTHON) -c 'import sys; sys.exit("Python 3.11 or later is needed; name one: make demo PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) --editable ".[lab]"
	touch $@

$(VENV)/dev: $(VENV)/lab
	$(PIP) --editable ".[dev,examples]"
	touch $@

$(VENV)/docs: $(VENV)/lab
	$(PIP) --editable ".[docs]"
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache build runs
