# Two commands on a fresh machine (Python 3.11 or newer, nothing installed):
#   make train    set up the environment, then train on scikit-learn's digits into runs/digits/
#   make test     set up the environment, then run the tests
PYTHON ?= python3
# Without an NVIDIA driver, install torch's CPU build, from the index that torch documents for it. Where that index does
# not answer, or with `make TORCH_INDEX=`, torch comes from the default index: on PyPI, that is gigabytes of CUDA
# libraries.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
CPU := $(if $(shell command -v nvidia-smi),,-c constraints/cpu.txt)
READY := .venv/.ready

.PHONY: train test slow oldest lint clean

# Two processes with one thread each: at 8 px a second thread gains nothing, a second process 1.6 times the steps.
train: $(READY)
	.venv/bin/accelerate launch --config_file configs/accelerate/two_cpu_processes.yaml launch/train.py configs/digits.yaml

# loadfile: the tests of a file share a process, and with it slow fixtures.
PYTEST := .venv/bin/python -m pytest -n auto --maxprocesses 8 --dist loadfile

test: $(READY)
	$(PYTEST)

slow: $(READY)
	$(PYTEST) -m slow

# The kernels on the oldest triton that pyproject.toml allows: compiled, and in its interpreter, which needs numpy < 2.4.
# Both are laid over .venv, whose torch and tools they share.
OLDEST_TRITON := $(shell sed -n 's/.*"triton>=\([0-9.]*\)".*/\1/p' pyproject.toml)

oldest: .venv-oldest/.ready
	.venv-oldest/bin/python -m pytest -n auto --maxprocesses 8 --dist loadfile tests/dpkernels

.venv-oldest/.ready: $(READY)
	$(PYTHON) -m venv --clear .venv-oldest
	.venv-oldest/bin/pip install --quiet --no-deps triton==$(OLDEST_TRITON) 'numpy<2.4'
	.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$(.venv-oldest/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/newest.pth"
	touch $@

lint: $(READY)
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

$(READY): pyproject.toml constraints/cpu.txt
	$(PYTHON) -m venv .venv
	$(if $(and $(CPU),$(TORCH_INDEX)),.venv/bin/pip install --quiet --retries 1 --timeout 20 --index-url $(TORCH_INDEX) \
	  -r constraints/cpu.txt || echo "$(TORCH_INDEX) gave no torch: taking it from the default index")
	.venv/bin/pip install --quiet $(CPU) -e '.[train,report,dev]'
	touch $@

clean:
	rm -rf .venv .venv-oldest .pytest_cache .mypy_cache .ruff_cache
