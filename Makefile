# Each target works on a fresh clone with only make and Python >= 3.11; everything lands in .venv.
# PYTHON: the interpreter .venv is made from. SEED: of the demo run.

SEED ?= 1
# Running a candidate, not only finding it: version managers leave shims for versions that are not active.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# Huge pages for glibc's malloc: a training step on a CPU takes a third less time, page faults being most of the rest.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
# .venv gets the CPU's jax alone, and libtpu, which looks for TPUs and tells at length that there are none.
export JAX_PLATFORMS ?= cpu
PIP = .venv/bin/python -m pip --disable-pip-version-check -qq

.PHONY: demo test lint clean

demo: .venv/demo.stamp
	.venv/bin/python -m care_jax.demo --workdir=runs/demo-$(SEED) --seed=$(SEED)

# Files side by side, as many as there are cores: much of a test is one core's work. Four at the most, for the memory.
test: .venv/test.stamp
	.venv/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile

lint: .venv/test.stamp
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy

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
	$(PIP) install -c constraints.txt -e '.[demo]'
	@touch $@

.venv/test.stamp: pyproject.toml constraints.txt | .venv/python.stamp
	@echo "Installing what runs and tests need into .venv (a few minutes, once) ..."
	$(PIP) install -c constraints.txt -e '.[test]'
	@touch .venv/demo.stamp $@
