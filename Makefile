# Everything runs in .venv, which the first command makes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
BENCHMARK := .venv-benchmark

.PHONY: demo ui test test-slow test-chaos test-pocket test-vllm check format install benchmark \
	benchmark-orchestration sbom licences audit-dependencies clean

install: $(READY)

# torch comes first and pinned: a later step may then neither change it nor fetch a second one. On Linux the
# public index's wheel brings gigabytes of CUDA; PIP_INDEX_URL may name an index of CPU wheels.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable .
	touch $(READY)

# The main job on the embedded default: a small world, a small model that is overconfident about it, two
# trainings that try to repair it, and an honest verdict.
demo: $(READY)
	$(BIN)/slm-calibration run pocket

# A Prefect server on this machine, with everything that can be started from its UI. PORT=4201 takes another.
ui: $(READY)
	$(BIN)/slm-calibration ui $(if $(PORT),--port $(PORT))

test: $(READY)
	$(BIN)/python -m pytest -m "not slow and not pocket"

test-slow: $(READY)
	$(BIN)/python -m pytest -m "slow and not chaos"

# Whole runs that are killed, damaged and starved; docs/chaos.md says how, and what must come of it.
test-chaos: $(READY)
	$(BIN)/python -m pytest -m chaos

# The demo on the stand-in for Modal and here: the same report, to 1e-6.
test-pocket: $(READY)
	$(BIN)/python -m pytest -m pocket

# vLLM excludes versions that the rest of the project has, so it lives in an environment of its own, without a
# GPU. One thread, tied to no core: the tests share their machine.
VLLM := .venv-vllm
VLLM_READY := $(VLLM)/.ready

$(VLLM_READY): pyproject.toml tests/vllm/requirements.txt
	$(PYTHON) -m venv --clear $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet --upgrade pip
	$(VLLM)/bin/python -m pip install --quiet torch==2.13.0
	$(VLLM)/bin/python -m pip install --quiet --no-deps --requirement tests/vllm/requirements.txt
	$(VLLM)/bin/python -m pip install --quiet --no-deps --editable .
	touch $(VLLM_READY)

# Importing vLLM first: where it is missing, its tests would be skipped instead of failing.
test-vllm: export OMP_NUM_THREADS = 1
test-vllm: export VLLM_CPU_OMP_THREADS_BIND = nobind
test-vllm: export VLLM_CPU_CI_ENV = 1
test-vllm: $(VLLM_READY)
	$(VLLM)/bin/python -c "import vllm"
	$(VLLM)/bin/python -m pytest -m vllm tests/engines/test_vllm.py

check: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# The libraries that the metrics are compared with, in an environment of their own: one of them calls its
# package `calibration` too. One thread each, so that the ratios compare algorithms and not machines.
$(BENCHMARK)/.ready: benchmarks/requirements.txt
	$(PYTHON) -m venv $(BENCHMARK)
	echo '*' > $(BENCHMARK)/.gitignore
	$(BENCHMARK)/bin/python -m pip install --quiet --upgrade pip
	$(BENCHMARK)/bin/python -m pip install --quiet torch==2.13.0
	$(BENCHMARK)/bin/python -m pip install --quiet --requirement benchmarks/requirements.txt
	touch $(BENCHMARK)/.ready

benchmark: $(BENCHMARK)/.ready
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BENCHMARK)/bin/python -W ignore benchmarks/metrics.py

# What orchestration costs: a cold demo, then cached ones.
benchmark-orchestration: $(READY)
	$(BIN)/python -m benchmarks.orchestration

# What looks at the dependencies: pip-audit and the maker of the SBOM.
TOOLS := .venv-tools
TOOLS_READY := $(TOOLS)/.ready

$(TOOLS_READY): tools/requirements.txt
	$(PYTHON) -m venv --clear $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --upgrade pip
	$(TOOLS)/bin/python -m pip install --quiet --requirement tools/requirements.txt
	touch $(TOOLS_READY)

# What a user gets: no tool of development, no pip, and not the project itself, whose folder would be named.
RUNTIME := .venv-runtime
RUNTIME_READY := $(RUNTIME)/.ready
RUNTIME_PIP := $(BIN)/python -m pip --python $(RUNTIME)/bin/python install --quiet --constraint constraints.txt

$(RUNTIME_READY): $(READY)
	$(PYTHON) -m venv --clear --without-pip $(RUNTIME)
	$(RUNTIME_PIP) torch==2.13.0
	$(RUNTIME_PIP) --only-deps '.[modal,shared,dask]'
	touch $(RUNTIME_READY)

# Validated before it is written.
sbom: $(TOOLS_READY) $(RUNTIME_READY)
	$(TOOLS)/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --validate \
		--output-file sbom.json $(RUNTIME)/bin/python

licences: $(RUNTIME_READY)
	$(RUNTIME)/bin/python -m tools.licences > docs/licences.md

# Needs the network: a service says which releases have known vulnerabilities. Without --strict a package that
# the service does not know, or a service that answers nothing, would count as one without any.
AUDIT := $(TOOLS)/bin/pip-audit --strict --disable-pip --progress-spinner off

audit-dependencies: $(TOOLS_READY)
	status=0; \
	$(AUDIT) --no-deps --requirement constraints.txt || status=1; \
	for lock in deployments/images/*.txt; do \
		$(AUDIT) --require-hashes --requirement $$lock || status=1; \
	done; \
	exit $$status

clean:
	rm -rf $(VENV) $(VLLM) $(BENCHMARK) $(TOOLS) $(RUNTIME) sbom.json .calibration .prefect runs
