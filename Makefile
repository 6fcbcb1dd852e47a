# Every target sets itself up: a fresh machine needs Python 3.11 or newer, make, and a package index.
#   make book VENV=/path/to/env    use another environment     make book PYTHON=python3.12    use another Python
VENV ?= .venv
PORT ?= 8000
MINUTES ?= 5
BIN := $(VENV)/bin
READY := $(VENV)/.iekd-ready
OURS := $(VENV)/.iekd-made-by-make
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
# Complains about an environment whose editable iekd is that of another checkout: it would be pointed at this one, behind its back.
OF_ANOTHER := import json, os, sys; from pathlib import Path; from urllib.parse import unquote, urlparse; \
	found = [json.loads(f.read_text()) for f in Path(sys.argv[1]).glob("lib/*/site-packages/iekd-*.dist-info/direct_url.json")]; \
	folders = [unquote(urlparse(d["url"]).path) for d in found if d.get("dir_info", {}).get("editable")]; \
	others = [f for f in folders if os.path.isdir(f) and not os.path.samefile(f, ".")]; \
	sys.exit(sys.argv[1] + " is the environment of " + others[0] + ": name another one, make ... VENV=/path/to/env" if others else 0)
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && { echo $$p; break; }; done)

.DEFAULT_GOAL := help
.PHONY: help setup ours book site browse test torture bench serve check clean distclean

help: ## show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup: $(READY) ## make the environment in .venv (the other targets do it when needed)

# Two makes side by side: the second waits here, and then finds what the first has made.
ifndef HELD
$(READY): pyproject.toml | ours
	@$(or $(PYTHON),false) -c '$(NEW_ENOUGH)' || \
	{ echo "Python 3.11 or newer is needed (found: $(or $(PYTHON),none)). Name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) .ci/one-at-a-time $(MAKE) --silent HELD=1 PYTHON='$(PYTHON)' $@
else
# The stamp is written last and removed first. Without it an environment of ours is half made, and is made anew;
# an environment that somebody else made is never emptied.
$(READY): pyproject.toml | ours
	@if [ -e $(OURS) ] && [ ! -e $@ ]; then echo "An earlier set-up was interrupted: starting again."; rm -rf $(VENV); fi
	@if [ ! -e $(BIN)/python ]; then echo "Making $(VENV) with $(PYTHON) ..."; \
	mkdir -p $(VENV) && touch $(OURS) && $(PYTHON) -m venv $(VENV); fi
	@rm -f $@
	@echo "Installing the packages in $(VENV); the first time this takes some minutes ..."
	$(BIN)/python -m pip install --disable-pip-version-check -e ".[book,dev]"
	@touch $@
endif

ours:
	@$(or $(PYTHON),true) -c '$(OF_ANOTHER)' $(VENV)

# After a failure the pages are read again next time; otherwise Sphinx forgets its warnings and calls them good.
book: $(READY) ## build the book in _build/html
	$(BIN)/jupyter-book build book --config _config.yml --path-output . -W -n --keep-going || \
	{ rm -rf _build/.doctrees; exit 1; }
	@$(BIN)/python -c 'from pathlib import Path; print("\nThe book:", Path("_build/html/index.html").resolve().as_uri())'

# Links are relative, so it may lie in any folder of the host. GitHub leaves out folders like _static, unless .nojekyll is there.
site: book ## the book as a folder for any static host: _build/site
	@rm -rf _build/site && cp -R _build/html _build/site
	@rm -f _build/site/.buildinfo && find _build/site/_static -name '*.map' -delete && touch _build/site/.nojekyll
	@echo "For any static host: _build/site"

browse: $(READY) ## check the built book in Chromium: accessibility, script errors, phones
	$(BIN)/python -m pytest -ra tests/browser

# A process a core; the tests of one file share what they train. Files in the order of tests/conftest.py.
test: $(READY) ## run the tests
	$(BIN)/python -m pytest -n logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder

torture: $(READY) ## kill sweeps at random and check that nothing is lost (MINUTES=5)
	$(BIN)/python tests/torture.py --minutes $(MINUTES)

bench: $(READY) ## measure the engine against the usual loop, on this machine (10 minutes)
	$(BIN)/iekd bench

serve: ## serve the built book on http://localhost:8000 (PORT=...)
	@test -f _build/html/index.html || { echo "There is no book yet: make book" >&2; exit 1; }
	@echo "The book: http://localhost:$(PORT)/ (stop with Ctrl-C)"
	@$(or $(PYTHON),python3) -m http.server --bind 127.0.0.1 --directory _build/html $(PORT)

check: $(READY) ## lint: ruff, types, import directions, and notebooks without outputs
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/nbstripout --verify book/*.ipynb

clean: ## remove the built book and the caches of the tools
	rm -rf _build .pytest_cache .ruff_cache

distclean: ours clean ## remove .venv as well
	@if [ -e $(OURS) ]; then rm -rf $(VENV); fi
