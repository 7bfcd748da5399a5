# `make demo` and `make test` are all that a new machine needs; the rest is for developers.
.PHONY: help demo setup dev test test-slow peers lint hosts check lock protos clean
help:
	@echo "make demo       set up, then train, prove and serve the quickstart"
	@echo "make test       set up, then the whole test suite (CI runs this)"
	@echo "make test-slow  the proofs that take longer"
	@echo "make setup      the environment alone (.venv, from requirements/cpu.txt)"
	@echo "make peers      the environment of transformers and torch (.venv-peers)"
	@echo "make check      ruff and mypy"
	@echo "make lock       make the locks under requirements/ anew (needs uv)"
	@echo "make protos     generate serving/rpc/v1 from protos/"

demo: setup
	@recipe=appliance/recipes/quickstart.yaml; \
	if ! .venv/bin/python -c 'import importlib.metadata as m; m.version("fastdeploy-python")' 2>/dev/null; then \
		echo "demo: FastDeploy has no wheel for this Python: serving with engine: onnxruntime instead."; \
		sed 's/engine: fastdeploy/engine: onnxruntime/' $$recipe > .venv/quickstart.yaml; \
		recipe=.venv/quickstart.yaml; \
	fi; \
	echo ".venv/bin/appliance up $$recipe"; .venv/bin/appliance up $$recipe

setup:
	@scripts/setup run

dev:
	@scripts/setup dev

peers:
	@scripts/setup peers

lint:
	@scripts/setup lint

hosts:
	@scripts/setup hosts

test: dev peers lint hosts
	.venv/bin/python -m pytest

test-slow: dev peers lint hosts
	.venv/bin/python -m pytest -m slow

check: dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

lock:
	@scripts/lock

protos:
	@scripts/setup protos
	@scripts/protos

clean:
	rm -rf .venv .venv-peers .venv-protos .venv-lint
