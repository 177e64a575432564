# Everything a person types at this project. `make` alone prints the targets.
# All of it happens in .venv inside the checkout: delete that folder and nothing is left of it.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check -qq
MODEL  ?=
ARGS   ?=

SOURCES := pyproject.toml constraints.txt CMakeLists.txt \
           $(shell find gangpao -type f -not -name '*.pyc' -not -name '*.so' -not -path '*/__pycache__*')
# The system's cmake and ninja where there are any, else the ones that pip brings.
TOOLS := scikit-build-core nanobind \
         $(shell command -v cmake >/dev/null 2>&1 || echo cmake) $(shell command -v ninja >/dev/null 2>&1 || echo ninja)

.DEFAULT_GOAL := help
.PHONY: help chat test check bench clean

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Without a terminal nobody can be asked, and `make chat` is meant to end with an answer: --yes says so.
chat: $(VENV)/installed  ## talk with an installed model, or download one after a question; MODEL=name takes that one
	@$(BIN)/gangpao chat $(if $(MODEL),-m "$(MODEL)") $$([ -t 0 ] || echo --yes)

test: $(VENV)/developing  ## run all checks and tests (pulls the small test model once)
	@echo "model of the tests: smollm2-135m (98 MB), kept in your cache"
	@$(BIN)/gangpao pull smollm2-135m || echo "no smollm2-135m: the tests that need it will be skipped, by name"
	@$(BIN)/python -P -c "from gangpao.serve.pages import libraries; libraries.fetch({'chat', 'phone'})" \
	  || echo "no browser libraries: the tests of the pages that need them will be skipped, by name"
	@$(MAKE) --no-print-directory check
	@echo "pytest" && $(BIN)/pytest --ignore=tests/test_repository.py --numprocesses=auto --dist=loadfile $(ARGS)

check: $(VENV)/developing  ## lint, types and the rules of the repository, without the tests
	@echo "ruff" && $(BIN)/ruff check --quiet . && $(BIN)/ruff format --check --quiet . \
	  || { echo "error: not clean; '$(BIN)/ruff check --fix . && $(BIN)/ruff format .' mends most of it"; exit 1; }
	@echo "mypy" && $(BIN)/mypy
	@echo "repository rules" && $(BIN)/pytest tests/test_repository.py

bench: $(VENV)/developing  ## measure decode and prefill against llama.cpp; ARGS="--quick" for a short run
	@$(BIN)/python benchmarks/against_llama.py $(ARGS)

clean:  ## delete .venv and everything that was built; downloaded models stay
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis

# Stamps: an install is repeated only when its sources are newer. Our own wheel is built without isolation, so that the compiler's
# work in build/ is kept between installs and the build tools are the pinned ones. What we depend on is installed in a step of its own:
# some of it (rouge_score) is published as sources alone and needs the tools of its own that pip gives it in isolation.
$(VENV)/tools: constraints.txt
	@$(require)
	@test -x $(BIN)/python || { echo "creating $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "fetching the build tools: $(TOOLS)"
	@$(PIP) install -c constraints.txt $(TOOLS)
	@touch $@

$(VENV)/installed: $(VENV)/tools $(SOURCES)
	@echo "building the kernels and installing gangpao (a minute the first time)"
	@$(call install,)
	@touch $@

$(VENV)/developing: $(VENV)/tools $(SOURCES)
	@echo "building the kernels and installing gangpao with its development set (some minutes the first time)"
	@$(call install,[dev])
	@touch $(VENV)/installed $@

# What the system must bring; each missing piece is named together with the package that has it.
define require
for missing in \
  "$$(command -v $(PYTHON) >/dev/null 2>&1 || echo 'python3: install Python 3.11 or newer (Debian: python3)')" \
  "$$($(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || echo 'Python 3.11 or newer: run make PYTHON=python3.11, or a newer one')" \
  "$$($(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || echo 'the venv module of Python (Debian: python3-venv)')" \
  "$$($(PYTHON) -c 'import os, sys, sysconfig; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' 2>/dev/null || echo 'the header files of Python (Debian: python3-dev)')" \
  "$$(command -v $${CXX:-c++} >/dev/null 2>&1 || echo 'a C++ compiler (Debian: g++)')"; \
do \
  if [ -n "$$missing" ]; then echo "error: this machine lacks $$missing" >&2; failed=1; fi; \
done; test -z "$$failed"
endef

# $(1): the extras in brackets, or nothing.
define install
rm -rf build/wheel \
  && PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) wheel --no-deps --no-build-isolation --wheel-dir build/wheel . \
  && $(PIP) install --no-deps --force-reinstall build/wheel/gangpao-*.whl \
  && $(PIP) install -c constraints.txt "$$(echo build/wheel/gangpao-*.whl)$(1)"
endef
