# make demo | make test | make digits: each does its own set-up.

PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	$$p -c 'import sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
SURF := $(BIN)/surf
STAMP := $(VENV)/installed

# Threads that wait must not spin: two trainings on two cores would slow each other down a hundredfold.
export OMP_WAIT_POLICY := PASSIVE
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install demo test lint suite slow bench digits clean
.DELETE_ON_ERROR:

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "surf-lightning needs Python 3.11 or 3.12 with venv (PYTHON=... names one)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[audio]' 2>/dev/null \
		|| echo "The audio extra cannot be installed here (pesq needs a C compiler): some speech metrics will say 'not available'."
	@touch $(STAMP)

# -- the demo: MixIT, then SURF, on digits, in minutes --

DEMO := runs/demo

demo: install
	rm -rf $(DEMO)
	$(SURF) fit --config configs/digits_mixit.yaml $(DEMO_MIXIT) --trainer.default_root_dir $(DEMO)/mixit
	$(SURF) test --config configs/digits_mixit.yaml --trainer.default_root_dir $(DEMO)/mixit --trainer.logger false
	$(SURF) fit --config configs/digits_surf_rm.yaml $(DEMO_SURF) --trainer.default_root_dir $(DEMO)/surf_rm \
		--model.mixit_checkpoint $(DEMO)/mixit/checkpoints/last.ckpt
	$(SURF) test --config configs/digits_surf_rm.yaml --trainer.default_root_dir $(DEMO)/surf_rm --trainer.logger false \
		--model.mixit_checkpoint $(DEMO)/mixit/checkpoints/last.ckpt
	$(SURF) report $(DEMO)/mixit $(DEMO)/surf_rm --output $(DEMO)

DEMO_MIXIT := --trainer.max_steps 1000 --model.decay_steps 1000 --data.batches_per_epoch 200
DEMO_SURF := --trainer.max_steps 1400 --model.beta_steps 600 --model.ema_decay 0.995 --data.batches_per_epoch 200

# -- the tables: all methods of a data set; a finished run is skipped, an interrupted one goes on --
#
# `make reproduce-mnist ARGS="--data.root DIR --trainer.precision bf16-mixed"`; a run's log is in runs/logs.

REGRESSION_AND_FLOW := mixit surf_rm surf_sr supervised_flow remixit self_remixing supervised_regression
ROWS_digits := $(REGRESSION_AND_FLOW)
ROWS_mnist-small := mixit surf_rm remixit self_remixing
ROWS_mnist := $(REGRESSION_AND_FLOW) basis
ROWS_cifar := $(REGRESSION_AND_FLOW) basis
ROWS_libri2mix-small := mixit surf_rm remixit
ROWS_libri2mix := $(REGRESSION_AND_FLOW)
ROWS_fuss := $(REGRESSION_AND_FLOW)
ROWS_audioset := mixit surf_rm surf_sr remixit self_remixing supervised_flow
DATASETS := digits mnist-small mnist cifar libri2mix-small libri2mix fuss audioset
ARGS ?=

runs-of = $(or $(ROWS_$(1):%=runs/$(1)_%),$(error the data sets are $(DATASETS)))

reproduce-%: install
	$(MAKE) --no-print-directory $(addsuffix /metrics.json,$(call runs-of,$*))
	$(SURF) report $(call runs-of,$*) --output runs/$*

# On digits, two runs at a time of one thread each, and MixIT from three seeds.
SEEDS := runs/digits_mixit_seed1 runs/digits_mixit_seed2

digits: install
	OMP_NUM_THREADS=1 $(MAKE) --no-print-directory -j2 $(addsuffix /metrics.json,$(call runs-of,digits) $(SEEDS))
	$(SURF) report $(call runs-of,digits) $(SEEDS) --output runs/digits

# Remixing starts from its data set's MixIT.
$(foreach d,$(DATASETS),$(foreach m,remixit self_remixing surf_rm surf_sr,\
	$(eval runs/$(d)_$(m)/metrics.json: runs/$(d)_mixit/metrics.json)))

# Table 3's upper bound is trained on FUSS, with FUSS_ARGS for ARGS, and measured as the others are.
FUSS_ARGS := $(ARGS)
runs/fuss_supervised_flow/metrics.json: override ARGS := $(FUSS_ARGS)
runs/audioset_supervised_flow/metrics.json: runs/fuss_supervised_flow/metrics.json
	@mkdir -p runs/logs
	@$(SURF) test --config configs/fuss_supervised_flow.yaml --data configs/data/audioset.yaml --trainer.logger false \
		--name audioset_supervised_flow --ckpt_path runs/fuss_supervised_flow/checkpoints/best.ckpt $(ARGS) \
		> runs/logs/audioset_supervised_flow.log 2>&1 || { tail -n 20 runs/logs/audioset_supervised_flow.log; exit 1; }
	@echo "audioset_supervised_flow: done"

