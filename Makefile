# make install | demo | test | test-clusters | sanitize | test-arm | lint | quality | bench | docs: each installs into .venv first if it must.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PIP := $(BIN)/pip --disable-pip-version-check -qq
# Documents of the demo's corpus.
DEMO_DOCS ?= 4000
# Collections that `make quality` measures: folders in the BEIR layout, in RAY_LIR_DATA.
COLLECTIONS ?= scifact nfcorpus cranfield cisi
# What else `make bench` says to bench.compare: BENCH="--sizes small --queries 20 --batch 20".
BENCH ?=

.PHONY: install demo test test-clusters sanitize test-arm lint quality papers-smoke bench docs
install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@python=; for candidate in $(PYTHON) python3.11 python3.12 python3.13 python3; do \
	    $$candidate -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && python=$$candidate && break; \
	done; \
	if [ -z "$$python" ]; then \
	    echo 'error: no Python 3.11 or newer with venv; on Debian: apt-get install python3.11 python3.11-venv' >&2; exit 1; \
	fi; \
	echo "install: making $(VENV) with $$($$python --version)" && $$python -m venv $(VENV)
	@echo 'install: torch (1 of 2)' && $(PIP) install "$$(grep '^torch==' constraints.txt)"
	@echo 'install: the other packages of constraints.txt; this takes two or three minutes (2 of 2)'
	@$(PIP) install -c constraints.txt scikit-build-core nanobind cmake ninja
	@$(PIP) install -c constraints.txt --no-build-isolation -e '.[dev]'
	@touch $@ && echo 'install: done; . $(BIN)/activate, then ray-lir --help'

demo: $(INSTALLED)
	$(BIN)/python -m jobs.demo --output demo --num-docs $(DEMO_DOCS)

test: $(INSTALLED)
	$(BIN)/python -m pytest -m "not ray" -n 2 --dist loadfile
	$(BIN)/python -m pytest -m "ray and not clusters"

# Each file in a process of its own: a process whose cluster is gone may be ended by Ray a minute later.
test-clusters: $(INSTALLED)
	for tests in $$(grep -l 'mark.clusters' tests/cluster/test_*.py); do $(BIN)/python -m pytest -m clusters $$tests || exit 1; done

# The compiled kernels under AddressSanitizer and UBSan, fuzzed with random shapes against the reference.
sanitize: $(INSTALLED)
	$(BIN)/cmake -G Ninja -S . -B build/sanitize -DRAY_LIR_SANITIZE=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	    -DPython_EXECUTABLE=$(abspath $(BIN)/python) -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja) \
	    -DRAY_LIR_EMULATE=$(if $(wildcard /usr/include/simde/x86/avx512.h),ON,OFF)
	$(BIN)/cmake --build build/sanitize
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
	    UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 $(BIN)/python -m tests.sanitized build/sanitize/ray_lir_native*.so -q -s

# The NEON kernels under QEMU: needs g++-aarch64-linux-gnu and qemu-user-static.
test-arm: $(INSTALLED)
	sh tests/emulation/arm.sh build/arm

lint: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports
	$(BIN)/mypy

quality: $(INSTALLED)
	@test -n "$(RAY_LIR_DATA)" || { echo 'error: set RAY_LIR_DATA to the folder that holds $(COLLECTIONS)' >&2; exit 1; }
	$(BIN)/python -m bench.quality $(addprefix $(RAY_LIR_DATA)/,$(COLLECTIONS))

# Every table and figure of the papers on tiny data: the commands run, and figures are drawn (`python -m bench.papers --list` names them).
papers-smoke: $(INSTALLED)
	folder=$$(mktemp -d) && $(BIN)/python -m bench.papers --smoke $$folder && rm -r $$folder

bench: $(INSTALLED)
	@test -n "$(RAY_LIR_DATA)" || { echo 'error: set RAY_LIR_DATA to the folder that holds scifact' >&2; exit 1; }
	@$(BIN)/python -c 'import matplotlib' 2>/dev/null || $(PIP) install -c constraints.txt --no-build-isolation -e '.[bench]'
	$(BIN)/python -m bench.compare --dataset $(RAY_LIR_DATA)/scifact $(BENCH)

# The documentation site in build/site; it needs no resources from other hosts.
docs: $(INSTALLED)
	@$(BIN)/python -c 'import material, mkdocstrings' 2>/dev/null || $(PIP) install -c constraints.txt --no-build-isolation -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --clean
