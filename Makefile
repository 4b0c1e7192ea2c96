.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help quickstart test quality bench cards

PYTHON ?= python3

help:  ## list the targets
	@awk 'BEGIN { FS = ":.*## " } /^[a-z]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: .venv/base  ## fine-tune a small ViT on data that ships with the package
	.venv/bin/python recipes/mae/finetune.py recipes/mae/configs/quickstart.yaml --output_dir outputs/quickstart

test: .venv/dev  ## run all tests, the slow ones too
	.venv/bin/python -m pytest --numprocesses 2 --dist loadfile

quality: .venv/dev  ## check code style, formatting and spelling
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/typos

bench: .venv/bench  ## run every benchmark, side by side with other libraries
	@set -e; for script in $(sort $(wildcard benchmarks/*.py)); do echo "$$script"; .venv/bin/python "$$script"; done

cards: .venv/base  ## write the cards of the checkpoints that ship from their results files
	.venv/bin/python model_cards/regenerate.py

# One virtual environment; each stamp file says that a set of packages is in it, until setup.cfg or pyproject.toml changes.
.venv/dev: EXTRAS = [test,quality]
.venv/bench: EXTRAS = [bench]
.venv/base .venv/dev .venv/bench: setup.cfg pyproject.toml | .venv/bin/python
	@echo "installing hf_vitfm$(EXTRAS) into .venv: about 3 minutes and 6 GB the first time"
	@.venv/bin/python -m pip install --quiet --editable ".$(EXTRAS)"
	@touch $@

.venv/bin/python:
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(sys.version_info < (3, 10) and "hf_vitfm needs Python 3.10 or later; $(PYTHON) is " + v + ". Name another one: make PYTHON=python3.12")'
	@$(PYTHON) -m venv .venv || { echo "$(PYTHON) cannot make a virtual environment; on Debian and Ubuntu install python3-venv"; exit 1; }
