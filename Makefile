# `make demo` and `make test` work on a fresh clone; each sets up .venv first. All that is needed: Python 3.11+, make.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
STAMP := .venv/installed.stamp

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-cluster bench bench-weak bench-dsm-net bench-annotation bench-controller check-k8s image try-image check lint types imports format clean

help: ## say what can be made
	@sed -n 's/^\([a-z0-9-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | awk -F'\t' '{printf "make %-14s %s\n", $$1, $$2}'

install: $(STAMP) ## make .venv and install the pinned packages into it

# torch comes first: it is the largest, and the others fit themselves to it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, '$(PYTHON)' is not: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check torch==2.13.0 -c constraints.txt
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]' -c constraints.txt
	touch $@

demo: $(STAMP) ## three small simulated tomograms through every stage, with a report
	$(BIN)/cryoscale demo

test: $(STAMP) ## all tests that need no GPU and no minutes
	$(BIN)/python -m pytest -m "not slow and not gpu and not cluster"

test-slow: $(STAMP) ## the tests that take minutes
	$(BIN)/python -m pytest -m "slow and not gpu and not cluster"

test-cluster: $(STAMP) ## several hosts on one machine, as network namespaces; needs root
	$(BIN)/python -m pytest -m cluster tests/cluster tests/deploy

SIZE ?= small
DEVICE ?= cpu
REPORT ?= benchmarks/reports/$(shell date +%F)-$(SIZE)-$(DEVICE)
bench: $(STAMP) ## kernels, store and stages beside peers, with a dated report; DEVICE=cuda, SIZE=full on a GPU
	$(BIN)/python -m benchmarks run --size $(SIZE) --device $(DEVICE) --out build/bench-$(DEVICE)
	$(BIN)/python -m benchmarks report --out build/bench-$(DEVICE) --to $(REPORT)

bench-weak: $(STAMP) ## what the weak pipeline achieves on simulated cells; SIZE=full wants a GPU
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks.weak_pipeline build/weak-pipeline --size $(SIZE)

DSM_SIZE = $(or $(filter tiny reduced full,$(SIZE)),$(if $(filter cuda%,$(DEVICE)),full,reduced))
bench-dsm-net: $(STAMP) ## the tables of SSN3D-ED and DSM-Net; DEVICE=cuda SIZE=full DENSITIES=folder on a GPU
	$(BIN)/python -m benchmarks.dsm_net all --size $(DSM_SIZE) --device $(DEVICE) --out build/dsm-net \
		$(if $(DENSITIES),--densities '$(DENSITIES)',)

ANNOTATED ?= benchmarks/reports/$(shell date +%F)-annotation-2d-$(SIZE).md
bench-annotation: $(STAMP) ## 2D networks beside 3D ones on drawn labels; MASKS=folder for two real crops
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m benchmarks.annotation_2d build/annotation-2d-$(SIZE) --size $(SIZE) \
		$(if $(MASKS),--masks $(MASKS)) --to $(ANNOTATED)

bench-controller: $(STAMP) ## the controller and its ledger with up to 4096 workers and 10 million blocks that compute nothing
	$(BIN)/python -m benchmarks.controller drive --workers 1 8 64 512 4096 --tomograms 100 --blocks 1000
	$(BIN)/python -m benchmarks.controller resume --tomograms 10000 --blocks 1000

check-k8s: $(STAMP) ## the Kubernetes manifests, with checkov in an environment of its own
	test -x build/checkov/bin/checkov || { $(PYTHON) -m venv build/checkov && \
		build/checkov/bin/python -m pip install --disable-pip-version-check checkov==3.3.30; }
	$(BIN)/python -m pytest tests/k8s

FLAVOUR ?= cpu
image: ## the container image, with docker, podman or buildah; FLAVOUR=cuda
	deploy/build-image $(FLAVOUR)

try-image: ## the steps of the image without a registry of images, and a small run in it
	deploy/try-image

check: lint types imports ## lint, format, types, and who may import whom

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

imports: $(STAMP)
	$(BIN)/lint-imports --no-logo

format: $(STAMP) ## put the code into its format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean: ## remove what can be made again, .venv included
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
