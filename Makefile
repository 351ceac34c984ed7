# `make` lists what can be made. Needed beforehand: Python 3.11 or newer, git, make.

.PHONY: help demo test check format docs learn fuzz kills versions versions-lowest versions-newest bench bench-gpu results constraints clean

DEMO = train race-matd3 mamujoco/Hopper-3x1 --minutes 3 --evaluate-every 1000
TORCH = torch==2.13.0
ARGS =

BIN = .venv/bin
RUN = PATH="$(CURDIR)/$(BIN):$$PATH"
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Compiled programs are kept between test runs, and between the processes of one.
TESTS = JAX_COMPILATION_CACHE_DIR="$(CURDIR)/.jax_cache" $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile
# Tests of one file share what they compile. Each process needs about 3 GiB.
WORKERS = 2

help:
	@echo "make demo          train RACE on 3-agent Hopper for three minutes, and draw its curve"
	@echo "make test          run the tests (ARGS='-k race' chooses some); with PyTorch those of bench/, too"
	@echo "make check         formatting, lint, types, pages, tests: what must pass before a change lands"
	@echo "make docs          build the pages as a site, in site/"
	@echo "make format        put the code into the format that check wants"
	@echo "make learn         run the slow tests, which learn for minutes"
	@echo "make fuzz          feed every border far more damaged and senseless input than make test does"
	@echo "make kills         kill runs 120 times at random moments: each must end as if nobody had; about 40 minutes"
	@echo "make bench         measure steps and updates per second on this machine (JAXMARL=checkout compares with it)"
	@echo "make bench-gpu     measure many seeds and many copies on one GPU, with the python3 that has JAX for it"
	@echo "make results       run every results/*/command.sh again; this takes hours"
	@echo "make versions      run a small set of tests with the lowest versions and with the newest (needs uv)"
	@echo "make constraints   choose the exact versions anew (needs uv)"
	@echo "make clean         remove what was built here; runs/ stays"

demo: .venv/.installed
	$(BIN)/comarl $(DEMO)

test: .venv/.installed-dev
	$(TESTS) -m "not slow and not fuzz" $(ARGS)

check: .venv/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --site-dir "$$(mktemp -d)/site"
	$(TESTS) -m "not slow and not fuzz" --durations 15 $(ARGS)

# No file of the site comes from elsewhere, nor does the build ask for any.
docs: .venv/.installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

format: .venv/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

fuzz: .venv/.installed-dev
	$(TESTS) -m fuzz --durations 0 $(ARGS)

learn: .venv/.installed-dev
	$(TESTS) -m slow --durations 0 $(ARGS)

kills: .venv/.installed-dev
	$(BIN)/python scripts/kills.py $(ARGS)

# First of all, both sides of each comparison must compute the same.
bench: .venv/.installed-bench
	$(BIN)/python -m pytest --quiet bench
	$(BIN)/python bench/env_steps.py $(ARGS)
	$(BIN)/python bench/updates.py $(ARGS)
	$(BIN)/python bench/race_facmac.py $(ARGS)
	$(BIN)/python bench/lsf_sac.py $(ARGS)
	$(BIN)/python bench/update_costs.py $(ARGS)
	$(BIN)/python bench/vm3_ac.py $(ARGS)
	$(if $(JAXMARL),$(BIN)/python bench/qmix_smax.py --jaxmarl $(JAXMARL) $(ARGS))

# On a machine with a GPU: any Python that has JAX for it, equinox, optax and jaxtyping.
PYTHON_GPU = python3
bench-gpu:
	$(PYTHON_GPU) bench/gpu.py $(ARGS)

results: .venv/.installed
	@for command in results/*/command.sh; do \
	    [ -e "$$command" ] || { echo "no results/*/command.sh yet"; exit 1; }; \
	    echo "== $$command"; $(RUN) bash "$$command" || exit 1; \
	done

