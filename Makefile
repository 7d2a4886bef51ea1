# `make run` and `make test` need Python 3.11 or newer and make; the rest is fetched.
# PIP_FIND_LINKS, if set, names a folder or page of more wheels (a CPU build of torch, say).
PYTHON ?= python3
UV_VERSION := 0.13.9
FIND_LINKS := $(foreach place,$(PIP_FIND_LINKS),--find-links $(place))
BIN := .venv/bin
AIRFLOW := .venv-airflow
CHECKOV := .venv-checkov
READY := .venv/.ready
ARGS ?=
# Images: what builds and runs them, what it is told besides, and their bases. Here and there a digest: docs/how-to/build-images.md.
ENGINE ?= podman
BUILD_FLAGS ?=
BASE ?= python:3.11-slim-bookworm
TRAIN_BASE ?= $(BASE)
IMAGES ?= light train airflow mlflow
IMAGE_light := docker.io/hardcase/python-light
IMAGE_train := docker.io/hardcase/python-train
IMAGE_airflow := docker.io/hardcase/airflow
IMAGE_mlflow := docker.io/hardcase/mlflow
LIMIT_light := 1000000000
SOURCE ?= $(shell git remote get-url origin 2>/dev/null | sed -nE 's,^(https?://)([^/@]*@)?,\1,p')
VERSION := $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
LOCKS := infra/images/locks
UV_LOCK = $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --quiet
# Each step is a process: without compiled modules every one of them would compile its imports anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run test acceptance lint format bench ablation airflow test-dags terraform-test terraform-docs lock image-locks images e2e-images e2e-containers clean

help: ## Say what can be made
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /\1\t/' | while IFS="$$(printf '\t')" read -r name what; do printf '  make %-14s %s\n' "$$name" "$$what"; done

run: $(READY) ## Retrain end to end on profiles/tiny.yaml; ARGS="--seed 1" and the like go to `hardcase run`
	@$(BIN)/hardcase run $(ARGS)

test: $(READY) ## Run the tests; ARGS=tests/… for some of them, and without those of the DAGs
	@$(if $(ARGS),,$(MAKE) --no-print-directory $(CHECKOV)/.ready $(AIRFLOW)/.ready)
	@$(BIN)/python -m pytest -n auto --dist loadfile -rs $(ARGS)
	@$(if $(ARGS),,$(MAKE) --no-print-directory test-dags)

# What the checks are told of the installation: tests/acceptance/installation.py.
ACCEPTANCE := HOST UI MODE NAMESPACE TOKEN_FILE CA STORE KEY MLFLOW CONTEXT PINS LIMIT LIMIT_CACHED
acceptance: $(READY) $(AIRFLOW)/.ready ## Check a Kubeflow: HOST=URL, NAMESPACE= TOKEN_FILE= STORE= CONTEXT= MODE=single; docs/tutorials
	@test -n "$(HOST)" || { echo 'make acceptance: say HOST=URL of Kubeflow Pipelines, as in docs/tutorials' >&2; exit 2; }
	@$(foreach name,$(ACCEPTANCE),ACCEPTANCE_$(name)="$($(name))") ACCEPTANCE_AIRFLOW="$(CURDIR)/$(AIRFLOW)/bin/python" \
		PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pytest -m acceptance tests/acceptance $(ARGS)

lint: $(READY) ## Check format, lint, types, layers and the compiled pipeline
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hardcase compile --check

format: $(READY) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: BENCHES = $(or $(ARGS),grpo_% store_% workflow_%)
bench: $(READY) ## Measure GRPO, the store and the size of the workflow against baselines; results in benchmarks/results/
	@$(if $(filter-out store_% workflow_%,$(BENCHES)),$(BIN)/python benchmarks/grpo_speed.py $(filter-out store_% workflow_%,$(ARGS)))
	@$(if $(filter workflow_%,$(BENCHES)),$(BIN)/python benchmarks/workflow_size.py)
	@$(if $(filter store_%,$(BENCHES)),$(BIN)/python benchmarks/store_throughput.py $(filter store_%,$(ARGS)))

ablation: $(READY) ## Train HCM-GRPO's parts apart, some 80 trainings in an hour or two; goes on where it was stopped
	@$(BIN)/python benchmarks/ablation.py $(ARGS)

airflow: $(READY) $(AIRFLOW)/.ready ## Airflow with our DAGs on 127.0.0.1, stopped by Ctrl-C; PORT=8081 for another port
	@HARDCASE_BIN="$${HARDCASE_BIN:-$(CURDIR)/$(BIN)/hardcase}" PORT="$(PORT)" exec $(AIRFLOW)/bin/python -m hardcase_provider.serve

test-dags: $(AIRFLOW)/.ready ## Run the tests of the DAGs, in Airflow's own environment
	@$(AIRFLOW)/bin/python -m pytest dags/tests $(ARGS)

terraform-test: $(READY) $(CHECKOV)/.ready ## Test infra/terraform: mocked provider, apply on moto, rights, checkov
	@$(BIN)/python -m pytest -n auto --dist loadfile -rs tests/infra/terraform $(ARGS)

terraform-docs: $(READY) ## Write the pages of Terraform's modules and the tables of costs anew
	@$(BIN)/python infra/terraform/describe.py
	@$(BIN)/python infra/terraform/cost.py

