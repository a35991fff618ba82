# The two front doors: `make demo` shows it at work, `make test` proves it. Both install what they need into .venv.

PYTHON ?= python3
# Half of the time of the tests is waiting for brokers and processes, so three at once keep two processors busy.
PROCESSES ?= 3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/.installed

.DEFAULT_GOAL := help

help: ## Show this list.
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: set PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)

$(STAMPS)-demo: requirements/demo.txt pyproject.toml | $(VENV)/pyvenv.cfg
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/demo.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(STAMPS)-test: requirements/test.txt pyproject.toml | $(VENV)/pyvenv.cfg
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/test.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@ $(STAMPS)-demo

demo: $(STAMPS)-demo ## Watch events leave a broker as webhooks (20 s; FOREVER=1 keeps going).
	@$(BIN)/python -m dispatcher.demo

test: $(STAMPS)-test $(VENV)/checkov/bin/checkov $(VENV)/zizmor/bin/zizmor $(VENV)/openapi/bin/openapi-python-client system lint ## Everything that CI runs: lint, types, layers, all tests.
	$(BIN)/pytest --numprocesses $(PROCESSES) --dist loadfile
	PYTHON=$(abspath $(BIN))/python PROCESSES=$(PROCESSES) tests/compiled.sh

test-fast: $(STAMPS)-test lint ## Lint, types, layers and unit tests: under two minutes.
	$(BIN)/pytest -q tests/unit tests/config

lint: $(STAMPS)-test ## Format, lint, types, layers, language.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/python .ci/prose.py

system: ## Debian packages that the tests use; elsewhere, say what to install.
	@tests/system_packages.sh

compiled: $(STAMPS)-test ## Unit tests, simulation and HTTP client with the hot modules compiled by mypyc.
	PYTHON=$(abspath $(BIN))/python PROCESSES=$(PROCESSES) tests/compiled.sh

faults: $(STAMPS)-test system ## The whole fault suite on a real broker (minutes).
	$(BIN)/pytest tests/faults tests/field tests/examples/test_compose.py tests/deploy/test_drill.py \
	  tests/deploy/test_runbooks_in_trouble.py tests/demo/test_ten_tasks.py \
	  tests/benchmarks/test_references.py --all-faults
	PYTHON=$(abspath $(BIN))/python PROCESSES=1 tests/compiled.sh tests/faults

bench: $(STAMPS)-test system ## Benchmarks, as ratios in one run (FULL=1: all scenarios).
	$(BIN)/python -m benchmarks
	$(BIN)/python -m deploy.capacity --write

format: $(STAMPS)-test ## Format the code.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

sbom: $(STAMPS)-test ## CycloneDX list of what goes into the image: build/sbom.cdx.json (Debian's packages only in the image's own).
	$(BIN)/python deploy/image/sbom.py --lock requirements/image.txt --environment $(VENV) --out build/sbom.cdx.json

site: $(STAMPS)-test ## The documentation as a site: build/site.
	$(BIN)/python -m mkdocs build --strict --quiet

screenshots: $(STAMPS)-test system ## Every page of the console, light, dark and at phone width: docs/screenshots/.
	$(BIN)/python -m tests.console.pages.screenshots

schemas: $(STAMPS)-test ## Write config/schema/ again.
	for kind in settings webhook event payload history openapi; do $(BIN)/dispatcher schema $$kind > config/schema/$$kind.json; done

release: $(STAMPS)-test ## Build wheel, sdist and image from the tag of HEAD: dist/.
	@deploy/release.sh

# Tools whose dependencies don't get along with ours have an environment of their own.
$(VENV)/checkov/bin/checkov: requirements/checkov.txt | $(VENV)/pyvenv.cfg
	$(PYTHON) -m venv $(VENV)/checkov
	$(VENV)/checkov/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/checkov.txt
	@touch $@

$(VENV)/openapi/bin/openapi-python-client: requirements/openapi.txt | $(VENV)/pyvenv.cfg
	$(PYTHON) -m venv $(VENV)/openapi
	$(VENV)/openapi/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/openapi.txt
	@touch $@

$(VENV)/zizmor/bin/zizmor: requirements/zizmor.txt | $(VENV)/pyvenv.cfg
	$(PYTHON) -m venv $(VENV)/zizmor
	$(VENV)/zizmor/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/zizmor.txt
	@touch $@

$(VENV)/audit/bin/pip-audit: requirements/audit.txt | $(VENV)/pyvenv.cfg
	$(PYTHON) -m venv $(VENV)/audit
	$(VENV)/audit/bin/pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements/audit.txt
	@touch $@

audit: $(STAMPS)-test $(VENV)/audit/bin/pip-audit ## Locked dependencies: hashes, age, advisories (OFFLINE=1: no service to ask).
	@$(BIN)/python -m tests.security.audit $(VENV)/audit/bin/pip-audit

lock: ## Resolve the dependencies again (needs uv).
	uv pip compile --quiet --generate-hashes --no-header --python-version 3.11 pyproject.toml -o requirements/run.txt
	uv pip compile --quiet --generate-hashes --no-header --python-version 3.11 --extra demo pyproject.toml -o requirements/demo.txt
	uv pip compile --quiet --generate-hashes --no-header --python-version 3.11 --extra otel pyproject.toml -o requirements/image.txt
	uv pip compile --quiet --generate-hashes --no-header --python-version 3.11 --extra otel --extra msk-iam pyproject.toml -o requirements/image-msk-iam.txt
	uv pip compile --quiet --generate-hashes --no-header --python-version 3.11 --extra demo --extra test pyproject.toml -o requirements/test.txt
	printf '%s\n' hatchling==1.33.0 'mypy[mypyc]==2.4.1' setuptools types-pyyaml | uv pip compile --quiet --generate-hashes --no-header --no-annotate --python-version 3.11 --constraint requirements/image.txt - -o deploy/image/build.txt
	echo checkov==3.3.30 | uv pip compile --quiet --generate-hashes --no-header --no-annotate --python-version 3.11 - -o requirements/checkov.txt
	echo zizmor==1.32.0 | uv pip compile --quiet --generate-hashes --no-header --no-annotate --python-version 3.11 - -o requirements/zizmor.txt
	printf '%s\n' openapi-python-client==0.29.1 openapi-spec-validator==0.9.0 ruff setuptools 'pydantic>=2' python-dateutil typing-extensions 'urllib3>=2.1,<3' | uv pip compile --quiet --generate-hashes --no-header --no-annotate --python-version 3.11 - -o requirements/openapi.txt
	echo pip-audit | uv pip compile --quiet --generate-hashes --no-header --no-annotate --python-version 3.11 - -o requirements/audit.txt

clean: ## Remove what the targets made.
	rm -rf $(VENV) .tools .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

.PHONY: help demo test test-fast lint system compiled faults bench format sbom site screenshots schemas audit release lock clean
