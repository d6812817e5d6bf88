# make quickstart   the main job: a table of methods, and quickstart/report.html
# make test         the tests
# make real         a study on a real model, SmolLM2-135M-Instruct: runs/real_name_description/report.html
# All need Python 3.11 or newer with venv, and nothing else.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: quickstart real test test-slow test-real lint

quickstart: .venv/installed
	$(BIN)/demask quickstart --output_dir quickstart

real: .venv/installed
	$(BIN)/python scripts/real_model.py --output_dir models
	$(BIN)/demask data build name_description --output_dir data/name_description $(if $(SOURCE),--source $(SOURCE))
	$(BIN)/demask study studies/real_name_description.yaml

test: .venv/installed-test
	$(BIN)/python -m pytest

test-slow: .venv/installed-test
	$(BIN)/python -m pytest -m slow -n 0

test-real: .venv/installed-test
	$(BIN)/python scripts/real_model.py --output_dir models
	$(BIN)/python -m pytest -m real -n 0

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# torch comes first and by its exact version: then nothing else asks for another build of it.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "demask needs Python 3.11 or newer")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

.venv/installed-test: .venv/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@
