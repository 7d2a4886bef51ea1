# `make run` and `make test` need Python 3.11 or newer and make; the rest is fetched.
# PIP_FIND_LINKS, if set, names a folder or page of more wheels (a CPU build of torch, say).
PYTHON ?= python3
UV_VERSION := 0.13.9
FIND_LINKS := $(foreach place,$(PIP_FIND_LINKS),--find-links $(place))
BIN := .venv/bin
AIRFLOW := .venv-airflow
READY := .venv/.ready
ARGS ?=
# Each step is a process: without compiled modules every one of them would compile its imports anew.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help run test lint format bench ablation airflow test-dags lock clean

help: ## Say what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | while IFS="$$(printf '\t')" read -r name what; do printf '  make %-9s %s\n' "$$name" "$$what"; done

run: $(READY) ## Retrain end to end on profiles/tiny.yaml; ARGS="--seed 1" and the like go to `hardcase run`
	@$(BIN)/hardcase run $(ARGS)

test: $(READY) ## Run the tests; ARGS=tests/… for some of them, and without those of the DAGs
	@$(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)
	@$(if $(ARGS),,$(MAKE) --no-print-directory test-dags)

lint: $(READY) ## Check format, lint, types, layers and the compiled pipeline
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/hardcase compile --check

format: $(READY) ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: BENCHES = $(or $(ARGS),grpo_% store_%)
bench: $(READY) ## Measure GRPO against stock TRL and the store against cp and boto3; results in benchmarks/results/
	@$(if $(filter-out store_%,$(BENCHES)),$(BIN)/python benchmarks/grpo_speed.py $(filter-out store_%,$(ARGS)))
	@$(if $(filter store_%,$(BENCHES)),$(BIN)/python benchmarks/store_throughput.py $(filter store_%,$(ARGS)))

ablation: $(READY) ## Train HCM-GRPO's parts apart, some 80 trainings in an hour or two; goes on where it was stopped
	@$(BIN)/python benchmarks/ablation.py $(ARGS)

airflow: $(READY) $(AIRFLOW)/.ready ## Airflow with our DAGs on 127.0.0.1, stopped by Ctrl-C; PORT=8081 for another port
	@HARDCASE_BIN="$${HARDCASE_BIN:-$(CURDIR)/$(BIN)/hardcase}" PORT="$(PORT)" exec $(AIRFLOW)/bin/python -m hardcase_provider.serve

test-dags: $(AIRFLOW)/.ready ## Run the tests of the DAGs, in Airflow's own environment
	@$(AIRFLOW)/bin/python -m pytest dags/tests $(ARGS)

lock: $(READY) ## Resolve requirements.lock anew; packages of CUDA are left to torch's own requirements
	echo 'torch==2.13.0' > .venv/constraints.txt
	$(BIN)/uv pip compile pyproject.toml --group dev --python-version 3.11 $(FIND_LINKS) --upgrade \
		--constraint .venv/constraints.txt --no-header --no-annotate --quiet --output-file .venv/resolved.txt
	grep -vE '^(nvidia-|cuda-|triton==|--)' .venv/resolved.txt | sed -E 's/^(torch==[0-9.]+)\+.*/\1/' > requirements.lock

clean: ## Remove the environments and the caches; runs and store in .hardcase stay
	rm -rf .venv .venv-airflow .cache .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis build *.egg-info

$(READY): requirements.lock pyproject.toml
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv
	@$(BIN)/pip install --quiet uv==$(UV_VERSION)
	@$(BIN)/uv pip install --python $(BIN)/python $(FIND_LINKS) -r requirements.lock
	@$(BIN)/uv pip install --python $(BIN)/python --no-deps -e .
	@touch $@

$(AIRFLOW)/.ready: requirements-airflow.lock dags/pyproject.toml
	@test -x $(AIRFLOW)/bin/pip || $(PYTHON) -m venv --clear $(AIRFLOW)
	@$(AIRFLOW)/bin/pip install --quiet uv==$(UV_VERSION)
	@$(AIRFLOW)/bin/uv pip install --python $(AIRFLOW)/bin/python --require-hashes -r requirements-airflow.lock
	@$(AIRFLOW)/bin/uv pip install --python $(AIRFLOW)/bin/python --no-deps -e dags
	@touch $@
