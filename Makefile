# The one door: everything below creates .venv and installs on first use.
.DEFAULT_GOAL := help
.PHONY: help install demo demo-faces test test-slow test-all lint types check format bench env-litert env-ultralytics clean

PYTHON ?= python3.11
VENV   := .venv
LITERT := .venv-litert
ULTRALYTICS := .venv-ultralytics
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
RUNS   ?= runs
DEMO   := $(RUNS)/demo

export NO_ALBUMENTATIONS_UPDATE = 1

help:  ## Print this help
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

$(STAMP): setup.cfg pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or newer, or say make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

install: $(STAMP)  ## Create .venv and install mnvision with its development tools

demo: $(STAMP)  ## Train, evaluate and draw a small SSD on generated data (CPU, about 10 minutes)
	$(BIN)/python tools/train.py task=ssd_coco experiment=demo hydra.run.dir=$(DEMO)/train
	$(BIN)/python tools/evaluate.py checkpoint=$(DEMO)/train/checkpoints/best.ckpt hydra.run.dir=$(DEMO)/evaluate
	$(BIN)/python tools/predict.py checkpoint=$(DEMO)/train/checkpoints/best.ckpt input="$${MNVISION_DATA:-data}/shapes/*/val2017/*0.jpg" output=$(DEMO)/pictures
	@echo "trained detector:    $(DEMO)/train/checkpoints/best.ckpt"
	@echo "scores and figures:  $(DEMO)/evaluate"
	@echo "annotated pictures:  $(DEMO)/pictures"

FACES  := $(RUNS)/demo-faces
STUDENT := task=face_attributes experiment=demo_faces backbone.alpha=0.25 backbone.resolution=64 trainer.max_epochs=25

demo-faces: $(STAMP)  ## Distil a small attribute model from a teacher thirty times its cost (CPU, about 8 minutes)
	$(BIN)/python tools/train.py task=face_attributes experiment=demo_faces backbone.resolution=96 hydra.run.dir=$(FACES)/teacher
	$(BIN)/python tools/train.py $(STUDENT) teacher=checkpoint teacher.path=$(FACES)/teacher/checkpoints/best.ckpt teacher.cache=true hydra.run.dir=$(FACES)/distilled
	$(BIN)/python tools/train.py $(STUDENT) hydra.run.dir=$(FACES)/labels
	$(BIN)/python tools/compare.py checkpoints=[$(FACES)/teacher/checkpoints/best.ckpt,$(FACES)/distilled/checkpoints/best.ckpt,$(FACES)/labels/checkpoints/best.ckpt] split=test output=$(FACES)/compare
	$(BIN)/python tools/predict.py checkpoint=$(FACES)/distilled/checkpoints/best.ckpt input="$${MNVISION_DATA:-data}/shapes/portraits-*/img_align_celeba/*00.jpg" output=$(FACES)/pictures
	@echo "table:               $(FACES)/compare/comparison.md"
	@echo "annotated pictures:  $(FACES)/pictures"

test: $(STAMP)  ## Run the fast test suite
	$(BIN)/pytest -n 2 --dist loadfile

test-slow: $(STAMP)  ## Run the slow tests (training to a score, several processes)
	$(BIN)/pytest -m slow

test-all: $(STAMP)  ## Run every test
	$(BIN)/pytest -m ""

lint: $(STAMP)  ## Check formatting and style
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)  ## Check types
	$(BIN)/mypy

check: lint types test  ## lint, types and test

format: $(STAMP)  ## Rewrite files in the project's style
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP)  ## Measure speed against peers in one run (benchmarks/)
	$(BIN)/python -m benchmarks.all

env-litert:  ## Make .venv-litert, where format=litert converts: it needs an older torch (7 GB)
	$(PYTHON) -m venv $(LITERT)
	$(LITERT)/bin/pip install --quiet --disable-pip-version-check -e '.[litert]'

env-ultralytics:  ## Make .venv-ultralytics, a contestant of benchmarks/exported_duel.py (6 GB; AGPL-3.0)
	$(PYTHON) -m venv $(ULTRALYTICS)
	$(ULTRALYTICS)/bin/pip install --quiet --disable-pip-version-check ultralytics onnx onnxruntime onnxslim

clean:  ## Remove .venv and caches; runs and data stay
	rm -rf $(VENV) $(LITERT) $(ULTRALYTICS) .pytest_cache .mypy_cache .ruff_cache .hypothesis
