# Everything a developer or a first-time user does. `make help` lists it; nothing here needs Docker or a GPU, and nothing root but
# test-kubernetes, where KUBECONFIG names no cluster.

# A relative path, so that the folder's own name may contain spaces.
VENV := .venv
BIN := $(VENV)/bin
# The first that is 3.11 or newer. Before plain python3, the two that Triton's python backend has a stub for.
PYTHON ?= $(firstword $(foreach python,python3.12 python3.11 python3,$(shell \
	$(python) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(python))) python3)
# For `make test`: which tests, and how. Example: make test TESTS='tests/test_messages.py -k reference'
TESTS ?=
# For `make fuzz`: how long for each decoder.
MINUTES ?= 10
# For `make bench`: a folder of brain MRI slices; the shipped ones if none is given.
SLICES ?=
# For `make chaos`: how many kills, and further options, such as OPTIONS='--brokers 3 --store s3'.
KILLS ?= 1000
OPTIONS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-kubernetes proof lint format bench chaos fuzz docs schemas lock upgrade clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/local ## Run the platform on the shipped sample scans; leaves demo/report.html
	@$(BIN)/mristream run deploy/samples/scans --out demo

# Two processes, each with servers of its own: tests wait for servers about half of the time. A file is one process's, so that
# what it starts serves all of its tests; the long ones come first.
test: $(VENV)/dev ## Run the tests, against real servers
	@$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m "not long and not kubernetes" $(TESTS)

proof: $(VENV)/dev ## Run the tests that take minutes each
	@$(BIN)/python -m pytest -m "long and not kubernetes"

test-kubernetes: $(VENV)/dev ## Run the tests of the chart and of a real cluster
	@$(BIN)/python -m pytest -m kubernetes $(TESTS)

fuzz: $(VENV)/fuzz ## Fuzz every decoder for MINUTES=10 each, guided by coverage
	@nice $(BIN)/python -m tests.fuzz --minutes $(MINUTES)

lint: $(VENV)/dev ## Check style, format and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/mypy docs

format: $(VENV)/dev ## Format the code and mend what ruff can mend
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

bench: $(VENV)/local ## Measure scans per second on this machine, against the models alone
	@$(BIN)/python -m benchmarks.end_to_end $(SLICES)

chaos: $(VENV)/local ## Kill workers and servers for an hour, then prove that no scan was lost; leaves runs/chaos
	@rm -rf runs/chaos
	@$(BIN)/python -m benchmarks.chaos --kills $(KILLS) --out runs/chaos $(OPTIONS)

docs: $(VENV)/dev schemas ## Write what comes from the code: settings, metrics, schemas and dashboards
	@$(BIN)/python docs/write_settings.py
	@$(BIN)/python docs/write_metrics.py
	@$(BIN)/python -m deploy.monitoring.boards
	@$(BIN)/python docs/write_chart.py

schemas: $(VENV)/local ## Write the JSON Schemas of the messages
	@$(BIN)/mristream schema --out docs/schemas

# Locks name no package index, so that they work behind a mirror. From the largest to the smallest, each constrained by
# the one before: a package has one version, whichever of them is installed.
COMPILE = PATH="$(BIN):$$PATH" UV_CUSTOM_COMPILE_COMMAND="make lock" uv pip compile --quiet --universal \
	--python-version 3.11 --fork-strategy fewest --generate-hashes --no-annotate $(UPGRADE)

lock: $(VENV)/local ## Bring the lock files in requirements/ in line with pyproject.toml
	@$(COMPILE) pyproject.toml --extra local --extra trainer --group dev -o requirements/dev.txt
	@$(COMPILE) pyproject.toml --extra local -c requirements/dev.txt -o requirements/local.txt
	@$(COMPILE) pyproject.toml -c requirements/local.txt -o requirements/worker.txt
	@$(COMPILE) requirements/fuzz.in -o requirements/fuzz.txt
	@$(COMPILE) requirements/build.in -o requirements/build.txt
	@$(COMPILE) requirements/uv.in -o requirements/uv.txt
	@$(COMPILE) pyproject.toml --extra trainer -c requirements/dev.txt -o requirements/trainer.txt
	@$(COMPILE) requirements/tensorrt.in -o requirements/tensorrt.txt
	@$(COMPILE) requirements/triton.in -o requirements/triton.txt
	@$(COMPILE) --no-deps requirements/triton-server.in -o requirements/triton-server.txt
	@$(COMPILE) requirements/go.in -o requirements/go.txt
	@for peer in fastapi in-process mlserver ray; do \
		$(COMPILE) requirements/peers-$$peer.in -c requirements/worker.txt -o requirements/peers-$$peer.txt || exit; \
	done

upgrade: ## The same, with the newest versions
	@$(MAKE) --no-print-directory lock UPGRADE=--upgrade

clean: ## Delete the environment, caches and the demo's output
	@rm -rf $(VENV) demo dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	@find . -name __pycache__ -prune -exec rm -rf {} +

# A stamp is newer than its inputs when the environment has what they ask for.
$(VENV)/local: requirements/local.txt requirements/build.txt requirements/uv.txt pyproject.toml deploy/bootstrap.py
	@$(PYTHON) -m deploy.bootstrap requirements/local.txt
	@touch $@

$(VENV)/dev: requirements/dev.txt $(VENV)/local
	@$(PYTHON) -m deploy.bootstrap requirements/dev.txt
	@touch $@

$(VENV)/fuzz: requirements/fuzz.txt $(VENV)/dev
	@$(PYTHON) -m deploy.bootstrap requirements/fuzz.txt
	@touch $@