constraints:
	@command -v uv >/dev/null || { echo "make constraints needs uv on the PATH"; exit 1; }
	uv pip compile pyproject.toml --extra all --extra dev --extra docs --universal --python-version 3.11 --fork-strategy fewest \
	    --upgrade --no-header --no-annotate --no-emit-index-url --no-emit-find-links --quiet --output-file constraints.new
	(echo "# The exact versions that tests and results use, for Python 3.11 to 3.13. Made by: make constraints"; \
	    cat constraints.new) > constraints.txt
	rm constraints.new

# Lower bounds must be true, and what is newest must work: each in an environment of its own.
VERSIONS_TESTS = tests/test_cli.py tests/runs tests/envs/test_mamujoco.py tests/envs/test_smax.py \
    tests/envs/test_pettingzoo.py tests/training/test_train.py tests/report
versions: versions-lowest versions-newest

versions-lowest:
	$(call try_versions,lowest,3.11,--resolution lowest-direct)

versions-newest:
	$(call try_versions,newest,3.13,--upgrade)

define try_versions
@command -v uv >/dev/null || { echo "make versions needs uv on the PATH"; exit 1; }
uv venv --quiet --clear --python $(2) .venv-$(1)
uv pip install --no-config --quiet --python .venv-$(1) $(3) --editable ".[mujoco,smax,pettingzoo,report,watch,dev]"
.venv-$(1)/bin/python -m pytest --numprocesses $(WORKERS) --dist loadfile -m "not slow and not fuzz" $(VERSIONS_TESTS)
endef

clean:
	rm -rf .venv-lowest .venv-newest .venv .jax_cache .pytest_cache .ruff_cache dist site

# The environment, in layers. Each is made anew when the versions or the requirements change.

.venv/.installed: .venv/.created pyproject.toml constraints.txt
	@echo "Installing comarl and what it needs into .venv; the first time this takes a while."
	$(PIP) --editable ".[mujoco,smax,pettingzoo,report,watch]"
	@touch $@

.venv/.installed-dev: .venv/.created pyproject.toml constraints.txt
	@echo "Installing comarl, what it needs and the tools of its tests into .venv; the first time this takes a while."
	$(PIP) --editable ".[all,dev,docs]"
	@touch .venv/.installed $@

# PyTorch is only what comarl is compared with; where pip can be pointed at a CPU build, that is enough.
.venv/.installed-bench: .venv/.installed-dev
	$(PIP) $(TORCH)
	$(PIP) --editable ".[mujoco,smax,pettingzoo,report,watch,dev,bench]"
	@touch $@

# The first Python of 3.11 to 3.13, else the first that is newer; `make demo PYTHON=...` names another.
.venv/.created:
	@suits() { "$$1" -c "import sys; v = sys.version_info; sys.exit(not (3, 11) <= v < (3, $$2))" 2>/dev/null; }; \
	python="$(PYTHON)"; \
	for below in 14 99; do for name in python3 python3.13 python3.12 python3.11 python3.14; do \
	    if [ -z "$$python" ] && suits $$name $$below; then python=$$name; fi; \
	done; done; \
	if [ -z "$$python" ]; then \
	    echo "comarl needs Python 3.11 or newer. Neither python3 nor python3.11 to python3.14 on the PATH is one;"; \
	    echo "python3 is: $$(python3 --version 2>&1 || true)"; \
	    echo "Install one, or name it: make demo PYTHON=/path/to/python"; exit 1; \
	fi; \
	suits "$$python" 99 || { echo "$$python is not Python 3.11 or newer"; exit 1; }; \
	"$$python" -c "import ensurepip, venv" 2>/dev/null || { \
	    echo "$$python cannot make environments: its modules venv and ensurepip are missing."; \
	    echo "On Debian and Ubuntu they are in the package python3-venv."; exit 1; }; \
	echo "Making .venv with $$("$$python" --version)"; "$$python" -m venv .venv
	@touch $@
