# make quickstart   install, fetch the demo teacher, distil a student, show before and after
# make household-agent   train a household teacher from scratch, distil a student from it and let
#                   both play 60 held-out games (household-teacher, household-student: one of them)
# make test         install what the tests need and run the fast suite with coverage
# make gpu-check    on a machine with a GPU: what runs on it, how fast, how near to the CPU; one table
# make executorch   install ExecuTorch beside what is there: exports to .pte, and runs them
# make lint         ruff
# make clean        remove .venv, build outputs and caches (never runs or models)
#
# Variables:
#   PYTHON=python3.12     the interpreter .venv is made of; 3.11 or later
#   HOUSEHOLD_RUN=<folder>  where household-agent writes (default: runs/household)
#   HOUSEHOLD=0           leave ALFWorld's engine out of `make test` (it needs a C++ compiler)
#   EXECUTORCH=0          leave ExecuTorch out of `make test`; its tests are skipped
#   TEST_PROCESSES=2      at the same time in `make test`; each takes a core and up to 4 GB
#   TORCH_INDEX=<url>     a package index with torch's CPU build. PyPI's Linux build brings CUDA,
#                         several GB; without a GPU use
#                         TORCH_INDEX=https://download.pytorch.org/whl/cpu

ifndef PYTHON
PYTHON := $(firstword $(foreach p,python3.11 python3 python3.12 python3.13,$(shell \
  $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))))
endif
HOUSEHOLD ?= 1
EXECUTORCH ?= 1
TORCH_INDEX ?=
TEST_PROCESSES ?= 2
QUICKSTART_CONFIG ?= smollm2/135M_to_15layers_structured_kd

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install -q --disable-pip-version-check
comma := ,
EXTRAS := dev$(if $(filter-out 0,$(HOUSEHOLD)),$(comma)household)

INSTALLED := $(VENV)/.installed
# One stamp for each choice of extras, so that changing HOUSEHOLD installs again.
TEST_INSTALLED := $(VENV)/.installed-test-$(HOUSEHOLD)
# pip cannot resolve executorch beside torchao 0.15 (executorch.txt): a step and a stamp of its own.
EXECUTORCH_INSTALLED := $(VENV)/.installed-executorch

.PHONY: quickstart household-agent household-teacher household-student executorch test gpu-check lint clean

RUN ?= runs/quickstart-$(shell date +%Y%m%d-%H%M%S)

quickstart: $(INSTALLED)
	$(BIN)/sad fetch-demo
	$(BIN)/tune run recipes/structured_kd.py --config $(QUICKSTART_CONFIG) output_dir=$(RUN)

export HOUSEHOLD_RUN ?= runs/household

household-agent: household-teacher household-student

household-teacher: $(TEST_INSTALLED)
	$(BIN)/tune run recipes/collect_trajectories.py --config household/collect_teacher_data
	$(BIN)/sad train-tokenizer $(HOUSEHOLD_RUN)/expert.jsonl --out $(HOUSEHOLD_RUN)/tokenizer \
	  --vocab-size 1024 --whole-numbers
	$(BIN)/tune run recipes/collect_trajectories.py --config household/collect_heldout \
	  environment.options.style=checking environment.options.search=listed \
	  output=$(HOUSEHOLD_RUN)/heldout.jsonl
	$(BIN)/tune run recipes/structured_kd.py --config household/train_teacher
	$(BIN)/tune run recipes/evaluate_agent.py --config household/evaluate_teacher

household-student: $(TEST_INSTALLED)
	$(BIN)/tune run recipes/structured_kd.py --config household/distil_student
	$(BIN)/tune run recipes/evaluate_agent.py --config household/evaluate_student

executorch: $(EXECUTORCH_INSTALLED)

test: $(TEST_INSTALLED) $(if $(filter-out 0,$(EXECUTORCH)),$(EXECUTORCH_INSTALLED))
	HF_HUB_OFFLINE=1 $(BIN)/pytest -m "not slow" -n $(TEST_PROCESSES) --dist loadfile \
	  --cov=sad_components --cov-report=term

gpu-check: $(INSTALLED)
	$(BIN)/python benchmarks/gpu_check.py

lint: $(TEST_INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) build dist *.egg-info .coverage .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/pyvenv.cfg:
	$(if $(PYTHON),,$(error no Python 3.11 or later found; give one: make PYTHON=/path/to/python3))
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(PIP) -c constraints.txt --index-url $(TORCH_INDEX) torch)

$(INSTALLED): $(VENV)/pyvenv.cfg pyproject.toml setup.py constraints.txt
	@echo "Installing torchtune-sad and its dependencies into $(VENV) (some minutes) ..."
	$(PIP) -c constraints.txt -e .
	@touch $@

$(TEST_INSTALLED): $(VENV)/pyvenv.cfg pyproject.toml setup.py constraints.txt
	@echo "Installing torchtune-sad with [$(EXTRAS)] into $(VENV) (some minutes) ..."
	$(PIP) -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $(INSTALLED) $@

$(EXECUTORCH_INSTALLED): executorch.txt | $(INSTALLED)
	$(PIP) --no-deps -r executorch.txt
	@touch $@