lock: $(READY) ## Resolve requirements.lock anew; packages of CUDA are left to torch's own requirements
	echo 'torch==2.13.0' > .venv/constraints.txt
	$(BIN)/uv pip compile pyproject.toml --group dev --python-version 3.11 $(FIND_LINKS) --upgrade \
		--constraint .venv/constraints.txt --no-header --no-annotate --quiet --output-file .venv/resolved.txt
	grep -vE '^(nvidia-|cuda-|triton==|--)' .venv/resolved.txt | sed -E 's/^(torch==[0-9.]+)\+.*/\1/' > hardcase/requirements.lock
	@$(MAKE) --no-print-directory image-locks

image-locks: $(READY) ## Lock with hashes what the images install, at the versions of the other locks; torch and CUDA apart
	$(UV_LOCK) $(LOCKS)/build.in --output-file $(LOCKS)/build.lock
	$(UV_LOCK) pyproject.toml --constraint requirements.lock --excludes $(LOCKS)/heavy.txt --output-file $(LOCKS)/light.lock
	$(UV_LOCK) pyproject.toml --constraint requirements.lock --output-file .venv/train.lock
	for torch in 0 1; do awk -v torch=$$torch '/^[^ ]/ {own = /^(torch|triton|nvidia-|cuda-)/} own == torch' \
		.venv/train.lock > $(LOCKS)/$$(test $$torch = 1 && echo torch || echo train).lock; done
	cp .venv/train.lock $(LOCKS)/vllm.lock
	$(UV_LOCK) pyproject.toml --extra vllm --output-file $(LOCKS)/vllm.lock
	$(UV_LOCK) $(LOCKS)/mlflow.in --constraint requirements.lock --output-file $(LOCKS)/mlflow.lock
	cp requirements-airflow.lock $(LOCKS)/airflow.lock
	$(UV_LOCK) $(LOCKS)/airflow.in --output-file $(LOCKS)/airflow.lock

images: $(addprefix image-,$(IMAGES)) ## Build the images, and the bill of materials of each in dist/; docs/how-to/build-images.md

image-%: BASE_OF = $(if $(filter train,$*),$(TRAIN_BASE),$(BASE))
image-%: $(READY)
	@$(ENGINE) build $(BUILD_FLAGS) --file infra/images/Dockerfile --target $* --tag $(IMAGE_$*):$(VERSION) \
		--build-arg BASE=$(BASE_OF) --build-arg VERSION=$(VERSION) --build-arg SOURCE="$(SOURCE)" \
		--build-arg COMMIT=$$(git rev-parse HEAD) \
		--build-arg CLEAN=$$(test -z "$$(git status --porcelain)" && echo yes || echo no) .
	@$(BIN)/python infra/images/examine.py $(ENGINE) $(IMAGE_$*):$(VERSION) dist/$*.cdx.json $(LIMIT_$*)

e2e-images: $(READY) ## Start each image that was built as a strict cluster would, and train in one; docs/how-to/build-images.md
	@ENGINE=$(ENGINE) VERSION=$(VERSION) $(BIN)/python -m pytest infra/images $(ARGS)

e2e-containers: PROFILE = tiny
e2e-containers: $(READY) ## `hardcase run` with each step in a container; PROFILE=smoke for seconds; docs/how-to/build-images.md
	@if [ -z "$$DOCKER_HOST" ] && [ "$(ENGINE)" = podman ]; then \
		folder=$$(mktemp -d) && export DOCKER_HOST=unix://$$folder/podman.sock && \
		{ podman system service --time=0 $$DOCKER_HOST & service=$$!; } && trap 'kill $$service; rm -r $$folder' EXIT; \
		until [ -S $$folder/podman.sock ]; do kill -0 $$service || exit 1; sleep 0.1; done; \
	fi; \
	$(BIN)/hardcase run --containers --profile $(PROFILE) $(ARGS)


clean: ## Remove the environments and the caches; runs and store in .hardcase stay
	rm -rf .venv .venv-airflow .venv-checkov .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build *.egg-info

$(READY): hardcase/requirements.lock pyproject.toml
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv
	@$(BIN)/pip install --quiet uv==$(UV_VERSION)
	@$(BIN)/uv pip install --python $(BIN)/python $(FIND_LINKS) -r hardcase/requirements.lock
	@$(BIN)/uv pip install --python $(BIN)/python --no-deps -e .
	@touch $@

$(AIRFLOW)/.ready: requirements-airflow.lock dags/pyproject.toml
	@test -x $(AIRFLOW)/bin/pip || $(PYTHON) -m venv --clear $(AIRFLOW)
	@$(AIRFLOW)/bin/pip install --quiet uv==$(UV_VERSION)
	@$(AIRFLOW)/bin/uv pip install --python $(AIRFLOW)/bin/python --require-hashes -r requirements-airflow.lock
	@$(AIRFLOW)/bin/uv pip install --python $(AIRFLOW)/bin/python --no-deps -e . -e dags
	@touch $@

# Its dependencies clash with ours.
$(CHECKOV)/.ready: $(READY) infra/terraform/checkov.txt
	@$(BIN)/uv venv --quiet --clear --python $(PYTHON) $(CHECKOV)
	@$(BIN)/uv pip install --quiet --python $(CHECKOV)/bin/python -r infra/terraform/checkov.txt
	@touch $@
