# The two commands to know: `make demo` and `make test`. Each makes .venv and installs what it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-full lint web web-check clean

demo: $(INSTALLED)
	rm -rf demo
	$(BIN)/gradtrace compete --out demo

test: $(INSTALLED) browser
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# Every sample of PyTorch's own test database instead of a few of each operator.
test-full: $(INSTALLED)
	$(BIN)/python -m pytest -m full $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# The report's script and style, built into the package, so that installing it needs no Node.
web: web/node_modules/.package-lock.json
	cd web && npm run --silent build

# What is committed must be what the sources build.
web-check: web
	git diff --exit-code --stat -- src/gradtrace/report/bundle
	test -z "$$(git ls-files --others --exclude-standard -- src/gradtrace/report/bundle)"

web/node_modules/.package-lock.json: web/package.json web/package-lock.json
	cd web && npm ci --silent --no-audit --no-fund

# The report's browser tests need Chromium: installed where that can be done without asking, else they say so.
.PHONY: browser
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || { \
	  test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
	  { apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; }; } || \
	  echo "Chromium is missing (apt-get install chromium): the report's browser tests cannot run"

clean:
	rm -rf $(VENV) web/node_modules demo .pytest_cache .ruff_cache .hypothesis

# The build tools come first, from the same pins, so that installing the package itself fetches nothing unpinned.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt hatchling editables
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[test,dev]'
	touch $@
