# The two commands of the README, and what they stand on. CI calls these targets and nothing else.
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: setup demo serve test check fix bench faults clean

setup: .venv/.ready

.venv/.ready: pyproject.toml .ci/setup
	.ci/setup

demo: setup  ## the main job on the models that ship inside; ARGS=--fresh begins anew
	$(BIN)/rtr-ray demo $(ARGS)

serve: setup  ## the embedded pool behind an OpenAI-compatible endpoint (docs/online.md); ARGS="--port 9000"
	$(BIN)/rtr-ray serve --config serve.yaml $(ARGS)

test: setup  ## all tests; ARGS="-m 'not vllm'" leaves out those that serve models
	$(BIN)/python -m pytest -n 2 $(ARGS)

check: setup  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fix: setup  ## what a machine can mend of style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

SUITE ?= encoding table solver ledger startup per_row growth online dispatch fleet gpu prefix_cache
bench: setup  ## the suite of benchmarks/README.md; SUITE="table ledger" for some, ARGS=--small for those that have it
	for name in $(SUITE); do $(BIN)/python benchmarks/$$name.py $(ARGS) || exit 1; done

faults: setup  ## kills, a bad bucket, a full disk: are rows and dollars still right? ARGS="--runs 10 --vllm 0"
	$(BIN)/python benchmarks/faults.py $(ARGS)

clean:
	rm -rf .venv runs benchmarks/out
