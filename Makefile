# Everything that anyone needs to type; `make help` lists it.
PYTHON ?= python3
BIN := .venv/bin
TEST_PROCESSES ?= 3
export RAY_AUTH_MODE ?= disabled
# Without kept bytecode, each process of the tests compiles everything again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help demo test coverage quick slow check docs bench rehearsal zoo evidence chaos format lock s3 clean

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

demo: .venv/ready ## the main job on generated scenes; results in vbp-demo/
	$(BIN)/vbp demo vbp-demo

test: .venv/ready .venv/azurite/ready ## the tests; needs no network, no GPU
	$(BIN)/python -m pytest -q -m "not slow" --numprocesses $(TEST_PROCESSES) --dist loadgroup $(COVERAGE) $(TESTS)

coverage: ## the tests, with the share of vbp/ that they run; slower by half
	$(MAKE) test COVERAGE=--cov=vbp

quick: .venv/ready ## the short tests that need no Ray, no server and no whole run; two minutes
	$(BIN)/python -m pytest -q --quick --numprocesses 2 --dist loadgroup $(TESTS)

slow: .venv/ready .venv/azurite/ready ## tests of over a minute whose ground a shorter one covers too
	$(BIN)/python -m pytest -q -m slow $(TESTS)

check: .venv/ready docs ## format, lint, types, documentation
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: .venv/ready ## this machine beside limits, rivals and targets; about half an hour on two cores
	$(BIN)/vbp benchmark --output benchmarks/here.json

rehearsal: .venv/ready ## a cluster on this machine that loses nodes, and what is left to do afterwards: nothing
	$(BIN)/python cluster/local/rehearsal.py

zoo: .venv/ready ## every CNN of torchvision at four sizes, and as ONNX; timm's networks; docs/zoo*.md, docs/attach.md, hours
	$(BIN)/python -m vbp.evidence.zoo docs/zoo.md
	$(BIN)/python -m vbp.evidence.zootimm docs/zoo-timm.md
	$(BIN)/python -m vbp.evidence.attach docs/attach.md

evidence: .venv/ready ## how good the masks are, beside other methods and variants; docs/evaluation.md, docs/variants.md, hours; DATA=FOLDER adds photographs
	$(BIN)/python -m vbp.evidence.quality docs/evaluation.md --reference vbp/review/reference.json $(if $(DATA),--data $(DATA))
	$(BIN)/python -m vbp.evidence.variants docs/variants.md $(if $(DATA),--data $(DATA)) --images 80

chaos: .venv/ready ## runs that are disturbed and killed until they are done, and what people bring; docs/chaos.md, docs/edges.md, about an hour and a half
	$(BIN)/python -m tests.protocol
	$(BIN)/python -m tests.chaos docs/chaos.md
	$(BIN)/python -m tests.chaos.edges docs/edges.md

format: .venv/ready ## format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lock: .venv/ready ## renew requirements.lock from pyproject.toml
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-header --constraint constraints.txt --upgrade --quiet --output-file requirements.lock

docs: .venv/ready ## the documentation site, in site/; warnings are errors
	$(BIN)/python -m docs.generate

s3: .venv/ready ## an S3 server on this machine to try things on; ends with Ctrl-C
	$(BIN)/python -m tests.servers

clean: ## remove the virtual environment and caches
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

# The Azure server of the tests; where there is no npm, they are skipped. The date fixes what it depends on.
.venv/azurite/ready: .venv/ready
	mkdir -p .venv/azurite
	-command -v npm >/dev/null && npm install --prefix .venv/azurite --silent --no-audit --no-fund --no-save \
	  --no-package-lock --ignore-scripts --before=2026-11-20 azurite@3.37.0
	touch .venv/azurite/ready

.venv/ready: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(sed -n 's/^\(uv==[0-9.]*\).*/\1/p' requirements.lock)"
	$(BIN)/uv pip sync --quiet --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	touch .venv/ready
