# Two commands, each complete in itself on a machine with Python >= 3.11 and make:
#   make demo   one edge-cloud conversation on this machine (needs no torch)
#   make test   the whole test suite (needs torch: the reference that the product is checked against)
# Everything is installed into .venv, at the versions of constraints.txt. A second run installs nothing.

SHELL := /bin/sh
VENV := .venv
BIN := $(VENV)/bin
# Set PYTHON to choose the interpreter: make test PYTHON=/opt/python3.12/bin/python3
PYTHON :=
# Both names: pip before 25.3 applies PIP_CONSTRAINT to build environments too, later ones have a variable of their own.
PINNED := PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt
PIP_INSTALL := $(PINNED) $(BIN)/python -m pip install --quiet --quiet --no-input --disable-pip-version-check
# Extra arguments of pytest or the demo: make test ARGS="tests/sims -x"
ARGS :=

.PHONY: help demo test lint proto structure bench-smoke constraints clean

help:
	@sed -n '2,4p' Makefile | sed 's/^# *//'
	@echo 'also: make lint | proto | structure | bench-smoke | constraints | clean'

demo: $(VENV)/.installed-demo
	@echo '==> splitglm demo'
	@$(BIN)/splitglm demo $(ARGS)

test: $(VENV)/.installed-dev
	@echo '==> pytest $(ARGS)'
	@$(BIN)/python -m pytest $(ARGS)

lint: $(VENV)/.installed-dev
	@echo '==> ruff check'
	@$(BIN)/ruff check .
	@echo '==> ruff format --check'
	@$(BIN)/ruff format --check .
	@echo '==> mypy'
	@$(BIN)/mypy
	@echo '==> lint-imports'
	@$(BIN)/lint-imports

# The stubs are committed; run this after editing the schema.
proto: $(VENV)/.installed-dev
	@echo '==> protoc proto/splitglm_wire/v1/split.proto'
	@$(BIN)/python -m grpc_tools.protoc -I proto --python_out=proto --pyi_out=proto --grpc_python_out=proto \
		proto/splitglm_wire/v1/split.proto

# The list of files in docs/structure.md comes from the modules' docstrings.
structure: $(VENV)/.created
	@$(BIN)/python docs/list_rooms.py

# With --smoke a benchmark script takes seconds, prints its tables and writes no result file.
bench-smoke: $(VENV)/.installed-dev
	@for script in $$(grep -l -- '"--smoke"' benchmarks/*.py); do \
		echo "==> $$script --smoke"; \
		$(BIN)/python "$$script" --smoke || exit 1; \
	done

# Re-resolves every dependency to its newest allowed version and rewrites the pins below the file's comment.
constraints:
	@rm -rf build/resolve && mkdir -p build
	@$(FIND_PYTHON) && "$$python" -m venv build/resolve
	@echo '==> resolving .[dev] (several minutes)'
	@build/resolve/bin/python -m pip install --quiet --quiet --no-input --disable-pip-version-check --upgrade -e '.[dev]' hatchling setuptools
	@{ sed '/^[^#]/,$$d' constraints.txt; \
		build/resolve/bin/python -m pip freeze --all --exclude-editable --exclude pip | sed 's/+[a-z0-9.]*$$//'; \
	} > build/constraints.txt
	@mv build/constraints.txt constraints.txt && rm -rf build/resolve
	@echo 'constraints.txt rewritten: read its diff, then run make test'

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The first interpreter that is new enough and can make environments; left in the shell variable $python.
FIND_PYTHON = python=''; \
	for candidate in $(PYTHON) python3 python3.12 python3.11 python3.13 python3.14 python; do \
		if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			python=$$candidate; break; \
		fi; \
	done; \
	if [ -z "$$python" ]; then \
		echo 'splitglm needs Python 3.11 or newer with its venv module, and found none on PATH.' >&2; \
		echo 'Debian and Ubuntu: apt install python3-venv. Elsewhere: make PYTHON=/path/to/python3 ...' >&2; \
		exit 1; \
	fi

# Marks are written last, so an interrupted step is done again.
$(VENV)/.created:
	@rm -rf $(VENV)
	@$(FIND_PYTHON); echo "==> creating $(VENV) with $$("$$python" --version)"; "$$python" -m venv $(VENV)
	@touch $@

$(VENV)/.installed-demo: $(VENV)/.created pyproject.toml constraints.txt
	@echo '==> installing splitglm with the edge and cloud extras into $(VENV) (no torch; a minute or two the first time)'
	@$(PIP_INSTALL) -e '.[edge,cloud]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.created pyproject.toml constraints.txt
	@echo '==> installing splitglm with the dev extra into $(VENV) (includes torch; minutes the first time)'
	@$(PIP_INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.installed-demo
