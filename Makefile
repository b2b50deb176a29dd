# `make demo` and `make test` on a fresh clone make the virtual environment and install what they
# need, at the versions of docker/constraints.txt. No root.
PYTHON ?= python3
VENV ?= .venv
# Wheels of torch for the CPU. Those of PyPI bring CUDA: TORCH_INDEX=https://pypi.org/simple
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
BIN := $(VENV)/bin
INSTALL := $(BIN)/pip install --quiet --constraint docker/constraints.txt
# What runs the service, and what tests it too: each is installed once.
SERVICE := $(BIN)/installed-service
DEV := $(BIN)/installed-dev

.PHONY: demo test lint loops audit fuzz install bench streams quality kill simulate mutants figure3 dashboards docs clean

# `make demo ARGS="orders --rate 1000"`
demo: $(SERVICE)
	$(BIN)/funnel demo $(ARGS)

# The loops are compiled meanwhile, once: the processes of the tests find them on disk.
test: install
	$(MAKE) --jobs=2 lint loops
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --durations=10

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pip check

loops: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.support.rehearsed

# Asks PyPI, and fails where it cannot be asked.
audit: install
	$(INSTALL) 'pip-audit>=2.10'
	$(BIN)/pip freeze --exclude-editable | \
		$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement /dev/stdin

fuzz: install
	$(INSTALL) --editable '.[fuzz]'
	$(BIN)/python -m tests.streams.fuzz_decoder

install: $(DEV)

$(SERVICE): pyproject.toml docker/constraints.txt
	@echo "Funnel and torch are installed into $(VENV): one to three minutes."
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --retries 1 --extra-index-url $(TORCH_INDEX) torch
	$(INSTALL) --editable '.[service]'
	touch $@

$(DEV): $(SERVICE)
	$(INSTALL) --editable '.[dev]'
	-$(INSTALL) --editable '.[bench]'
	touch $@

# Without a learner that cannot be installed here, the others are measured.
bench: $(SERVICE)
	-$(INSTALL) --editable '.[bench]'
	$(BIN)/python -m tests.benchmarks.step
	$(BIN)/python -m tests.benchmarks.service

streams: $(SERVICE)
	$(BIN)/python -m tests.benchmarks.streams

quality: $(SERVICE)
	-$(INSTALL) --editable '.[bench]'
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.quality

kill: install
	$(BIN)/python -m tests.service.kill
	$(BIN)/python -m tests.service.label_kills

# Hours, on two cores: SCHEDULES and SEED choose fewer, and others. ASKING schedules have labels that
# come later, too.
SCHEDULES ?= 100000
ASKING ?= 1000
SEED ?= 0
simulate: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.simulation \
		--schedules $(SCHEDULES) --seed $(SEED) --workers 2
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.simulation --labels \
		--schedules $(ASKING) --seed $(SEED) --workers 2

mutants: install
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.simulation.mutants

figure3: install
	$(BIN)/python -m funnel.experiments.figure3 --out funnel/docs/figure3.png

dashboards: $(SERVICE)
	$(BIN)/python docker/grafana/dashboard.py > docker/grafana/provisioning/dashboards/funnel.json

docs: $(SERVICE)
	$(BIN)/python -m tests.docs.tables

clean:
	rm -rf $(VENV) build dist
