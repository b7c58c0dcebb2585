# make repro   set up, run the pipeline, print where the report is
# make site    set up, build the pages of every suite from the records in git
# make test    set up, check, test
# make setup   the part of both that makes .venv
VENV ?= .venv
PYTHON ?= python3
# Coverage makes tests on fake tensors slower by two thirds: measured where CI=true is set.
COVERAGE = $(if $(CI),--cov --cov-report=term:skip-covered --cov-fail-under=92)
export PATH := $(abspath $(VENV))/bin:$(PATH)

.PHONY: setup repro site test bench lock clean

setup: $(VENV)/.complete

$(VENV)/.complete: requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed, this is " + sys.version.split()[0] + "; say which one with PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	# The lock is complete, so that nothing is resolved; every file must have one of its hashes.
	python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r requirements.lock
	# Only for the command glnet-bench; the warning is about folders of the packages' names, which are meant here.
	PYTHONWARNINGS=ignore python -m pip install --quiet --disable-pip-version-check --no-deps \
	  --no-build-isolation --editable .
	@touch $@

repro: setup
	python -m bench.pipeline.mend
	dvc repro
	@echo "Report: $(CURDIR)/site/$$(sed -n 's/^suite: *//p' params.yaml)/index.html"

site: setup
	for bundle in submissions/*.zip; do \
	  test ! -e "$$bundle" || glnet-bench verify --install "$$bundle" || exit 1; \
	done
	for folder in results/*/evaluate; do \
	  python -m bench.report "suites/$$(basename "$$(dirname "$$folder")").yaml" || exit 1; \
	done

test: setup
	ruff check --quiet .
	ruff format --check --quiet .
	mypy
	# Two test processes share two cores: a thread that waits must not spin on the other's.
	OMP_WAIT_POLICY=passive python -m pytest --numprocesses 2 --dist worksteal --benchmark-disable $(COVERAGE)

bench: setup
	python -m pytest --benchmark-only

# One lock with hashes for all systems and Python versions. Versions in it are kept, `make lock UPGRADE=--upgrade` takes
# new ones. Hashes are of the files on PyPI, and no index address is written.
lock:
	uv pip compile pyproject.toml --extra dev --extra cluster --universal --python-version 3.11 --generate-hashes \
	  --no-annotate --no-header --quiet $(UPGRADE) --output-file requirements.lock

clean:
	rm -rf $(VENV)
