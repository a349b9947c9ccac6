# Everything runs in .venv, which is made on first use from a package index alone.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test test-deepspeed check bench clean

demo: $(READY)  ## fine-tune the embedded model on embedded text: a report in demo-output/report/
	$(BIN)/mixout demo --output-dir demo-output

test: $(READY)  ## all tests
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

# An environment of its own on top of .venv: other libraries change what they do where DeepSpeed is installed.
OVER := .venv/deepspeed
SITE := import sysconfig; print(sysconfig.get_path('purelib'))
test-deepspeed: $(READY)  ## the tests that need DeepSpeed
	$(PYTHON) -m venv $(OVER)
	$(BIN)/python -c "$(SITE)" > "$$($(OVER)/bin/python -c "$(SITE)")/below.pth"
	$(OVER)/bin/python -m pip install --quiet wheel
	$(OVER)/bin/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --no-deps \
		deepspeed einops hjson msgpack ninja py-cpuinfo
	PYTHONPATH=src $(OVER)/bin/python -m pytest tests/integrations/test_integrations_zero.py

check: $(READY)  ## style, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)  ## time and memory as ratios to plain fine-tuning: tables and figures in out/bench/
	$(BIN)/mixout bench

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	# Without the torchvision that timm asks for: beside a torch of another build it breaks transformers.
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --no-deps timm
	touch $@

clean:
	rm -rf .venv demo-output out
