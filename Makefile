# `make demo` and `make test` on a fresh clone make the virtual environment and install what they
# need. No root.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint audit fuzz install bench streams quality kill figure3 dashboards clean

demo: install
	$(BIN)/funnel demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n auto --durations=10

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pip check

# Asks PyPI, and fails where it cannot be asked.
audit: install
	$(BIN)/pip install --quiet 'pip-audit>=2.10'
	$(BIN)/pip freeze --exclude-editable | \
		$(BIN)/pip-audit --strict --no-deps --disable-pip --requirement /dev/stdin

fuzz: install
	$(BIN)/pip install --quiet --editable '.[fuzz]'
	$(BIN)/python -m tests.streams.fuzz_decoder

install: $(BIN)/installed

$(BIN)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[dev]'
	touch $@

bench: install
	-$(BIN)/pip install --quiet --editable '.[bench]'
	$(BIN)/python -m tests.benchmarks.step
	$(BIN)/python -m tests.benchmarks.service

streams: install
	$(BIN)/python -m tests.benchmarks.streams

quality: install
	-$(BIN)/pip install --quiet --editable '.[bench]'
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.benchmarks.quality

kill: install
	$(BIN)/python -m tests.service.kill

figure3: install
	$(BIN)/python -m funnel.experiments.figure3 --out funnel/docs/figure3.png

dashboards: install
	$(BIN)/python docker/grafana/dashboard.py > docker/grafana/provisioning/dashboards/funnel.json

clean:
	rm -rf $(VENV) build dist
