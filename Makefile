# One line each; everything runs in .venv, which the first target makes.
PYTHON ?= python3
BIN := .venv/bin
# A process for each core, a thread in each; a file's tests stay together, as they share runs.
PARALLEL := -n auto --dist loadfile --no-loadscope-reorder

.PHONY: quickstart test test-all test-oldest fuzz check format bench gpu parity extras docs clean

quickstart: .venv/quickstart  ## train on 5,000 real digits, evaluate, predict: 2 to 4 minutes on 2 cores
	@$(BIN)/densekit train -c quickstart && $(BIN)/densekit evaluate runs/quickstart/best && $(BIN)/densekit predict runs/quickstart/best data/mnist5k/val/[0-4]/*00.png

test: .venv/test  ## the tests that take seconds
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PARALLEL) -m "not slow"

test-all: .venv/test  ## the slower tests too: real processes killed, torchrun, the README's commands
	OMP_NUM_THREADS=1 $(BIN)/pytest $(PARALLEL) -m slow

test-oldest: .venv-oldest/test  ## quick tests with the oldest torch and libraries that pyproject allows
	OMP_NUM_THREADS=1 .venv-oldest/bin/pytest $(PARALLEL) -m "not slow" $(addprefix tests/,models ops cli training)

fuzz: .venv/test  ## each reader against corrupt and hostile input, at length: DENSEKIT_FUZZ_EXAMPLES
	DENSEKIT_FUZZ_EXAMPLES=$${DENSEKIT_FUZZ_EXAMPLES:-20000} $(BIN)/pytest $(PARALLEL) tests/fuzz

check: .venv/test  ## lint, format, types
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: .venv/test  ## what `make check` asks for
	$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: .venv/test  ## speed against torchvision: adds rows to benchmarks/results
	$(BIN)/python benchmarks/run.py

gpu: .venv/test  ## what only a GPU can prove, in 8 minutes: tests, rows, a run
	$(BIN)/python benchmarks/gpu.py

parity: .venv/test  ## every converter against its library, from the registry: writes docs/weights.md
	$(BIN)/python parity/run.py && $(BIN)/python parity/recipe.py && $(BIN)/python parity/medical.py && $(BIN)/python parity/xray.py

extras:  ## whether all extras install together from wheels on PYTHON=python3.13: a dry run of pip, minutes
	$(PYTHON) -m pip install --dry-run --ignore-installed --only-binary=:all: --no-binary=grad-cam \
	  ".[$$(sed -n "/optional-dependencies/,/^test = /s/^\([a-z0-9]*\) = .*/\1/p" pyproject.toml | grep -vx test | paste -sd, -)]"

docs: .venv/test  ## regenerates the reference of recipe options and the README's tables
	$(BIN)/python docs/generate.py

clean:  ## leaves runs/ and data/
	rm -rf .venv .venv-oldest build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/%: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$*]"
	@touch $@

.venv-oldest/test: pyproject.toml  # of each dependency and extra the lowest minor version, in its last release
	@test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	@sed -n '/^dependencies/,/^test = /p' pyproject.toml | sed '$$d' \
	  | grep -oE '"[A-Za-z0-9_-]+(\[[a-z,]+\])?>=[0-9.]+' \
	  | sed -E 's/^"([A-Za-z0-9_-]+)(\[.*\])?>=([0-9]+)(\.[0-9]+)?.*/\1==\3\4.*/' > $(@D)/oldest.txt
	$(@D)/bin/python -m pip install --quiet --disable-pip-version-check -c $(@D)/oldest.txt -e ".[test]"
	@touch $@
