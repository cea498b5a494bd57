# `make vqa` and `make test` each do everything on a fresh clone; python3 and make are all they need. `make test` leaves
# out the slow proofs, which `make test-all` has, too.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: vqa test test-all test-browser lint format clean

# One stamp for the environment: it is made again when the dependencies change.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, found " + sys.version) if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all]'
	touch $@

vqa: $(VENV)/.installed
	$(BIN)/python -m tasks.vqa fit --config configs/vqa.yaml --trainer.default_root_dir runs/vqa --overwrite true
	$(BIN)/python -m tasks.vqa test --checkpoint runs/vqa/model --trainer.default_root_dir runs/vqa
	$(BIN)/python -m tasks.vqa predict --checkpoint runs/vqa/model --input demo --output runs/vqa/answers.jsonl
	$(BIN)/python -m tasks.vqa explain --checkpoint runs/vqa/model --input demo --output runs/vqa/explanations

PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: lint
	$(PYTEST) -m "not slow and not browser"

test-all: lint
	$(PYTEST) -m "not browser"

# Needs a Chromium, e.g. of the package chromium of Debian; without one the tests are skipped.
test-browser: $(VENV)/.installed
	$(BIN)/python -m pytest -m browser tests/browser

lint: $(VENV)/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy -p mmattn

format: $(VENV)/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) runs build *.egg-info
