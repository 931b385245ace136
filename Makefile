# `make notebooks` and `make test` are all that is needed; `make help` shows the rest.

# Any Python finds out what to install, and with which one; PYTHON= gives that one.
ANY_PYTHON = $(shell for name in python3 python3.11 python3.12 python3.13 $(PYTHON); do \
	  $$name -c "" 2>/dev/null && echo $$name && exit; done; echo python3)
VENV_PYTHON := .venv/bin/python

# Nothing of the user's own Python may reach into .venv, nor its kernels into Jupyter. Where
# no compiled modules are kept, each start of an engine compiles its thousands anew.
unexport PYTHONPATH PYTHONHOME PYTHONDONTWRITEBYTECODE
export JUPYTER_PREFER_ENV_PATH := 1

.DEFAULT_GOAL := help
.PHONY: help setup plan notebooks gallery test gpu-test lab benchmark figures train pins clean

help:
	@echo "make notebooks  run every notebook into _build/ and make the gallery"
	@echo "make test       run all tests, every notebook included"
	@echo "make gpu-test   on a GPU: every notebook, memory, estimates, the stop button"
	@echo "make lab        open JupyterLab on the collection's start page"
	@echo "make gallery    the same as make notebooks"
	@echo "make benchmark  compare the engines on this machine: _build/engines.json"
	@echo "make figures    draw the README's pictures, write its tables and the start page"
	@echo "make train      train tiny-thinker anew, and measure its accuracy"
	@echo "make setup      create .venv with everything; the others do it when needed"
	@echo "make plan       say what setup would install here, and why"
	@echo "make pins       rebuild requirements/cpu.txt and gpu.txt from the .in files"
	@echo "make clean      remove .venv, _build and caches"
	@echo "A card with driver 580 or later gets the GPU's packages; DEVICE=cpu make ...: not"

# The GPU's pins where there is a card, or the CPU's; .venv keeps the kind it was made with.
setup:
	@$(ANY_PYTHON) requirements/install.py

plan:
	@$(ANY_PYTHON) requirements/install.py --plan

notebooks gallery: setup
	@$(VENV_PYTHON) -m tools.gallery build

# Three at once, since many wait; not on a GPU: engines measure how much of it is free.
# A file's tests stay together, so that each engine that they share starts once.
LANES = $(if $(filter gpu,$(shell cat .venv/.kind)),0,3)
test: setup
	@$(VENV_PYTHON) -m tools.browser
	@$(VENV_PYTHON) -m pytest -rs -n $(LANES) --dist loadfile --no-loadscope-reorder \
	  --nbmake --nbmake-timeout=600 $(wildcard notebooks) tests

# What only a GPU can show, on one that nothing else uses: tests/gpu/test_gpu.py.
gpu-test:
	@$(MAKE) --no-print-directory setup DEVICE=cuda
	@$(VENV_PYTHON) -m pytest -m gpu -ra tests/gpu/test_gpu.py

lab: setup
	@$(VENV_PYTHON) -m tools.lab

# On the embedded model; `tools.compare_engines --help` has models, engines and sizes.
benchmark: setup
	@$(VENV_PYTHON) -m tools.compare_engines

# From notebooks/figures/, which the command above wrote on GPUs.
figures: setup
	@$(VENV_PYTHON) -m tools.figures

train: setup
	@$(VENV_PYTHON) -m tools.tiny_thinker.train
	@$(VENV_PYTHON) -m tools.tiny_thinker.evaluate

# uv gives torch without its +cpu, a build that only torch's own index has.
UV_COMPILE := .venv/bin/uv pip compile --quiet --upgrade --no-annotate --no-header \
	--no-emit-index-url --no-emit-find-links --python-platform x86_64-manylinux_2_31 --only-binary :all:
pins: setup
	@$(UV_COMPILE) requirements/cpu.in --overrides requirements/cpu-overrides.txt \
	  --python-version 3.11 --output-file requirements/cpu.txt
	@sed -i 's/^\(torch==[0-9.]*\)$$/\1+cpu/' requirements/cpu.txt
	@$(UV_COMPILE) requirements/gpu.in --python-version 3.12 \
	  --output-file requirements/gpu.txt

clean:
	@rm -rf .venv _build executed *.egg-info .pytest_cache .ruff_cache .hypothesis
	@rm -rf unsloth_compiled_cache notebooks/unsloth_compiled_cache
	@find . -name __pycache__ -not -path "./.git/*" -prune -exec rm -rf {} +
