# A fresh clone needs Python 3.11 or newer, nothing else.
#   make image PROMPT="noto red apple"     a picture, from an environment without PyTorch
#   make test | lint | types               the checks, from the development environment
#   make data | train                      the embedded models, from scratch (hours)

PROMPT ?= noto red apple
ARGS ?=
TESTS ?= tests
DATA ?= data/emoji
CONVERTED := mini-sd mini-xl mini-vega mini-xl-refiner

RUN := .venv-run
DEV := .venv
TRAIN := $(DEV)/bin/sfumato train embedded
SOURCES := $(shell find src -type f -not -name '*.pyc' 2>/dev/null)

# 3.11 first: the versions in constraints.txt were tested with it.
PYTHON ?= $(shell for python in python3.11 python3.12 python3.13 python3.14 python3; do \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

define make_environment
	@test -n "$(PYTHON)" || { echo "error: Python 3.11 or newer is needed; install it, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(1)/bin/pip || "$(PYTHON)" -m venv $(1) || { rm -rf $(1); \
		echo "error: $(PYTHON) cannot make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
endef

.PHONY: help image venv test lint types format data models train clean
.DELETE_ON_ERROR:

help:
	@sed -n 's/^#   //p' Makefile

image: export SFUMATO_PROMPT = $(PROMPT)
image: $(RUN)/.installed
	@$(RUN)/bin/sfumato generate "$$SFUMATO_PROMPT" $(ARGS)

venv: $(DEV)/.installed

test: $(DEV)/.installed
	OMP_NUM_THREADS=1 $(DEV)/bin/python -m pytest -n 2 --dist loadfile -q $(TESTS)

lint: $(DEV)/.installed
	$(DEV)/bin/ruff check .
	$(DEV)/bin/ruff format --check .

types: $(DEV)/.installed
	$(DEV)/bin/mypy

format: $(DEV)/.installed
	$(DEV)/bin/ruff check --fix .
	$(DEV)/bin/ruff format .

data: $(DEV)/.installed
	$(DEV)/bin/sfumato train embedded data $(DATA)

# The trained checkpoints that do not ship in the package, as models that `-m NAME` finds.
models: $(DEV)/.installed
	@folder="$$($(DEV)/bin/python -c 'from sfumato.artifact import models_folder; print(models_folder())')"; \
	for name in $(CONVERTED); do \
		$(DEV)/bin/sfumato models verify $$name >/dev/null 2>&1 \
			|| $(DEV)/bin/sfumato convert models/$$name "$$folder/$$name" --vae models/mini/vae || exit 1; \
	done

# The whole training, in order: pictures, autoencoder, models, few-step LoRAs, evaluator, and what ships.
# What was interrupted goes on where it stopped.
train: data
	$(TRAIN) vae runs/vae --data $(DATA)
	$(TRAIN) vae runs/decoder --data $(DATA) --start runs/vae/vae --freeze-encoder --steps 3000 --rate 1e-3 --seed 1
	$(TRAIN) vae runs/fine --data $(DATA) --start runs/decoder/vae --steps 3500 --rate 3e-4 --seed 2
	$(TRAIN) vae runs/smooth --data $(DATA) --start runs/fine/vae --freeze-encoder --latent-noise 0.5 \
		--steps 1000 --rate 3e-4 --seed 3
	$(TRAIN) vae runs/corners --data $(DATA) --start runs/smooth/vae --freeze-encoder --latent-noise 0.5 \
		--corners 12 --steps 2000 --rate 4e-4 --seed 4
	$(TRAIN) tiny-vae runs/tiny --data $(DATA) --vae runs/corners/vae
	$(TRAIN) evaluator runs/evaluator --data $(DATA)
	$(TRAIN) diffusion mini runs/mini --data $(DATA) --vae runs/fine/vae --batch 64 --steps 21200 \
		--common-share 0.4
	$(TRAIN) diffusion mini-sd runs/mini-sd --data $(DATA) --vae runs/fine/vae --start runs/mini/model \
		--batch 64 --steps 21700 --common-share 0.3
	$(TRAIN) diffusion mini-xl runs/mini-xl --data $(DATA) --vae runs/fine/vae --start runs/mini/model \
		--start runs/mini-sd/model --batch 64 --steps 23000 --common-share 0.3
	$(TRAIN) diffusion mini-xl-refiner runs/mini-xl-refiner --data $(DATA) --vae runs/fine/vae \
		--start runs/mini-sd/model --start runs/mini/model --batch 64 --steps 2700 --common-share 0.3
	$(TRAIN) diffusion mini-vega runs/mini-vega --data $(DATA) --vae runs/fine/vae --start runs/mini-xl/model \
		--teacher runs/mini-xl/model --batch 64 --steps 3250 --rate 6e-4 --matrix-rate 1e-2 --common-share 0.3
	rm -rf models/mini models/mini-sd models/mini-xl models/mini-vega models/mini-xl-refiner models/tiny-vae src/sfumato/embedded/mini
	cp -r runs/tiny/tiny models/tiny-vae
	$(TRAIN) package mini runs/mini/model models/mini --vae runs/corners/vae
	$(TRAIN) package mini-sd runs/mini-sd/model models/mini-sd --vae runs/corners/vae
	$(TRAIN) package mini-xl runs/mini-xl/model models/mini-xl --vae runs/corners/vae
	$(TRAIN) package mini-vega runs/mini-vega/model models/mini-vega --vae runs/corners/vae
	$(TRAIN) package mini-xl-refiner runs/mini-xl-refiner/model models/mini-xl-refiner
	$(DEV)/bin/sfumato train distill models/mini runs/mini-lora --data $(DATA) --steps 400 --rank 32
	$(DEV)/bin/sfumato train distill models/mini-sd runs/mini-sd-lora --method segments --data $(DATA) \
		--steps 320 --rank 32
	for name in mini-xl mini-vega; do \
		$(DEV)/bin/sfumato train distill models/$$name runs/$$name-lora --method segments --data $(DATA) \
			--steps 200 --rank 16 || exit 1; \
	done
	$(DEV)/bin/sfumato convert models/mini src/sfumato/embedded/mini --without-t5

clean:
	rm -rf $(RUN) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(RUN)/.installed: pyproject.toml constraints.txt $(SOURCES)
	$(call make_environment,$(RUN))
	@$(RUN)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt . >&2
	@touch $@

$(DEV)/.installed: pyproject.toml constraints.txt
	$(call make_environment,$(DEV))
	$(DEV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
