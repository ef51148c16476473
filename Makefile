# `make help` lists what there is. Everything runs in .venv, which the first target that needs it makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN_FLAGS ?= --fresh --chaos preempt-node:1@step:100 --chaos kill-node:0@step:200

.DEFAULT_GOAL := help
.PHONY: help run test test-fast test-peers lint format crd docs constraints image chart clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

run: $(STAMP)  ## train examples/digits.yaml here on two "nodes", through one preemption and one lost machine
	$(BIN)/relight run examples/digits.yaml $(RUN_FLAGS)

test: $(STAMP)  ## every test; those on Kubernetes with CLUSTER=testbed (root; built here) or CLUSTER=existing (KUBECONFIG)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder $(if $(CLUSTER),--cluster=$(CLUSTER)) $(PYTEST_FLAGS)

PEERS := $(VENV)/peers
test-peers: $(PEERS)/.installed  ## the tests with Lightning, transformers and an S3 server's double, which it installs into .venv/peers
	RELIGHT_TEST_PEERS=$(CURDIR)/$(PEERS) $(BIN)/python -m pytest tests/trainer/test_adapters.py tests/trainer/test_checkpoint_objects.py $(PYTEST_FLAGS)

test-fast: $(STAMP)  ## the tests that take seconds
	$(BIN)/python -m pytest -m "not slow" tests/unit $(PYTEST_FLAGS)

.PHONY: faults soak
faults: $(PEERS)/.installed  ## bring every fault about and say what came of it; FAULTS="1 9 14" some; on Kubernetes as root or with CLUSTER=existing
	@RELIGHT_TEST_PEERS=$(CURDIR)/$(PEERS) $(BIN)/python -m tests.faults $(FAULTS) $(if $(CLUSTER),--cluster=$(CLUSTER))

soak: $(STAMP)  ## a job under random faults: MINUTES=20, SEED=0; SOAK_FLAGS="--cluster --every 30" on the testbed
	$(BIN)/python benchmarks/soak.py $(if $(MINUTES),--minutes=$(MINUTES)) $(if $(SEED),--seed=$(SEED)) $(SOAK_FLAGS)

.PHONY: cluster cluster-down
cluster: $(STAMP)  ## a Kubernetes cluster of three machines on this one (root; asks before it installs anything)
	@$(BIN)/python -m tests.testbed up

cluster-down: $(STAMP)  ## end that cluster and leave nothing behind
	@$(BIN)/python -m tests.testbed down

lint: $(STAMP)  ## ruff, mypy --strict, the import lines between the parts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)  ## ruff's formatter and its safe fixes
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

crd: $(STAMP)  ## write the chart's CRD, with and without CEL, from the models
	$(BIN)/relight crd > charts/relight/files/trainingjobs.relight.dev.yaml
	$(BIN)/relight crd --cel > charts/relight/files/trainingjobs.relight.dev-cel.yaml

docs: $(STAMP)  ## write docs/trainingjob.md from the models
	$(BIN)/python -m relight_operator.api.reference > docs/trainingjob.md

image:  ## build the operator's and the trainer's image, with docker or buildah (IMAGE_FLAGS="--base IMAGE --tag TAG")
	$(PYTHON) .ci/images.py $(IMAGE_FLAGS)

chart: $(STAMP)  ## check the Helm chart and the Dockerfile; fetches Helm and hadolint once
	$(BIN)/python -m pytest tests/chart $(PYTEST_FLAGS)

constraints: $(STAMP)  ## write constraints.txt from what is installed
	( head -1 constraints.txt; $(BIN)/pip freeze --exclude-editable | sed 's/+cpu$$//' ) > constraints.new
	mv constraints.new constraints.txt

clean:  ## remove .venv and caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else f"Relight needs Python 3.11 or newer, this is {sys.version.split()[0]}: make PYTHON=/path/to/python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $(STAMP)

$(PEERS)/.installed: $(STAMP) tests/peers.txt
	$(BIN)/python -m pip install --quiet --upgrade --no-deps --target $(PEERS) --requirement tests/peers.txt
	@touch $@
