# Each target works on a fresh clone with only make and Python >= 3.11, and installs everything in .venv.
# PYTHON: the interpreter for .venv. SEED: the seed of the demo run. DEVICE: what to compute on.

SEED ?= 1
# Candidates are run, not only found: version managers leave shims for versions that are not active.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# cuda if there is an NVIDIA GPU, else cpu. On a TPU VM, say DEVICE=tpu.
DEVICE ?= $(shell nvidia-smi -L 2>/dev/null | grep -q '^GPU' && echo cuda || echo cpu)
# Huge pages for glibc's malloc save a third of a training step on a CPU, most of it page faults.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
# .venv/platforms is written after the installation. Without it JAX would look for a TPU, with long warnings, once libtpu
# is there for the tests.
export JAX_PLATFORMS ?= $(or $(shell cat .venv/platforms 2>/dev/null),cpu)
PIP = .venv/bin/python -m pip --disable-pip-version-check -qq

FOR_DEVICE = $(addprefix $(COMMA),$(filter-out cpu,$(DEVICE)))
COMMA = ,
# A GPU whose driver is too old is installed for and then not used.
CHOOSE_PLATFORMS = echo cpu > .venv/platforms; [ $(DEVICE) = cpu ] || \
	if JAX_PLATFORMS=$(DEVICE) .venv/bin/python -c 'import jax; jax.devices()' >.venv/device.log 2>&1; \
	then echo $(DEVICE),cpu > .venv/platforms; \
	else echo "JAX cannot use DEVICE=$(DEVICE) (see .venv/device.log), so this computes on the CPU" >&2; fi

.PHONY: demo test test-fast test-all coverage lint docs clean

demo: .venv/demo.stamp
	.venv/bin/python -m care_jax.demo --workdir=runs/demo-$(SEED) --seed=$(SEED)

# One process a core, since much of a test is one core's work; four at most, for the memory.
PYTEST = pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

# All but the slow ones, which are whole runs, kills, benchmarks and further cases. Compiling is much of the work, and
# quicker without XLA's optimisations.
test test-fast: export JAX_DISABLE_MOST_OPTIMIZATIONS ?= 1
test: .venv/test.stamp
	.venv/bin/python -m $(PYTEST)

# Two rooms that need no model: the method and the rewards.
test-fast: .venv/test.stamp
	.venv/bin/python -m $(PYTEST) $(FAST)
FAST = tests/method tests/rewards

# The slow ones too, compiled as in a run.
test-all: .venv/test.stamp
	.venv/bin/python -m $(PYTEST) $(ALL)
ALL = -m 'not chaos and not plan and not integration'

# The lines that none of them reaches.
coverage: .venv/test.stamp
	rm -rf build/coverage && mkdir -p build/coverage
	.venv/bin/python -m coverage run -m $(PYTEST) $(ALL)
	.venv/bin/python -m coverage combine --quiet
	.venv/bin/python -m coverage report

lint: .venv/test.stamp
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy

# The site, in build/site; a broken link or anchor is an error.
docs: .venv/docs.stamp
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

.venv/python.stamp:
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo \
		"No Python >= 3.11 found as $(or $(PYTHON),python3.11, python3.12, python3.13 or python3):" \
		"install one, or name it: make PYTHON=/path/to/python" >&2; exit 2; }
	$(PYTHON) -m venv --clear .venv
	@touch $@

.venv/demo.stamp: pyproject.toml constraints.txt | .venv/python.stamp
	@echo "Installing what a run needs into .venv (a few minutes, once) ..."
	$(PIP) install -c constraints.txt -e '.[demo$(FOR_DEVICE)]'
	@$(CHOOSE_PLATFORMS)
	@touch $@

.venv/test.stamp: pyproject.toml constraints.txt | .venv/python.stamp
	@echo "Installing what runs and tests need into .venv (a few minutes, once) ..."
	$(PIP) install -c constraints.txt -e '.[test$(FOR_DEVICE)]'
	@$(CHOOSE_PLATFORMS)
	@touch .venv/demo.stamp $@

.venv/docs.stamp: pyproject.toml constraints.txt | .venv/python.stamp
	@echo "Installing what the site needs into .venv (a minute, once) ..."
	$(PIP) install -c constraints.txt -e '.[docs]'
	@touch $@
