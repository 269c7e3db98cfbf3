# `make study` and `make test` need python3 (3.11 or newer) and make; the first call sets up .venv, later ones start at once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# processes for the tests: each has one thread and up to 2 GB; more of them on a larger machine (make test JOBS=4)
JOBS ?= 2
FAST = $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not slow and not browser"

.PHONY: help setup study test test-all lab notebooks exercises slides paper paper-step lint clean

help:
	@echo "make setup      the packages into .venv (about 6 GB; the other targets do it when it is missing)"
	@echo "make study      run the lecture study: notebooks, report, table (into runs/lecture)"
	@echo "make test       the tests (6 to 13 minutes on two slow cores)"
	@echo "make test-all   the tests with the slow ones"
	@echo "make lab        open the notebooks in JupyterLab"
	@echo "make notebooks  execute the committed notebooks again and keep their outputs"
	@echo "make exercises  write the students' notebooks and the solutions from their sources"
	@echo "make slides     the notebooks as slides (into slides/)"
	@echo "make paper      the paper's protocol on one GPU, in steps of at most 10 minutes (DATA_PATH=folder of CIFAR-100)"
	@echo "make lint       ruff over code and notebooks, and the floors of the package"

$(READY): pyproject.toml constraints.txt
	@echo "setting up $(VENV) (once; PyTorch is large, this takes some minutes)"
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
		{ echo "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11 study"; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade pip setuptools -c constraints.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]" -c constraints.txt
	@touch $(READY)
	@echo "set up"

setup: $(READY)

study: $(READY)
	@$(BIN)/learngene study

test: $(READY)
	@$(FAST)

# The slow ones one by one: they kill processes and start clusters and browsers, with patience for a machine that has nothing
# else to do. They run even where a fast one has failed.
test-all: $(READY)
	@$(FAST); fast=$$?; $(BIN)/python -m pytest -m "slow or browser" && exit $$fast

lab: $(READY)
	@$(BIN)/jupyter lab --ip=127.0.0.1 $(if $(filter 0,$(shell id -u)),--allow-root) notebooks

notebooks: $(READY) exercises
	@$(BIN)/python notebooks/tools/refresh.py

exercises: $(READY)
	@$(BIN)/python notebooks/tools/exercises.py

slides: $(READY)
	@$(BIN)/python notebooks/tools/slides.py

# Each call goes on where the one before stopped: status 75 says that its nine minutes are over and all is saved.
PAPER = $(BIN)/learngene atlas --preset paper --data-path "$(DATA_PATH)" --out runs/paper --set minutes=9

paper-step: $(READY)
	@test -n "$(DATA_PATH)" || { echo "say where CIFAR-100 is: make $@ DATA_PATH=folder"; exit 2; }
	@$(PAPER)

paper: $(READY)
	@test -n "$(DATA_PATH)" || { echo "say where CIFAR-100 is: make $@ DATA_PATH=folder"; exit 2; }
	@$(PAPER); status=$$?; while [ $$status = 75 ]; do $(PAPER); status=$$?; done; exit $$status

lint: $(READY)
	@$(BIN)/ruff check . && $(BIN)/ruff format --check learngene_core notebooks/tools tests
	@$(BIN)/lint-imports --no-cache

clean:
	rm -rf $(VENV)
