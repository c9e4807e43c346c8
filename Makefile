# Everything a newcomer needs: `make serve` to use it, `make test` to change it. Paths are relative, so a folder with
# spaces in its name is fine; a stamp file marks what is installed, so nothing is done twice.

PYTHON ?= python3
CLIENTS := scale-gp scale-gp-beta openai langchain-openai lm-eval node
PEERS := litellm
SDKS := anthropic cohere fireworks-ai google-genai groq mistralai ollama together

PY := .venv/bin/python
UV := .venv/bin/uv
PIP_INSTALL := $(PY) -m pip install --quiet --quiet --disable-pip-version-check
RUNTIME := .venv/.runtime-installed
DEV := .venv/.dev-installed
CLIENT_STAMPS := $(CLIENTS:%=.venvs/%/.installed) $(SDKS:%=.venvs/%/.installed)
NODE_MODULES := tests/clients/node/node_modules/.package-lock.json

.PHONY: help install serve test check audit format soak bench docs prices lock model clients chromium proxies clean

help:  ## show this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' Makefile | sort | while IFS="$$(printf '\t')" read -r name what; do \
	  printf '  make %-8s %s\n' "$$name" "$$what"; done

install: $(RUNTIME)  ## make .venv, with .venv/bin/andthen in it

serve: $(RUNTIME)  ## install what is missing and start the server (PORT=…, HOST=…, ARGS="--model NAME=PATH")
	@exec .venv/bin/andthen serve $(if $(PORT),--port "$(PORT)") $(if $(HOST),--host "$(HOST)") $(ARGS)

test: $(DEV) clients chromium proxies  ## install what is missing and run the whole suite (ARGS="-k name")
	$(PY) -m pytest $(ARGS)

check: $(DEV)  ## lint, types, floors, sizes, freshness of the docs and of the prices
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports
	$(PY) -m checks.sizes
	$(PY) -m checks.docs
	$(PY) -m checks.prices

audit: .venvs/pip-audit/.installed  ## ask PyPI which of the locked versions have known vulnerabilities
	.venvs/pip-audit/bin/pip-audit --strict --disable-pip --require-hashes \
	  -r requirements/runtime.txt -r requirements/build.txt -r requirements/dev.txt $(ARGS)

format: $(DEV)  ## put the code into its form
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

soak: $(DEV) $(PEERS:%=.venvs/%/.installed)  ## the tests that take longer than a test may
	$(PY) -m pytest -m soak $(ARGS)

bench: $(DEV)  ## measure the engine beside its peers, and write docs/bench.md
	$(PY) -m bench $(ARGS)

docs: $(DEV)  ## print the tables in README and docs anew from the code
	$(PY) -m checks.docs --write

prices: $(DEV)  ## make the table of prices anew from the genai-prices that is locked
	$(PY) -m checks.prices --write

lock: $(DEV)  ## resolve requirements/*.txt again (ARGS="--upgrade")
	$(PY) -m checks.lock $(ARGS)

model: .venvs/training/.installed  ## train the model that ships (CORPUS=DIR OUT=DIR RECIPE=tale-cpu ARGS="--minutes 8")
	@test -n "$(CORPUS)" -a -n "$(OUT)" || { echo "Say where the text is and where results go: training/README.md" >&2; exit 2; }
	.venvs/training/bin/python -m training training/recipes/$(or $(RECIPE),tale-cpu).toml --corpus "$(CORPUS)" \
	  --out "$(OUT)" --compile $(ARGS)

clean:  ## remove everything that make made
	rm -rf .venv .venvs tests/clients/node/node_modules build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis \
	  .import_linter_cache .grimp_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo \
	  "andthen needs Python 3.11 or newer, and '$(PYTHON)' is not. Name another: make PYTHON=python3.12 …" >&2; exit 1; }
	@$(PYTHON) -m venv .venv || { echo \
	  "'$(PYTHON) -m venv' failed; on Debian and Ubuntu: apt-get install python3-venv" >&2; rm -rf .venv; exit 1; }
	@touch $@

$(RUNTIME): requirements/runtime.txt requirements/build.txt pyproject.toml | .venv/.made
	@echo "Installing what requirements/runtime.txt locks into .venv …" >&2
	@$(PIP_INSTALL) --require-hashes -r requirements/runtime.txt -r requirements/build.txt
	@$(PIP_INSTALL) --no-index --no-deps --no-build-isolation --editable .
	@touch $@

$(DEV): requirements/dev.txt $(RUNTIME)
	@echo "Installing what requirements/dev.txt locks into .venv …" >&2
	@$(PIP_INSTALL) --require-hashes -r requirements/dev.txt
	@touch $@

clients: $(DEV)
	@$(MAKE) --no-print-directory --silent --jobs=4 $(CLIENT_STAMPS) $(NODE_MODULES)

.venvs/%/.installed: requirements/client-%.txt | $(DEV)
	@echo "Installing what $< locks into .venvs/$* …" >&2
	@$(UV) venv --quiet --clear --python $(PY) .venvs/$*
	@$(UV) pip install --quiet --require-hashes --python .venvs/$*/bin/python -r $<
	@touch $@

.venvs/training/.installed: training/requirements.in pyproject.toml | .venv/.made
	@echo "Installing PyTorch and what else training needs into .venvs/training: some gigabytes …" >&2
	@$(PY) -m venv .venvs/training
	@.venvs/training/bin/python -m pip install --quiet --disable-pip-version-check -e . -r training/requirements.in
	@touch $@

$(NODE_MODULES): tests/clients/node/package-lock.json .venvs/node/.installed
	@cd tests/clients/node && PATH="../../../.venvs/node/bin:$$PATH" npm ci --silent --no-audit --no-fund --ignore-scripts
	@touch $@

chromium:
	@command -v chromium chromium-browser google-chrome >/dev/null || \
	  { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get -qq update && \
	    DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends chromium >/dev/null; } || \
	  { echo "The page is tested in Chromium, and none is here. Install it: apt-get install chromium" >&2; exit 1; }

# RUNLEVEL=1: the packages bring services, which are not to be started.
proxies:
	@PATH="$$PATH:/usr/sbin"; { command -v nginx && command -v caddy; } >/dev/null || \
	  { test "$$(id -u)" = 0 && command -v apt-get >/dev/null && apt-get -qq update && RUNLEVEL=1 \
	    DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes --no-install-recommends nginx-light caddy >/dev/null; } || \
	  { echo "The server is tested behind nginx and Caddy, and one is missing. Install both: apt-get install nginx-light caddy" >&2; exit 1; }
