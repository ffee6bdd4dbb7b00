# The two commands to know: `make train` and `make test`. Both build the virtual environment if need be.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin

# make train ENV=Hopper-v5 STEPS=1000000 SEED=1
ENV ?= HalfCheetah-v5
STEPS ?= 3000000
# What two cores do fastest: many of EnvPool's environments, large minibatches, a small network
FAST = --vec-env envpool -params n_envs:64 n_steps:64 batch_size:512 n_epochs:16 \
	"learning_rate:'lin_0.001'" "policy_kwargs:'dict(log_std_init=-1, activation_fn=nn.ReLU)'"
SEED ?= 0
LOGS ?= logs

SOURCES = sb3_r2vpo hyperparams tests examples benchmarks

.PHONY: install train test test-slow test-cuda test-oldest test-newest check format bench-learning bench-speed clean

install: $(VENV)/installed

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --constraint constraints.txt --editable ".[mujoco,envpool,zoo,postgresql,tests]"
	touch $@

train: install
	$(BIN)/r2vpo train --env $(ENV) $(FAST) --n-timesteps $(STEPS) --seed $(SEED) --num-threads 1 --eval-freq 250000 \
		--progress --verbose 0 --log-folder $(LOGS) --tensorboard-log $(LOGS)/tensorboard

test: install
	$(BIN)/python -m pytest --numprocesses auto

# Environments that only these tests need
test-slow: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[envs]"
	$(BIN)/python -m pytest --numprocesses auto -m "slow and not cuda"

# The default tests with the oldest versions that setup.cfg admits, and with the newest there are
test-oldest: RESOLUTION = lowest-direct
test-newest: RESOLUTION = highest
test-oldest test-newest: install
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv venv --quiet --clear --seed --python $(BIN)/python $(VENV)-$(RESOLUTION)
	$(BIN)/uv pip install --quiet --python $(VENV)-$(RESOLUTION) --resolution $(RESOLUTION) \
		--editable ".[mujoco,envpool,contrib,zoo,postgresql,tests]"
	$(VENV)-$(RESOLUTION)/bin/python -m pytest --numprocesses auto

test-cuda: install
	$(BIN)/python -m pytest -m cuda

check: install
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/black --check --quiet $(SOURCES)
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/black $(SOURCES)

# Resumable: a run that the results file holds is not run again
bench-learning: install
	$(BIN)/python benchmarks/learning.py run
	$(BIN)/python benchmarks/learning.py report

# SBX (JAX) and Gymnasium's DeepMind Control environments are only needed here
bench-speed: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[benchmarks]"
	$(BIN)/python benchmarks/speed.py run
	$(BIN)/python benchmarks/speed.py plot

clean:
	rm -rf $(VENV) $(VENV)-lowest-direct $(VENV)-highest build dist *.egg-info
