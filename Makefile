# The commands of the README. Everything runs in VENV, which they make; wheel in
# .venv-wheel. What is installed there is for tools/install.sh to say: TORCH= and
# NUMPY= name other versions.
VENV ?= .venv
PYTHON ?= python3
PACKAGES ?= openmmlab
RUN = $(VENV)/bin/python
INSTALLED = $(VENV)/.installed
# Without what has to be compiled, unless that is there: see tools/install.sh.
LITE = $(firstword $(wildcard $(INSTALLED)) $(VENV)/.lite)
# The suite runs in JOBS processes of one thread each: what it computes is small.
# Files come in their order: sorted by how many tests they have, those of a few
# long ones would come last, and one process wait for the other.
JOBS ?= 2
SUITE = -m pytest -m 'not slow and not gpu' -n $(JOBS) --dist loadfile \
    --no-loadscope-reorder
CSRC = pelk_mm/ops/backends/csrc
CXX_FILES = $(CSRC)/*.h $(CSRC)/*.cpp $(CSRC)/*.inc tests/native/*.h tests/native/*.cpp
INSTALL = PYTHON=$(PYTHON) TORCH=$(TORCH) NUMPY=$(NUMPY) bash tools/install.sh
WHAT_IT_NEEDS = $(wildcard requirements/*.txt) setup.cfg tools/install.sh

.PHONY: help install demo demo-classification demo-detection test test-slow \
        test-gpu bench-gpu test-onedl test-newest test-oldest test-lite test-no-compiler \
        coverage doctor lint sanitize wheel clean

help:
	@echo 'make demo                 train and draw UperNet + PeLK on digit scenes'
	@echo 'make demo-classification  the same for ImageNet-style classification'
	@echo 'make demo-detection       the same for Cascade Mask R-CNN'
	@echo 'make install              .venv with torch, OpenMMLab and pelk_mm; compiles'
	@echo '                          mmcv, which the demos but detection do without'
	@echo 'make test                 the test suite, six minutes on two cores (make'
	@echo '                          test-slow: the long ones, make test-gpu: those'
	@echo '                          that need a GPU)'
	@echo 'make bench-gpu            all that a GPU has to show, into work_dirs/gpu'
	@echo 'make test-STACK           the test suite in an environment .venv-STACK of'
	@echo '                          its own: test-onedl with the maintained fork of the'
	@echo '                          OpenMMLab packages, test-newest and test-oldest'
	@echo '                          with the newest and the oldest torch,'
	@echo '                          test-python3.13 (or 3.10 to 3.12) with that Python;'
	@echo '                          test-lite with mmcv-lite, for what runs with it;'
	@echo '                          test-no-compiler as if .venv had no C++ compiler'
	@echo 'make doctor               what .venv is made of, and what is wrong there'
	@echo 'make coverage             the test suite, and what of pelk_mm/ it runs'
	@echo 'make lint                 style, types, who imports whom, C++ warnings'
	@echo 'make sanitize             the C++ kernels under sanitizers; minutes'
	@echo 'make wheel                dist/: the sdist and the wheels'
	@echo 'make docs                 the documents as a site, in site/'

install: $(INSTALLED)

$(INSTALLED): $(WHAT_IT_NEEDS)
	$(INSTALL) $(VENV) $(PACKAGES)

$(VENV)/.lite: $(WHAT_IT_NEEDS)
	$(INSTALL) --lite $(VENV) $(PACKAGES)

demo: $(LITE)
	$(RUN) tools/demo.py segmentation

demo-classification: $(LITE)
	$(RUN) tools/demo.py classification

demo-detection: $(INSTALLED)
	$(RUN) tools/demo.py detection

test test-lite: export OMP_NUM_THREADS = 1
test: $(INSTALLED)
	$(RUN) $(SUITE) $(ARGS)

test-slow: $(INSTALLED)
	$(RUN) -m pytest -m 'slow and not gpu' $(ARGS)

# cuBLAS reads it once a process; equal runs need it for equal bits.
test-gpu: export CUBLAS_WORKSPACE_CONFIG = :4096:8
test-gpu: $(INSTALLED)
	$(RUN) -m pytest -m gpu $(ARGS)

bench-gpu: $(INSTALLED)
	PYTHON=$(RUN) bash tools/benchmarks/on_gpu.sh

# Other stacks, see docs/versions.md.
test-onedl:
	$(MAKE) test VENV=.venv-onedl PACKAGES=onedl

test-newest:
	$(MAKE) test VENV=.venv-newest TORCH=2.15.0 NUMPY=2.4.6

test-oldest:
	$(MAKE) test VENV=.venv-oldest PYTHON=python3.10 TORCH=2.4.1 NUMPY=1.26.4

test-python3.%:
	$(MAKE) test VENV=.venv-python3.$* PYTHON=python3.$*

# What needs no compiled operators of mmcv, which take long to build.
LITE_TESTS = tests/ops tests/models tests/deployment tests/doctor tests/test_compat.py
test-lite:
	$(INSTALL) --lite .venv-lite
	.venv-lite/bin/python -m pip install -q -c .venv-lite/constraints.txt \
	    -r requirements/tests.txt -r requirements/deploy.txt
	.venv-lite/bin/python $(SUITE) $(LITE_TESTS) $(ARGS)

# CXX names no program, and an empty cache has no kernels that were compiled before.
test-no-compiler: $(INSTALLED)
	CXX=none XDG_CACHE_HOME=$$(mktemp -d) $(MAKE) test

doctor: $(LITE)
	$(RUN) -m pelk_mm.doctor

# Processes that tests start, wherever they run, write files of their own next
# to this one; the numbers are those of all of them.
coverage: export COVERAGE_FILE = $(CURDIR)/.coverage
coverage: $(INSTALLED)
	$(RUN) -m coverage erase
	$(RUN) -m coverage run -m pytest -m 'not slow and not gpu' $(ARGS)
	$(RUN) -m coverage combine -q
	$(RUN) -m coverage report

lint: $(INSTALLED)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports
	$(VENV)/bin/clang-format --dry-run --Werror $(wildcard $(CXX_FILES))
	$(RUN) -m tests.native.builds lint

sanitize: $(INSTALLED)
	$(RUN) -m tests.native.builds sanitize

wheel:
	PYTHON=$(PYTHON) bash tools/wheels.sh

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache \
	    .import_linter_cache

# In an environment of its own, which needs no torch: docstrings are read, not
# imported. Fails on a link or a reference that leads nowhere.
DOCS ?= .venv-docs
docs: export NO_MKDOCS_2_WARNING = 1
docs: $(DOCS)/.installed
	$(DOCS)/bin/mkdocs build
	@echo 'site/index.html, or with a search: $(DOCS)/bin/mkdocs serve'

$(DOCS)/.installed: requirements/docs.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/pip install -q -r $<
	touch $@
.PHONY: docs
