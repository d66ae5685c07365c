# make demo   compiles the digits network for this CPU and classifies real digits
# make test   lint, types, the wheel in a fresh environment, tests with coverage
# make sweep  the agreement of the large networks whose layers smaller ones cover, on every target
# All create .venv with the versions of constraints.txt first, when it is missing or out of date.

PYTHON ?= python3
BIN := .venv/bin

# Exported, so that it holds in pip's isolated builds as well: the build back end is pinned too.
export PIP_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test lint types wheel tests sweep clean

demo: .venv/.ready
	$(BIN)/python examples/digits/demo.py

test: lint types wheel tests

lint: .venv/.ready
	$(BIN)/ruff check .

types: .venv/.ready
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python

wheel: .venv/.ready
	tests/wheel_smoke.sh $(BIN)/python

tests: .venv/.ready
	$(BIN)/pytest -n 2 --cov --cov-report=term

sweep: .venv/.ready
	$(BIN)/pytest -n 2 -m sweep

# torchvision is a reference for the tests; without --no-deps it would ask for a torch of its own.
.venv/.ready: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	$(BIN)/python -m pip install --quiet --no-deps torchvision
	touch $@

clean:
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
