# One line each; everything runs in .venv, which the first target makes.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test test-all check format bench parity docs clean

quickstart: .venv/quickstart  ## train on 5,000 real digits, evaluate, predict: 2 to 4 minutes on 2 cores
	@$(BIN)/densekit train -c quickstart && $(BIN)/densekit evaluate runs/quickstart/best && $(BIN)/densekit predict runs/quickstart/best data/mnist5k/val/[0-4]/*00.png

test: .venv/test  ## the tests that take seconds
	$(BIN)/pytest -m "not slow"

test-all: .venv/test  ## the slower tests too: real processes killed, torchrun, the README's commands
	$(BIN)/pytest -m slow

check: .venv/test  ## lint, format, types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: .venv/test  ## what `make check` asks for
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: .venv/test  ## speed against torchvision: adds rows to benchmarks/results
	$(BIN)/python benchmarks/run.py

parity: .venv/test  ## every converter against its library, from the registry: writes docs/weights.md
	$(BIN)/python parity/run.py && $(BIN)/python parity/recipe.py

docs: .venv/test  ## regenerates the reference of recipe options and the README's tables
	$(BIN)/python docs/generate.py

clean:  ## leaves runs/ and data/
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/%: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$*]"
	@touch $@
