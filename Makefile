PYTHON ?= python3
RUN_EXTRAS = api,ui,infer,train,s3,local
ALL_EXTRAS = api,ui,infer,train,s3,local,build,dev
BIN = .venv/bin

.PHONY: up test lint smoke bench lock clean

up:  ## run everything on this machine, until Ctrl-C
	@$(PYTHON) deploy/bootstrap.py $(RUN_EXTRAS)
	@$(BIN)/medichat up

test:  ## every test, against real servers
	@$(PYTHON) deploy/bootstrap.py $(ALL_EXTRAS)
	@# models as small as the tests' only wait for more threads; whole installations get the processors to
	@# themselves, the other tests share them
	@OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest tests/acceptance
	@OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --ignore tests/acceptance

smoke:  ## start everything in a temporary folder, ask, check every trace, stop
	@$(PYTHON) deploy/bootstrap.py $(RUN_EXTRAS) >&2
	@$(BIN)/medichat smoke

lint:
	@$(PYTHON) deploy/bootstrap.py $(ALL_EXTRAS)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench:  ## every benchmark; results in benchmarks/results/
	@$(PYTHON) deploy/bootstrap.py $(ALL_EXTRAS)
	@$(BIN)/python -m benchmarks

lock:  ## write constraints.txt from what is installed
	@$(BIN)/python deploy/lock.py > constraints.txt

clean:
	rm -rf .venv build *.egg-info
