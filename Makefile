# The two commands to know: `make demo` and `make test`. Each makes .venv and installs what it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-full lint clean

demo: $(INSTALLED)
	rm -rf demo
	$(BIN)/gradtrace compete --out demo

test: $(INSTALLED)
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# Every sample of PyTorch's own test database instead of a few of each operator.
test-full: $(INSTALLED)
	$(BIN)/python -m pytest -m full $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean:
	rm -rf $(VENV) demo .pytest_cache .ruff_cache .hypothesis

# The build tools come first, from the same pins, so that installing the package itself fetches nothing unpinned.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt hatchling editables
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[test,dev]'
	touch $@
