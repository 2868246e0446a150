# make demo: a JPEG classified by a real tritonserver, from a fresh clone.   make test: everything that CI tests.
# Both make a virtual environment first (about two minutes and 6 GB, most of it torch).

VENV ?= .venv
# pyenv and the like have names on PATH that do not run, hence the try.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
INSTALLED := $(VENV)/.trtgen-installed
BIN := $(VENV)/bin
REPOSITORY ?= model_repository
IMAGE ?= clients/samples/star.jpg
# The tests of a GPU fill its memory, so there one after the other.
WORKERS ?= $(if $(wildcard /dev/nvidia0),0,2)

.PHONY: demo test lint install perf-analyzer clean

demo: $(INSTALLED)
	$(BIN)/trtgen build-repo demo --repository $(REPOSITORY)
	$(BIN)/trtgen serve --repository $(REPOSITORY) -- $(BIN)/python clients/classify.py $(IMAGE)

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: Python 3.10, 3.11 or 3.12 was not found"; \
		echo "hint: install one and run: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[server,preflight,dev]'
	touch $@

perf-analyzer: $(INSTALLED)
	$(BIN)/trtgen perf --install

clean:
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache
