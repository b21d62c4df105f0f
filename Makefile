# What a developer does here. Everything works on a bare Debian machine as root: what is missing is installed.
# For an ordinary user nothing is installed; the output names the missing packages.

.DEFAULT_GOAL := help
SHELL := /bin/sh
.SHELLFLAGS := -eu -c

PY := .venv/bin/python
INSTALL_TOOLS := tests/harness/install-tools
# An su's PATH has no /usr/sbin, where Debian keeps ip and nginx.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
export PIP_NO_INPUT := 1

.PHONY: help
help:  ## show this
	@echo "make demo     a tunnel between two machines, set up and shown working, in under a minute"
	@echo "make test     every test, with branch coverage; ARGS='-k words' is handed to pytest"
	@echo "make fuzz     every parser under a fuzzer, FUZZ_SECONDS (30) each"
	@echo "make soak     200 random faults during a checked stream, within ten minutes; SEED=1 FAULTS=200"
	@echo "make bench    the tunnel compared with a relay in C and with no tunnel, in ten minutes; BENCH=quick: two"
	@echo "make bench-scaling   a server with many clients, many routes, a slow client among equal ones, reloads"
	@echo "make bench-streams   one pair of streams against four on long paths that lose packets, in an hour; BENCH=quick: three minutes"
	@echo "make screenshots   the panel's pictures in docs, anew, of a running server; three minutes"
	@echo "make packages wheel, sdist, tapotun.pyz and Debian package, in dist/; or one: make dist, make pyz, make deb"
	@echo "make schema   renew conf/tapotun.schema.json, which editors check configs with"
	@echo "make check    ruff, the format, mypy"
	@echo "make format   put the code into its format"
	@echo "make venv     .venv with the program and the developers' tools"
	@echo "make clean    remove what these have made"
	@echo
	@echo "demo, test, soak, bench and screenshots need root, for namespaces and TUN interfaces, and touch nothing outside their namespaces."

# .venv is renewed when pyproject.toml or the place of this checkout has changed. The stamp holds both, which
# says more than its date: a date does not survive a copy or a clone.
# $(1): the extras to install, $(2): the stamps that will do
define make_venv
	@wanted="$$(pwd; cat pyproject.toml)"; \
	for stamp in $(2); do \
	    if [ -x $(PY) ] && [ "$$(cat "$$stamp" 2>/dev/null)" = "$$wanted" ]; then exit 0; fi; \
	done; \
	$(INSTALL_TOOLS) python; \
	if ! $(PY) -m pip --version >/dev/null 2>&1; then \
	    rm -rf .venv; \
	    "$$($(INSTALL_TOOLS) which-python)" -m venv .venv; \
	fi; \
	echo "installing the program into .venv..."; \
	$(PY) -m pip install --quiet --editable '.$(1)'; \
	printf '%s\n' "$$wanted" >$(firstword $(2))
endef

.PHONY: venv
venv:  ## the program, editable, and the developers' tools
	$(call make_venv,[dev],.venv/.installed-dev)

.PHONY: venv-run
venv-run:
	$(call make_venv,,.venv/.installed-run .venv/.installed-dev)

.PHONY: demo
demo:
	@$(INSTALL_TOOLS) demo
	@$(MAKE) --no-print-directory venv-run
	@$(PY) -m tools.demo $(ARGS)

# The daemons that the tests start are measured too (tests/harness/daemon.py); pytest-cov combines the files. Most tests
# wait rather than compute, so two at a time take half as long; ARGS='-n 0' runs them one by one.
.PHONY: test
test:
	@$(INSTALL_TOOLS) test
	@$(MAKE) --no-print-directory venv
	@rm -f .coverage .coverage.*
	@TAPOTUN_COVERAGE=1 $(PY) -m pytest --cov --cov-branch --cov-report=term:skip-covered \
	    -n auto --maxprocesses 4 --dist loadfile $(ARGS)

# atheris has wheels for some versions of Python only, so it is no part of [dev].
.PHONY: fuzz
fuzz: venv
	@$(PY) -c 'import atheris' 2>/dev/null || $(PY) -m pip install --quiet --only-binary :all: 'atheris>=3.0'
	@$(PY) -m fuzz

SEED ?= 1
FAULTS ?= 200

.PHONY: soak
soak:
	@$(INSTALL_TOOLS) test
	@$(MAKE) --no-print-directory venv
	@$(PY) -m tools.soak --seed $(SEED) --faults $(FAULTS) $(ARGS)

# full or quick; where the C relay's source is (it is no part of this project); where the results go.
BENCH ?= full
CRELAY ?= ../shared/bench/crelay.c
BENCH_OUT ?= build/bench

# The plot's library is large, so it is no part of [dev].
.PHONY: bench
bench:
	@test -f '$(CRELAY)' || { echo "make bench: no $(CRELAY), the C relay to compare with: say where it is, CRELAY=/path/crelay.c" >&2; exit 1; }
	@$(INSTALL_TOOLS) bench
	@$(MAKE) --no-print-directory venv
	@$(PY) -c 'import matplotlib' 2>/dev/null || $(PY) -m pip install --quiet --editable '.[bench]'
	@$(PY) -m bench --plan '$(BENCH)' --crelay '$(CRELAY)' --out '$(BENCH_OUT)' $(ARGS)

.PHONY: bench-scaling
bench-scaling:
	@$(INSTALL_TOOLS) bench
	@$(MAKE) --no-print-directory venv
	@$(PY) -m bench.scaling --out '$(BENCH_OUT)' $(ARGS)

.PHONY: bench-streams
bench-streams:
	@$(INSTALL_TOOLS) bench
	@$(MAKE) --no-print-directory venv
	@$(PY) -m bench.streams --plan '$(BENCH)' --out '$(BENCH_OUT)' $(ARGS)

.PHONY: screenshots
screenshots:
	@$(INSTALL_TOOLS) test
	@$(MAKE) --no-print-directory venv
	@$(PY) -m tools.screenshots --out docs $(ARGS)

# What is made is dated with the last commit, so that the same commit makes the same bytes.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 315532800)
DEB_ARCH ?= $(shell dpkg --print-architecture 2>/dev/null || echo amd64)

.PHONY: packages
packages: dist pyz deb

.PHONY: dist
dist: venv
	@$(PY) -m build --outdir dist

.PHONY: pyz
pyz: venv
	@$(PY) packaging/build_pyz.py

.PHONY: deb
deb: venv
	@$(INSTALL_TOOLS) deb
	@$(PY) packaging/build_deb.py --architecture '$(DEB_ARCH)'

.PHONY: man
man: venv
	@$(PY) packaging/manpages.py

.PHONY: schema
schema: venv
	@$(PY) -m tapotun_trio schema >conf/tapotun.schema.json

.PHONY: check
check: venv
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@MYPYPATH=packaging $(PY) -m mypy packaging/*.py
	@$(PY) -m mypy packaging/pyz/*.py

.PHONY: format
format: venv
	@$(PY) -m ruff check --fix-only --quiet .
	@$(PY) -m ruff format .

.PHONY: clean
clean:
	@rm -rf .venv build dist .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
