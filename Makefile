# Everything runs in .venv, which is made on first use from a package index alone.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test check bench clean

demo: $(READY)  ## fine-tune the embedded model on embedded text: a report in demo-output/report/
	$(BIN)/mixout demo --output-dir demo-output

test: $(READY)  ## all tests
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile

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
