# `make help` lists the targets. If .venv is missing or old, a target first installs it.
PYTHON ?= python3

export VIRTUAL_ENV := $(CURDIR)/.venv
export PATH := $(VIRTUAL_ENV)/bin:$(PATH)
# pip reads this variable, even when maturin starts pip.
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport CONDA_PREFIX PYTHONHOME

RUST := Cargo.toml Cargo.lock $(shell find rust -name '*.rs' -o -name Cargo.toml)

.DEFAULT_GOAL := help
.PHONY: help setup train test test-slow fuzz fuzz-texts bench mutants coverage kernels-offline lint fmt docs wheel clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: .venv/.ready ## install everything into .venv; takes 2 to 5 minutes and 5 GB the first time
	@echo "ready: make train, or: source .venv/bin/activate; python -m tinylm"

# A run that is stopped prints the command that resumes it; here that is a `make train`.
train: export TINYLM_COMMAND := make train
train: .venv/.ready ## train a small model on the Python standard library; ARGS="key=value ..."
	python -m tinylm.train $(ARGS)

test: .venv/.ready ## run the quick tests: cargo test of the three core crates, then pytest
	cargo test --quiet
	python -m pytest -n 2

test-slow: .venv/.ready ## run the slow tests, 30 minutes; ARGS="tests/test_resume.py"
	python -m pytest -m slow --timeout 900 $(ARGS)

# Uses every core and prints a line per rung. It takes long: make fuzz > fuzz.log 2>&1 &
fuzz: .venv/.ready ## test every rung with 20,000 examples, round trips with 100,000; ARGS="-k roundtrip"
	python -m pytest tests/test_ladder.py -v -n auto --dist worksteal --hypothesis-profile=fuzz --timeout 0 $(ARGS)

# No Python: FUZZ texts of the seed FUZZ_SEED, with the shortest text of a failure.
fuzz-texts: ## encode a million hostile texts in Rust and compare with the definition, 90 seconds
	FUZZ=$${FUZZ:-1000000} cargo test --release --quiet -p tinylm-tokenizer --test naive fuzz

# One thread: the tensors are small, and on a busy machine several threads wait for each other.
bench: .venv/.ready ## time slow, fast and peer of every rung, into .benchmarks/; ARGS="-k encode"
	@mkdir -p .benchmarks
	OMP_NUM_THREADS=1 python -m pytest benches/bench_ladder.py --timeout 0 --benchmark-only \
	  --benchmark-group-by group --benchmark-columns min,median,iqr,rounds \
	  --benchmark-min-rounds 3 --benchmark-max-time 0.3 \
	  --benchmark-json .benchmarks/ladder.json $(ARGS)

mutants: .venv/.ready ## put wrong lines into fast code and check that a test fails, 10 minutes
	python -m tests.support.mutants $(ARGS)

kernels-offline: .venv/.ready ## compile every kernel for GPUs that are not there and compare, 3 minutes
	env -u TRITON_INTERPRET python -m tests.support.offline $(ARGS)

coverage: .venv/.ready ## show which lines of python/tinylm the quick tests run
	coverage run -m pytest
	coverage report

lint: .venv/.ready ## run ruff, mypy, stubtest, rustfmt and clippy, as CI does
	ruff check
	ruff format --check
	mypy
	python -m mypy.stubtest tinylm._rust
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --quiet -- -D warnings

fmt: .venv/.ready ## format Python and Rust, and apply ruff's fixes
	ruff check --fix-only
	ruff format
	cargo fmt --all

docs: .venv/.docs ## build the web site into site/; fails on a dead link
	python docs/make_ladder.py
	zensical build --clean --strict
	@echo "open site/index.html in a browser, or: python3 -m http.server --directory site"

wheel: .venv/.ready ## build the wheel (fully optimised) and the sdist into dist/
	maturin build --profile dist --out dist
	maturin sdist --out dist

clean: ## remove all build results; keep runs and data
	rm -rf .venv target dist site .coverage .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	rm -f python/tinylm/_rust.*.so
	find python kernels tests benches -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

# After the first installation, pip finds every requirement met, so a second build works offline.
.venv/.ready: .venv/bin/maturin pyproject.toml constraints.txt $(RUST)
	@echo "building the Rust extension; the first time also torch and the tools, 5 GB, 2 to 5 minutes"
	@PIP_QUIET=1 maturin develop --quiet --extras dev
	@touch $@

.venv/.docs: .venv/.ready
	@PIP_QUIET=1 maturin develop --quiet --extras docs
	@touch $@

.venv/bin/maturin:
	@command -v cargo > /dev/null || { echo "error: no cargo; install Rust 1.89 or newer"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || { \
	  echo "error: $(PYTHON) is not Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	@$(PYTHON) -m venv .venv
	@python -m pip install --quiet --upgrade pip maturin
