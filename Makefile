# Every target sets up what it needs: a virtual environment in .venv with the versions in constraints.txt.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
.PHONY: demo lab test lint clean setup

demo: $(READY)  ## linearize the embedded teacher and win it back: a table, and runs/demo/report.html
	$(BIN)/python -m liger_mini demo

lab: $(READY)  ## open the course in JupyterLab
	$(BIN)/jupyter lab notebooks/00-quickstart.ipynb

test: $(READY)  ## the test suite, then the notebooks in their quick tier
	$(BIN)/python -m pytest
	LIGER_MINI_TIER=quick $(BIN)/python -m pytest --nbmake --nbmake-timeout=600 notebooks

lint: $(READY)  ## ruff: style, imports, formatting, and notebooks without outputs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -p no:cacheprovider -m "not slow" tests/test_repository.py

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f'liger_mini needs Python 3.11 or newer; this is {sys.version.split()[0]}. Try: make PYTHON=python3.12 $(MAKECMDGOALS)')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

clean:  ## remove the environment and everything a run made
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
