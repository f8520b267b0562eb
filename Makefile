# `make demo` shows what dermlens does; `make test` sets everything up and tests it. PYTHON=... names the Python to use.
VENV ?= .venv
BIN := $(VENV)/bin
PY := $(BIN)/python
RUN ?= runs/default
WORKERS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo serve test check test-long bench train-default notebook docs sbom

help:
	@echo "make demo           classify the example images (light core, a minute or two)"
	@echo "make serve          the page and the API on this machine"
	@echo "make test           set up everything, run the tests (8 minutes on 2 cores once it is set up)"
	@echo "make check          linters, types, import contracts, size of the house, site, package, licences, speed"
	@echo "make test-long      the slow tests"
	@echo "make notebook       examples/dermlens.ipynb from examples/notebook.py"
	@echo "make docs           the documents as a site, in build/site/index.html"
	@echo "make sbom           what an installation consists of: CycloneDX SBOMs and licences, in build/sbom"
	@echo "make bench          measure the speed again and write docs/lab (about two hours on 2 cores)"
	@echo "make train-default DERMLENS_DATA=...   train the embedded model again (about 45 minutes on 2 cores)"

# One stamp for each set of pins: setting up is repeated only when its inputs change.
$(VENV)/core.stamp: requirements/core.txt pyproject.toml scripts/venv.sh
	@./scripts/venv.sh $(VENV) requirements/core.txt
	@touch $@

$(VENV)/serve.stamp: requirements/serve.txt pyproject.toml scripts/venv.sh
	@./scripts/venv.sh $(VENV) requirements/serve.txt
	@touch $(VENV)/core.stamp $@

$(VENV)/dev.stamp: requirements/dev.txt pyproject.toml scripts/venv.sh
	@./scripts/venv.sh $(VENV) requirements/dev.txt
	@touch $(VENV)/core.stamp $(VENV)/serve.stamp $@

demo: $(VENV)/core.stamp
	@$(BIN)/dermlens predict examples/images --proven examples/images/LICENCES.csv --html demo/index.html --open
	@echo "To ask about your own images on a page in the browser: make serve   (dermlens serve --open)"

serve: $(VENV)/serve.stamp
	@$(BIN)/dermlens serve --open

test: $(VENV)/dev.stamp
	@./scripts/chromium.sh
	$(PY) -m pytest -m "not long and not check" -n $(WORKERS) --dist loadgroup --durations=10

test-long: $(VENV)/dev.stamp
	@./scripts/chromium.sh
	$(PY) -m pytest -m long --durations=10

check: docs
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(PY) scripts/house.py
	$(PY) -m pytest -m check

# The slowest last. The other subjects need data: `python -m benchmarks` lists all.
BENCH ?= gate one_image cold_predict many_images serving memory batch training training_ways network
bench: $(VENV)/dev.stamp
	@set -e; for name in $(BENCH); do $(PY) -m benchmarks $$name --write; done

train-default: $(VENV)/dev.stamp
	@test -d "$(DERMLENS_DATA)" || { echo "Name the data folder: make train-default DERMLENS_DATA=/path/to/data (with ham10000/, isic9/ and isic_reference.csv)."; exit 2; }
	$(PY) -m scripts.default_model train --data "$(DERMLENS_DATA)" --out $(RUN)

notebook: $(VENV)/dev.stamp
	$(PY) scripts/notebook.py

docs: $(VENV)/dev.stamp
	NO_MKDOCS_2_WARNING=true $(PY) -m mkdocs build --quiet
	@echo "build/site/index.html"

sbom: $(VENV)/dev.stamp
	$(PY) scripts/sbom.py $(EXTRA)
