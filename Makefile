# make demo | make test | make digits | make reproduce-cifar: each does its own set-up. The tables: experiments/tables.yaml.

PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
INSTALLED := .venv/installed
PIP := .venv/bin/python -m pip install -q -c constraints.txt
SNAKEMAKE = snakemake -s experiments/Snakefile -j $(JOBS) --config args="$(ARGS)" args_fuss="$(FUSS_ARGS)" --
JOBS ?= $(shell nproc)
# Of every run: make reproduce-mnist ARGS="--data.root DIR --trainer.precision bf16-mixed"
ARGS ?=
FUSS_ARGS ?= $(ARGS)

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Threads that wait must not spin: two trainings on two cores would slow each other down a hundredfold.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: install demo digits table2-cifar test lint suite slow torture bench clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "surf-lightning needs Python 3.11 or 3.12 with venv (PYTHON=... names one)"; exit 1; }
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(PIP) -e '.[dev]'
	@$(PIP) -e '.[audio]' 2>/dev/null \
		|| echo "The audio extra cannot be installed here (pesq needs a C compiler): some speech metrics will say 'not available'."
	@touch $@

demo: install  # MixIT, then SURF, on digits, in minutes
	experiments/demo.sh

digits table2-cifar: install
	$(SNAKEMAKE) $@
reproduce-%: install
	$(SNAKEMAKE) $*
ablation-%: install
	$(SNAKEMAKE) $@

test: lint suite

lint: install
	ruff check .
	ruff format --check .
	mypy
	codespell

suite: install
	OMP_NUM_THREADS=1 python -m pytest -n 2 --dist worksteal -m "not slow and not gpu"
slow: install
	OMP_NUM_THREADS=1 python -m pytest -m "slow and not gpu"
torture: install  # kills, full disks and damaged files for MINUTES (10); TORTURE_SEED repeats a run
	OMP_NUM_THREADS=1 TORTURE_MINUTES=$(or $(MINUTES),10) python -m pytest -m slow tests/torture

bench: install  # our steps beside plain implementations
	@$(PIP) -e '.[bench]' 2>/dev/null || echo "asteroid cannot be installed here: its rows will say so."
	python benchmarks/run.py $(ARGS)

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
