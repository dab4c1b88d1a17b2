# Every target does the set-up it needs; `make setup` is quick when nothing changed.
.PHONY: help setup quickstart base test test-fast test-host lint lock clean sandbox-host
.DEFAULT_GOAL := help
SHELL := /bin/bash

# Tools of the environment (ninja among them) come first, as after `source .venv/bin/activate`.
export PATH := $(CURDIR)/.venv/bin:$(PATH)
PY := .venv/bin/python
IN_TWO := --numprocesses 2

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

setup: ## make or update .venv
	@scripts/setup.sh

quickstart: setup ## the main job, end to end: checkpoint, SFT, GRPO, evaluation, report
	$(PY) scripts/quickstart.py

base: setup ## a WARC of Debian's manuals to a small base model in three languages, and its verdict
	scripts/fetch_debian_corpus.sh runs/debian
	$(PY) scripts/pack_warc.py runs/debian runs/crawl
	$(PY) -W ignore scripts/pretrain_base.py runs/crawl runs/base

lint: setup ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m mypy

sandbox-host: ## what the sandboxes need from the machine: bubblewrap, Docker's engine
	@scripts/sandbox_host.sh

test-host: # the same, and Chromium for the report page
	@scripts/sandbox_host.sh --tests || echo "without them the tests that need them skip, and say so"

# Those of rewards count the machine's mounts and processes, and time what they judge: they run alone.
test: lint test-host ## ruff, mypy and every test
	$(PY) -m pytest tests/rewards
	$(PY) -m pytest --ignore tests/rewards $(IN_TWO)

test-fast: setup ## the tests that take less than 20 s each
	$(PY) -m pytest $(IN_TWO) -m "not slow"

lock: setup ## write requirements/lock.txt from .venv
	scripts/lock.sh

clean: ## remove the environment and every cache; keeps runs/
	rm -rf .venv build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
