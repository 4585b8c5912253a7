# make demo | make test | make digits | make reproduce-cifar: each does its own set-up. The tables: experiments/tables.yaml.

PYTHON ?= $(shell for p in python3.12 python3.13 python3.14 python3.11 python3; do \
	$$p -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null && echo $$p && break; done)
INSTALLED := .venv/installed
UV := $(shell command -v uv 2>/dev/null)
PIP := $(if $(UV),$(UV) pip install -q --compile-bytecode -p .venv/bin/python,.venv/bin/python -m pip install -q) --no-deps
# The locks name all dependencies of theirs, with hashes: what is not in them, or has another hash, is not installed.
LOCKED := $(PIP) --require-hashes -r
SNAKEMAKE = snakemake -s experiments/Snakefile -j $(JOBS) $(FIRST) --config args="$(ARGS)" args_fuss="$(FUSS_ARGS)" --
JOBS ?= $(shell nproc)
# Of every run: make reproduce-mnist ARGS="--data.root DIR --trainer.precision bf16-mixed"
ARGS ?=
FUSS_ARGS ?= $(ARGS)

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Threads that wait must not spin: two trainings on two cores would slow each other down a hundredfold.
export OMP_WAIT_POLICY := PASSIVE

.PHONY: install demo digits table2-cifar ship-digits ship-phone test lint suite slow torture test-cluster bench docs audit lock dist clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml lock/dev.txt lock/audio.txt
	@test -n "$(PYTHON)" || { echo "surf-lightning needs Python 3.11 to 3.14 with venv (PYTHON=... names one)"; exit 1; }
	test -x .venv/bin/python || $(PYTHON) -m venv .venv
	$(LOCKED) lock/dev.txt
	$(PIP) --no-build-isolation -e .
	@$(LOCKED) lock/audio.txt 2>/dev/null \
		|| echo "The audio extra cannot be installed here (pesq needs a C compiler): some speech metrics will say 'not available'."
	@touch $@

demo: install  # MixIT, then SURF, on digits, in minutes
	experiments/demo.sh

# The long runs first, and a run more than cores: SURF's three, equally long, share two.
ifeq ($(origin JOBS),file)
digits: JOBS = $(shell expr $$(nproc) + 1)
endif
digits: FIRST = --prioritize runs/digits_surf_rm/metrics.json $(patsubst %,runs/digits_surf_rm_seed%/metrics.json,1 2)
digits table2-cifar: install
	$(SNAKEMAKE) $@
reproduce-%: install
	$(SNAKEMAKE) $*
ablation-%: install
	$(SNAKEMAKE) $@

ship-digits: install  # a separator that comes with the package, made again from its data
	$(SNAKEMAKE) runs/digits_surf_rm/metrics.json
	python experiments/ship.py digits runs/digits_surf_rm
ship-phone: install
	test -d data/phone || python experiments/phone.py data/phone
	$(SNAKEMAKE) runs/phone_one_step/metrics.json runs/phone_unheard/metrics.json
	python experiments/ship.py phone runs/phone_one_step runs/phone_unheard

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
	OMP_NUM_THREADS=1 TORTURE_MINUTES=$(or $(MINUTES),10) python -m pytest -m slow -o faulthandler_timeout=0 tests/torture
test-cluster: install  # a real SLURM on this machine, in minutes; needs root and Debian's slurm-wlm and munge
	OMP_NUM_THREADS=1 TEST_CLUSTER=1 python -m pytest -m slow -rs -o faulthandler_timeout=0 tests/cluster

bench: install  # our steps beside plain implementations
	@$(LOCKED) lock/bench.txt 2>/dev/null || echo "asteroid cannot be installed here: its rows will say so."
	python benchmarks/run.py $(ARGS)

docs: install  # the site, into build/docs; a warning is an error
	python -m sphinx -q -W --keep-going -d build/doctrees docs build/docs

# The newest versions that pyproject.toml allows: make lock LOCK=--upgrade. Without it, what is locked stays.
COMPILE = uv pip compile -q --universal --generate-hashes --no-annotate --custom-compile-command 'make lock' $(LOCK) \
	--python-version 3.11 pyproject.toml
audit: install  # hashes, malicious releases and known vulnerabilities of what is locked
	python .ci/audit
lock: install
	$(COMPILE) --extra dev -o lock/dev.txt >/dev/null
	for extra in audio bench; do \
		$(COMPILE) --extra $$extra -c lock/dev.txt -o lock/$$extra.txt \
			$$(sed -n 's/^\([A-Za-z0-9._-]*\)==.*/--no-emit-package \1/p' lock/dev.txt | sort -u) >/dev/null || exit; \
	done

dist: install  # wheel and source archive, tried in empty environments
	.ci/dist

clean:
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache
