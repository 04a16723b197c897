# Needs Python 3.11 and make; everything else is installed into .venv. `make help` lists the targets.
#
#   TORCH_INDEX=URL   one more package index for `make setup`, for instance one with CPU wheels of torch; the wheels that
#                     the public index has for x86-64 bring several GB of CUDA libraries

PYTHON ?= python3.11
TORCH_INDEX ?=

VENV := .venv
RUN := $(VENV)/bin/python
STAMP := $(VENV)/.complete
# Nothing is compiled: wheels only, except for three packages of pure Python that are published as source alone.
PIP_INSTALL := PYTHONWARNINGS=ignore $(RUN) -m pip install --quiet --disable-pip-version-check --only-binary=:all: \
	--constraint constraints/cpu.txt $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
SOURCE_ONLY := --no-build-isolation --no-binary=prefetch-generator,python-baseconv,varint

.DEFAULT_GOAL := help
.PHONY: help setup system-tools test test-quick demo lint format bench fuzz containers-test clean

help: ## this list
	@echo "make TARGET, where TARGET is one of"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 20

setup: $(STAMP) ## make .venv with everything in it (about two minutes the first time, instant afterwards)

$(STAMP): pyproject.toml constraints/cpu.txt constraints/libp2p.txt
	@command -v $(PYTHON) >/dev/null || { \
		echo "$(PYTHON) is not installed: install Python 3.11, or name another one (3.11 or newer): make setup PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is older than Python 3.11: name a newer one: make setup PYTHON=python3.11" >&2; exit 1; }
	@$(RUN) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV) || { \
		echo "$(PYTHON) cannot make virtual environments: install its venv package (on Debian and Ubuntu: python3.11-venv)." >&2; exit 1; }
	@echo "Setting up .venv: about two minutes and 1.7 GB, most of it torch."
	@$(PIP_INSTALL) pip setuptools
	@$(PIP_INSTALL) $(SOURCE_ONLY) --requirement constraints/libp2p.txt --editable '.[dev,8bit]'
	@$(PIP_INSTALL) --no-deps libp2p fastecdsa
	@touch $@
	@echo "Done: $(VENV)/bin/swarm-peer --help"

# nft and ip are in the last two, where not every root's shell looks.
export PATH := $(PATH):/usr/sbin:/sbin

test: setup system-tools ## every check: format, lint, types, layers, unit, contract, integration and end-to-end tests
	@$(RUN) -m pytest --durations=10

system-tools: ## what one test needs beside .venv: nftables and iproute2
	@command -v nft >/dev/null && command -v ip >/dev/null || { \
		test "$$(id -u)" = 0 && command -v apt-get >/dev/null && \
		echo "Installing nftables and iproute2: a test puts a member behind a router." && \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq nftables iproute2 >/dev/null; } || { \
		echo "A test puts a member behind a router: install nftables and iproute2 (as root: apt-get install nftables iproute2)." >&2; exit 1; }

test-quick: setup ## the checks that need no sockets: under a minute
	@$(RUN) -m pytest tests/architecture tests/unit

demo: setup ## the main job: a coordinator and four volunteers on this machine; one is killed, one joins
	@$(VENV)/bin/swarm-peer demo

lint: setup ## format, lint, layers and types, without tests
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/lint-imports
	@$(VENV)/bin/mypy

format: setup ## format the code and mend what ruff can mend
	@$(VENV)/bin/ruff check --fix-only --quiet .
	@$(VENV)/bin/ruff format .

bench: setup ## averaging compared with hivemind and gloo, real processes on loopback
	@$(RUN) -m scripts.bench.averaging --peers 4 --mib 64 --codec fp32 --against hivemind,gloo --json

fuzz: setup ## ten minutes of damaged messages for everything that reads bytes from others (`scripts/fuzz.py --help`)
	@$(RUN) -m scripts.fuzz --seconds 600 --json

containers-test: setup ## build the image and train in three containers (needs podman and podman-compose)
	@$(RUN) -m scripts.containers_test

clean: ## delete caches and build output; .venv stays (to start afresh: rm -r .venv)
	@rm -rf build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find swarm peers protocols scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
