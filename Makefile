# `make help` lists what there is.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INSTALL := $(BIN)/uv pip install -q --python $(BIN)/python
export UV_SYSTEM_CERTS := 1
# Compiled modules are kept: without them each run of the tests compiles all of them anew, 10 s of a minute.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: venv
venv: $(STAMP) ## Create .venv with the pinned requirements and the packages, editable

$(BIN)/uv: requirements/uv.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --require-hashes -r requirements/uv.txt
	touch $@

$(STAMP): $(BIN)/uv pyproject.toml requirements/dev.txt requirements/torch-cpu.txt requirements/torch-pypi.txt
	$(BIN)/python hack/torch_source.py $(INSTALL) --require-hashes
	$(INSTALL) --require-hashes -r requirements/dev.txt
	$(INSTALL) --no-deps --no-build-isolation -e .
	touch $@

.PHONY: test-fast
test-fast: venv ## Tests that need nothing but Python, under a minute
	$(BIN)/pytest -n 2 -m "not cluster and not node and not s3 and not slow"

.PHONY: test
test: venv ## Every test but those of a platform: builds the programs and images, brings clusters up and down (node tests need root)
	$(PYTHON) -m hack.cluster build
	@test "$$(id -u)" = 0 || echo "NOT ROOT: the tests that need a real node are skipped" >&2
# One worker more than two cores can feed: the one that has the node waits for it most of the time.
	$(BIN)/pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=25 -m "not platform"

.PHONY: test-platform
test-platform: venv ## Tests with real Kueue, Argo Workflows, Prometheus and MLflow, and of an upgrade, built first; needs root
	$(PYTHON) -m hack.cluster build
	$(PYTHON) -m hack.addons build
	$(BIN)/pytest -m platform tests/platform

SEEDS ?= 5000

.PHONY: simulate
simulate: venv ## SEEDS=5000 whole searches on a virtual clock with everything that may happen to them; `make test` has 300
	cd tests && ../$(BIN)/python -m simulation --first $(SEEDS)

.PHONY: mutants
mutants: venv ## Take one precaution after the other away from the product, and see the simulation find it
	cd tests && ../$(BIN)/python -m simulation --mutants

.PHONY: lint
lint: venv ## Style, types, architecture, and whether generated files are current
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

.PHONY: generate
generate: venv ## Write the CRD, the chart's copy of it and the generated pages from the models
	$(BIN)/python docs/generate.py

.PHONY: crds
crds: generate ## The same as generate

# Where the CPU build's hash is read: a page of links, or a folder of wheels.
CPU_BUILDS ?= https://download.pytorch.org/whl/cpu/torch/
UPGRADE ?= --upgrade
COMPILE = $(BIN)/uv pip compile -q $(UPGRADE) --generate-hashes --no-annotate --no-emit-index-url --no-emit-find-links \
  --python-version 3.11 --custom-compile-command "make requirements"

.PHONY: requirements
requirements: venv ## Pin the requirements anew from pyproject.toml; UPGRADE= keeps what is pinned where it can
	$(COMPILE) --group uv -o requirements/uv.txt
	$(COMPILE) --universal --group torch -o requirements/torch-pypi.txt
	sed -nE 's/^(torch==[0-9.]+) .*/\1+cpu/p' requirements/torch-pypi.txt \
	  | $(COMPILE) --find-links $(CPU_BUILDS) --constraint requirements/torch-pypi.txt - -o requirements/torch-cpu.txt
	echo torch | $(COMPILE) --excludes /dev/stdin --constraint requirements/torch-pypi.txt --extra run --extra mlflow --group dev \
	  pyproject.toml -o requirements/dev.txt
	for group in operator controller trainer follower; do \
	  $(COMPILE) --constraint requirements/torch-pypi.txt --constraint requirements/dev.txt --group $$group \
	    -o requirements/$$group.txt; \
	done
	for group in kfp mlflow sbom triton; do $(COMPILE) --group $$group -o requirements/$$group.txt; done

.PHONY: wheel
wheel: venv ## Build the package into dist/
	$(BIN)/uv build -q --wheel --no-build-isolation --python $(BIN)/python

.PHONY: sbom
sbom: $(BIN)/uv ## Write what each image has of Python, with hashes, to dist/ as CycloneDX
	test -x $(VENV)/sbom/bin/cyclonedx-py || { $(BIN)/uv venv -q --python $(BIN)/python $(VENV)/sbom \
	  && $(BIN)/uv pip install -q --python $(VENV)/sbom/bin/python --require-hashes -r requirements/sbom.txt; }
	mkdir -p dist
	for image in operator controller trainer follower; do \
	  case $$image in controller|trainer) torch=requirements/torch-pypi.txt;; *) torch=;; esac; \
	  cat $$torch requirements/$$image.txt | $(VENV)/sbom/bin/cyclonedx-py requirements --output-reproducible --of JSON \
	    -o dist/nas-$$image.cdx.json -; \
	done

.PHONY: images
images: $(BIN)/uv ## Build the images and load them into the demo's cluster; CUDA=1 the trainer for GPUs, too (5.7 GB)
	$(PYTHON) -m demo images

.PHONY: demo
demo: venv ## A whole search on a real cluster; CLUSTER=built, kind or current
	$(PYTHON) -m demo demo

.PHONY: paper
paper: ## The small twins of the paper's rows, all or TWINS="NAME NAME", on a real cluster; prints their table
	$(PYTHON) -m demo paper $(TWINS)

.PHONY: down
down: ## Remove the demo's cluster without a trace
	$(PYTHON) -m demo down
