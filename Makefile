# Every chore of the project. Each target works alone on a fresh clone with Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --constraint constraints.txt --editable
.PHONY: install reproduce test test-slow bench bench-network lint format clean

install: .venv/.installed

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) '.[dev,xarray]'
	touch $@

# With PyTorch: only what touches networks waits for it.
.venv/.network: .venv/.installed
	$(PIP) '.[dev,xarray,network,lightning]'
	touch $@

reproduce: install
	$(BIN)/etastar reproduce --out etastar-out/reproduce

test: lint
	$(BIN)/pytest -n 2 --dist loadgroup --cov --cov-report=term

test-slow: .venv/.network
	$(BIN)/pytest -n 2 -m slow

lint: .venv/.network
	$(BIN)/ruff format --check src tests benchmarks examples
	$(BIN)/ruff check src tests benchmarks examples
	$(BIN)/lint-imports --no-cache
	$(BIN)/basedpyright --warnings

format: install
	$(BIN)/ruff format src tests benchmarks examples
	$(BIN)/ruff check --fix src tests benchmarks examples

bench: install
	$(BIN)/python -m benchmarks

bench-network: .venv/.network
	$(BIN)/python -m benchmarks.network
	$(BIN)/python -m benchmarks.gauge

clean:
	rm -rf .venv .coverage* .pytest_cache .ruff_cache .hypothesis build dist
