# Two commands for a newcomer: `make demo` renders an image in a real ComfyUI, `make test` runs the tests.
PYTHON ?= python3
VENV_PYTHON = .host/venv/bin/python
HOST_PYTHON = $(VENV_PYTHON)
# Compiled files are kept: ComfyUI and the tests are loaded by many processes.
PYTEST = PYTHONDONTWRITEBYTECODE= TMPDIR=$(CURDIR)/.host/cache/tmp OMP_NUM_THREADS=1 $(HOST_PYTHON) -m pytest \
  -n 3 --dist loadfile --no-loadscope-reorder --basetemp=.host/cache/pytest
BROWSER = tests/test_comfyui/test_browser.py

# Another ComfyUI in the place of ours, for `test`, `serve` and `demo`: HOST is its folder, HOST_PYTHON the Python of its
# environment, FRONTEND a version of its front end (docs/HOSTS.md). A HOST in the environment may be the machine's name.
ifeq ($(origin HOST),command line)
export FEWSTEP_HOST = $(abspath $(HOST))
endif
ifeq ($(origin HOST_PYTHON),command line)
export FEWSTEP_HOST_PYTHON = $(abspath $(HOST_PYTHON))
endif
ifeq ($(origin FRONTEND),command line)
export FEWSTEP_FRONTEND = $(FRONTEND)
endif

.PHONY: demo test test-all test-kernels test-webui check serve setup screenshots fuzz bench-overhead bench-quality bench-guidance bench-caches train-demo learn-demo workflows

demo: setup  ## render the demo workflow in a headless ComfyUI; says where the image is
	$(HOST_PYTHON) demo/run.py

test: setup check  ## formatting, types, then the tests, those in the running ComfyUI and in a browser included
	$(PYTEST) -m "not slow" tests --ignore=$(BROWSER)
	$(PYTEST) -m "not slow" -n 0 $(BROWSER)  # by itself: a browser that waits for others is late

test-all: setup check  ## all tests, as CI runs them: also training, processes, benchmarks, plain kernels, a newer front end
	$(PYTEST) tests --ignore=$(BROWSER)
	$(PYTEST) -n 0 $(BROWSER)

test-kernels: setup  ## all tests on the plainest kernels, those of AVX2, and two threads
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE $(PYTEST) tests
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 $(PYTEST) tests
	TEST_THREADS=2 $(PYTEST) tests

test-webui: setup  ## the extension in a real AUTOMATIC1111, Forge or reForge: WEBUI=/path/to/checkout
	TMPDIR=$(CURDIR)/.host/cache/tmp $(VENV_PYTHON) tools/webui.py $(WEBUI)

check: setup
	$(VENV_PYTHON) -m ruff format --check .
	$(VENV_PYTHON) -m ruff check .
	$(VENV_PYTHON) -m mypy

serve: setup  ## ComfyUI with the pack and the demo nodes, to open in a browser
	$(PYTHON) tools/host.py serve

fuzz: setup  ## random runs of every sampler: prints any NaN, unclear error or broken image
	OMP_NUM_THREADS=1 $(HOST_PYTHON) bench/fuzz.py

bench-overhead: setup  ## time per step outside the model, ours and the host's
	$(HOST_PYTHON) bench/overhead.py

bench-quality: setup  ## error against evaluations: up to 40 minutes; FULL=1 for a GPU; CHECKPOINT=... for your own model
	$(HOST_PYTHON) bench/quality.py

bench-guidance: setup  ## passes of the network that guidance schedules save, and the error that they cause
	OMP_NUM_THREADS=1 $(HOST_PYTHON) bench/guidance.py

bench-caches: setup  ## what EasyCache and LazyCache save, and the error that they cause
	OMP_NUM_THREADS=1 $(HOST_PYTHON) bench/caches.py

train-demo: setup  ## make the demo model's weights again (about two hours on two cores)
	$(HOST_PYTHON) demo/train.py
	$(HOST_PYTHON) demo/train.py --flow

workflows: setup  ## make workflows/*.json and their prompts again, after a change of nodes
	$(HOST_PYTHON) tools/workflows.py

learn-demo: setup  ## fit the plans and predictors of demo/plans that are missing
	OMP_NUM_THREADS=1 $(HOST_PYTHON) demo/learn.py

screenshots: setup  ## pictures of the help pages, drawn in a headless Chromium
	TMPDIR=$(CURDIR)/.host/cache/tmp $(HOST_PYTHON) tools/screenshots.py

setup:
	@$(PYTHON) tools/host.py
