PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
.PHONY: demo test check docs clean

# the stamp is newer than pyproject.toml once everything in it is installed
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("wsss-affinity needs Python 3.10 or newer, this is " + sys.version.split()[0]) if sys.version_info < (3, 10) else None'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet -e '.[dev]'
	touch $@

demo: $(VENV)/.installed ## image-level labels to pseudo-masks on generated pictures
	$(RUN) -m wsss_affinity $(ARGS)

# two processes of one thread: what most tests compute is too small to share
test: $(VENV)/.installed ## the default tests
	OMP_NUM_THREADS=1 $(RUN) -m pytest -n 2 --dist loadfile $(ARGS)

check: $(VENV)/.installed ## formatting, rules and types
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy

docs: $(VENV)/.installed ## the site, in build/docs
	$(RUN) -m sphinx -W --keep-going -b html -d build/doctrees docs build/docs $(ARGS)

clean:
	rm -rf $(VENV) outputs build