# A run's config; what a sweep changes of it in fit comes as further files, and leaves the test as it is.
CHANGES :=
runs/%/metrics.json: private CONFIG = configs/$(firstword $(subst _seed, ,$*)).yaml
runs/%/metrics.json:
	@mkdir -p runs/logs
	@echo "$*: training, log in runs/logs/$*.log"
	@$(SURF) fit --config $(CONFIG) $(CHANGES) --name $* --ckpt_path last $(ARGS) \
		--seed_everything $(or $(word 2,$(subst _seed, ,$*)),0) --trainer.enable_progress_bar false > runs/logs/$*.log 2>&1 \
		&& $(SURF) test --config $(CONFIG) --name $* --trainer.logger false $(ARGS) \
		>> runs/logs/$*.log 2>&1 || { tail -n 20 runs/logs/$*.log; exit 1; }
	@echo "$*: done"

# -- Table 2: 25,000 mixtures of CIFAR-10, measured anew of the runs of Table 1 --

TABLE_2 := $(addprefix runs/cifar_,mixit basis surf_rm surf_sr)

table2-cifar: install
	$(MAKE) --no-print-directory $(TABLE_2:%=%/metrics_samples.json)
	$(SURF) report $(TABLE_2) --output runs/cifar_table2

$(TABLE_2:%=%/metrics_samples.json): runs/%/metrics_samples.json: runs/%/metrics.json
	@echo "$*: measuring samples, log in runs/logs/$*_samples.log"
	@mkdir -p runs/logs
	@$(SURF) test --config configs/$*.yaml --name $* --data.evaluation SampleMetrics --data.num_test 25000 \
		--trainer.logger false --trainer.enable_progress_bar false $(ARGS) > runs/logs/$*_samples.log 2>&1 \
		|| { tail -n 20 runs/logs/$*_samples.log; exit 1; }

# -- Table 9: SURF with one setting changed at a time; a sweep's runs are skipped, or go on, as above --
#
# `make ablation-cifar ARGS=...`: runs/cifar_surf_rm_alpha_0.99 is configs/cifar_surf_rm.yaml, then
# configs/ablation/alpha_0.99.yaml. On digits, the short schedule of configs/ablation/short.yaml, one loss, two runs at a time.

CHANGED := $(addprefix alpha_,0 0.9 0.99 0.9999) $(addprefix batch_,1 4 16 64) $(addprefix beta_,0.1 0.5 1)
CHANGED_digits := $(addprefix alpha_,0 0.9 0.999 0.9999) $(addprefix batch_,1 4 16) $(addprefix beta_,0.1 0.5 1)

# $(call sweep,data set,methods,changes): the runs of a sweep, in the order of its table
sweep = $(foreach m,$(2),$(foreach c,$(3),$(eval $(call sweep-run,runs/$(1)_$(m)_$(subst +,_,$(c)),$(1),$(m),$(c)))\
	runs/$(1)_$(m)_$(subst +,_,$(c))))

define sweep-run
$(1)/metrics.json: private CONFIG := configs/$(2)_$(3).yaml
$(1)/metrics.json: private CHANGES := $(patsubst %,--config configs/ablation/%.yaml,$(subst +, ,$(4)))
$(1)/metrics.json: runs/$(2)_mixit/metrics.json
endef

SWEEP_cifar := $(addprefix runs/cifar_,mixit surf_rm surf_sr) $(call sweep,cifar,surf_rm surf_sr,$(CHANGED))
SWEEP_mnist := $(addprefix runs/mnist_,mixit surf_rm surf_sr) $(call sweep,mnist,surf_rm surf_sr,$(CHANGED))
SWEEP_digits := runs/digits_mixit $(call sweep,digits,surf_rm,short $(CHANGED_digits:%=short+%))

ablation-digits: export OMP_NUM_THREADS := 1
JOBS :=
ablation-digits: JOBS := -j2

ablation-%: install
	$(if $(SWEEP_$*),,$(error the sweeps are ablation-cifar, ablation-mnist and ablation-digits))
	$(MAKE) --no-print-directory $(JOBS) $(addsuffix /metrics.json,$(SWEEP_$*))
	$(SURF) report $(SWEEP_$*) --output runs/$*_ablation

# -- speed: ratios to plain implementations, measured side by side --

bench: install
	@$(BIN)/python -m pip install -q -c constraints.txt -e '.[bench]' 2>/dev/null \
		|| echo "asteroid cannot be installed here: its rows will say so."
	$(BIN)/python benchmarks/run.py $(ARGS)

# -- checks --

test: install lint suite

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell

suite: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow and not gpu"

slow: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not gpu"

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
