# `make help` lists what there is.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
WHEELS := $(wildcard ../shared/wheels)
# Where the CPU build of torch is, when no folder of wheels is at hand.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
TORCH_FROM := $(if $(WHEELS),--find-links $(WHEELS),--index $(TORCH_INDEX))
PACKAGES := nas_api nas_store nas_log nas_report nas_kube nas_operator nas_controller nas_trainer nas_cli
STAMP := $(VENV)/.installed
export UV_SYSTEM_CERTS := 1
# Compiled modules are kept: without them each run of the tests compiles all of them anew, 10 s of a minute.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: venv
venv: $(STAMP) ## Create .venv with the pinned requirements and the packages, editable

$(STAMP): pyproject.toml requirements/dev.txt requirements/torch.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install -q "$$(grep -oE '^uv==[0-9.]+' requirements/dev.txt)"
	grep -oE '^[A-Za-z0-9_.-]+==[^ ]+' requirements/dev.txt > $(VENV)/constraints.txt
	$(BIN)/uv pip install -q --python $(BIN)/python --constraint $(VENV)/constraints.txt $(TORCH_FROM) -r requirements/torch.txt
	$(BIN)/uv pip install -q --python $(BIN)/python --require-hashes -r requirements/dev.txt
	$(BIN)/uv pip install -q --python $(BIN)/python --no-deps -e .
	touch $@

.PHONY: test-fast
test-fast: venv ## Tests that need nothing but Python, under a minute
	$(BIN)/pytest -n 2 -m "not cluster and not node and not s3 and not slow"

.PHONY: test
test: venv ## Every test: builds the programs and images, brings clusters up and down (node tests need root)
	$(PYTHON) -m hack.cluster build
	@test "$$(id -u)" = 0 || echo "NOT ROOT: the tests that need a real node are skipped" >&2
	$(BIN)/pytest

.PHONY: lint
lint: venv ## Style, types, architecture, and whether generated files are current
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy $(addprefix -p ,$(PACKAGES))
	$(BIN)/mypy demo/run.py docs/generate.py
	MYPYPATH=bench $(BIN)/mypy bench
	$(BIN)/lint-imports
	$(BIN)/python docs/generate.py --check

.PHONY: generate
generate: venv ## Write the CRD, the chart's copy of it and the generated pages from the models
	$(BIN)/python docs/generate.py

.PHONY: crds
crds: generate ## The same as generate

.PHONY: requirements
requirements: venv ## Pin the requirements anew from pyproject.toml
	for extra in dev operator controller trainer; do \
	  pins=$$([ $$extra = dev ] || echo "--constraint requirements/dev.txt"); \
	  $(BIN)/uv pip compile -q --upgrade --generate-hashes --no-annotate --no-emit-package torch --no-emit-index-url \
	    --no-emit-find-links --python-version 3.11 $(TORCH_FROM) --constraint requirements/torch.txt $$pins \
	    --extra $$extra --custom-compile-command "make requirements" pyproject.toml -o requirements/$$extra.txt; \
	done

.PHONY: images
images: ## Build the images and load them into the demo's cluster
	$(PYTHON) demo/run.py images

.PHONY: demo
demo: venv ## A whole search on a real cluster; CLUSTER=built, kind or current
	$(PYTHON) demo/run.py demo

.PHONY: paper
paper: ## The small twins of the paper's rows, all or TWINS="NAME NAME", on a real cluster; prints their table
	$(PYTHON) demo/run.py paper $(TWINS)

.PHONY: down
down: ## Remove the demo's cluster without a trace
	$(PYTHON) demo/run.py down
