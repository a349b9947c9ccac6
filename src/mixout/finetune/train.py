"""Settings -> result. The only file that trains; the Trainer of transformers does the work.

Check settings and folder; load task and model; apply the method, so that the anchor is the pretrained weights, also on
resume; check space and set the Trainer up; only then write, and train. The process keeps its random streams. A
resumed run ends as an uninterrupted one: bit for bit on the CPU, on a GPU up to the order of its additions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import torch

import mixout
from mixout._names import nearest
from mixout.anchor import old_fingerprint
from mixout.errors import InputError, MissingExtraError, needs
from mixout.finetune import card, defaults, environment, folder, models, outcome, sharding
from mixout.finetune.batches import collate
from mixout.finetune.cache import Cache
from mixout.finetune.causal import DevTexts
from mixout.finetune.course import Report
from mixout.finetune.data import check_kind, describe
from mixout.finetune.drift import Divergence, Drift, interpolated
from mixout.finetune.environment import own_streams, quiet
from mixout.finetune.levels import apply_methods, check_limits, reinitialise_
from mixout.finetune.record import Record, write_atomically, writing
from mixout.finetune.run_methods import Interpolate, MeasuredDecay, merge_lora_
from mixout.finetune.settings import Settings
from mixout.finetune.tasks import Task
from mixout.finetune.trainer import TextTrainer
from mixout.finetune.values import Units
from mixout.integrations.huggingface import pretrained_only
from mixout.methods.likelihood import Batch
from mixout.methods.text import reaches
from mixout.sources import mark_of_run

with needs("hf", "fine-tuning"):
    from safetensors.torch import save_file
    from transformers.integrations.integration_utils import (
        INTEGRATION_TO_CALLBACK,
        get_available_reporting_integrations,
    )


def finetune(
    settings: Settings,
    output_dir: str | Path,
    *,
    resume: bool = False,
    keep_model: bool = True,
    report: Report | None = None,
    bars: bool = False,
    cache: Cache | None = None,
) -> Record:
    """Fine-tune one model on one task with one method.

    Args:
        settings: what to run.
        output_dir: a folder that is new, empty, or holds this run unfinished. Holds in the end a checkpoint that
            ``from_pretrained`` loads, the tokenizer, ``record.json`` and a model card.
        resume: continue the unfinished run in ``output_dir`` from its last checkpoint.
        keep_model: write model, tokenizer and card; else only the record is left of the run.
        report: called with one line of progress now and then; None for silence.
        bars: show progress bars on stderr.
        cache: what earlier runs of this process have read, to be used again; the result is the same.

    Raises:
        InputError: settings, data or folder cannot be used; nothing has been written then.
        MissingExtraError: the embedded model or a logger is not installed.
        AnchorMismatchError: on resume, the pretrained weights are not those that the run began with.
        WriteError: a file could not be written during training or at its end (a full disk); the run can be resumed.
    """
    # Of several processes one reports and writes.
    leads = environment.leads()
    tell: Report = report if report is not None and leads else lambda _line: None
    run_dir = Path(output_dir)
    settings = folder.check(run_dir, settings.resolved(), resume=resume)
    _check_machine(settings)
    for note in _notes(settings):
        tell(environment.NOTE + note)
    shared = cache or Cache()
    task = shared.task(settings)
    environment.forget_peak_memory()
    environment.keep_memory()
    with quiet(), own_streams(), folder.alone(run_dir):
        loaded, pretrained = shared.model(settings, task)
        settings, chosen = defaults.complete(settings, loaded.model, task)
        _check_fits(settings, task, loaded)
        loaded = reinitialise_(loaded, settings.reinit_layers, settings.stream_seed("init"))
        given, units = task, Units.of(task, loaded)
        task, chosen = units.standard(task), chosen | units.said()
        start = {name: value for name, value in pretrained.items() if name not in loaded.new}
        examples = shared.tokens(task.train, settings)
        sharding.shard_(loaded.model)
        dev = shared.dev(task, settings)
        fisher_path = run_dir / folder.CHECKPOINTS / folder.FISHER
        importance = apply_methods(
            loaded,
            settings,
            fisher_rows(settings, task, loaded, shared),
            str(fisher_path) if fisher_path.is_file() else None,
        )
        fingerprints = {"anchor": old_fingerprint(start), **given.fingerprints(), "weights": loaded.sha256}
        sizes = (p.numel() * p.element_size() for p in loaded.model.parameters())
        folder.check_space(run_dir, weights=sum(sizes), settings=settings, keep_model=keep_model)
        if report is not None and leads:
            described = describe(given, cut=shared.cut(task, settings), max_length=settings.max_length)
            for line in (*described, *chosen.values(), *reaches(settings.methods)):
                tell(line)
        with folder.making(run_dir):
            trainer = TextTrainer(settings, run_dir, loaded, dev.task, examples, dev, report=tell, bars=bars and leads)
        # The model lies on its device now, as it will when it is measured again.
        drift = (
            Divergence(loaded.model, pretrained, dev.dev, settings.batch_size)
            if isinstance(dev, DevTexts)
            else Drift(loaded, task.original.text if task.original else (), settings.max_length)
        )
        # The last check: from here on the folder holds an unfinished run of these very settings.
        with trainer.accelerator.main_process_first():
            checkpoint, chosen = folder.begin(run_dir, settings, chosen, fingerprints, resume=resume)
        with writing(run_dir):
            if importance is not None and leads:
                _save(importance, fisher_path)
            state = trainer.run(checkpoint)
            covered = outcome.coverage(loaded.model)
            merge_lora_(mixout.remove_(loaded.model))  # after it no layer shows what was applied
            where = pretrained_only(loaded.model, loaded.new, "all")
            scores_between = interpolated(
                loaded.model, start, where, settings.interpolate, lambda: trainer.scores() | drift.scores()
            )
            for method in settings.methods:
                if isinstance(method, Interpolate):
                    mixout.interpolate_(loaded.model, method.t, start, where=where)
                    trainer.evaluate()
            record = units.settle_(loaded.model, outcome.record(
                settings, dev.task, loaded, dev, state, diverged=trainer.course.diverged, closeness=drift.scores(),
                start=start, chosen=chosen, interpolated=scores_between, coverage=covered, fingerprints=fingerprints,
            ))  # fmt: skip
            _write(run_dir, loaded, record, given, keep_model=keep_model)
            trainer.accelerator.wait_for_everyone()
    return record


def _notes(settings: Settings) -> Iterator[str]:
    devices = torch.cuda.device_count()
    if devices > 1 and not os.environ.get("WORLD_SIZE"):
        yield f"one of {devices} GPUs is used; for all: torchrun --nproc-per-node {devices} -m mixout finetune ..."
    if (mark := mark_of_run(settings.model)) is not None:
        yield f"{settings.model} is the model of a run ({mark} lies there); these weights are the start"


def fisher_rows(settings: Settings, task: Task, loaded: models.Loaded, shared: Cache) -> list[Batch]:
    """The rows for the Fisher information: original text, or for an encoder without it the training rows."""
    if not any(isinstance(method, MeasuredDecay) and method.fisher for method in settings.methods):
        return []
    if task.kind == "labels":
        raise InputError(f"expected rows with one label for {settings.method!r}, got several a row; leave out fisher")
    if task.kind == "text":
        if task.original is None:
            raise InputError(
                f"expected text of the domain not to be forgotten with {settings.method!r}, got none; give --original"
            )
        return [collate([window]) for window in shared.tokens(task.original, settings)]
    examples, names = shared.tokens(task.original or task.train, settings), loaded.tokenizer.model_input_names
    return [{name: torch.tensor([example[name]]) for name in names if name in example} for example in examples]


def _check_fits(settings: Settings, task: Task, loaded: models.Loaded) -> None:
    check_kind(settings, task)
    if settings.head_first and not loaded.new:
        raise InputError(f"expected a model with a new head for head_first, got {settings.model!r}; leave it out")
    check_limits(settings, loaded)


def _check_machine(settings: Settings) -> None:
    refused = ("DEEPSPEED", "MEGATRON_LM") if environment.fsdp2() else ("FSDP", "DEEPSPEED", "MEGATRON_LM")
    for name in refused:
        if environment.launched_with(name):
            raise InputError(
                f"expected each process to hold the whole model, or FSDP2, got a launch with {name}; start it with "
                f"torchrun, or with an accelerate config of fsdp_version: 2"
            )
    sharding.check(settings)
    if settings.precision == "fp16" and not torch.cuda.is_available():
        raise InputError("expected precision 'fp16' on a CUDA device, got none; use 'bf16' or 'fp32'")
    installed = get_available_reporting_integrations()  # type: ignore[no-untyped-call]
    for name in settings.report_to:
        if name not in INTEGRATION_TO_CALLBACK:
            raise InputError(
                f"expected a logger of transformers ({', '.join(INTEGRATION_TO_CALLBACK)}), "
                f"got {name!r}{nearest(name, INTEGRATION_TO_CALLBACK)}"
            )
        if name not in installed:
            raise MissingExtraError(f"expected the logger {name!r} to be installed, got none; run: pip install {name}")


def _save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    """Write a file whole or not at all: a resumed run reads what is there."""
    partial = path.with_suffix(".part")
    save_file(tensors, partial)
    partial.replace(path)


def _write(run_dir: Path, loaded: models.Loaded, record: Record, task: Task, *, keep_model: bool) -> None:
    """The plain model, its tokenizer and card; then the record, which makes the run a finished one.

    Every process must call this, since the weights may lie in parts; one writes.
    """
    weights = sharding.gathered(loaded.model) if keep_model else None
    if not environment.leads():
        return
    if keep_model:
        loaded.model.save_pretrained(run_dir, state_dict=weights)
        loaded.tokenizer.save_pretrained(run_dir)
        write_atomically(run_dir / "README.md", card.write(record, task=task))
    else:
        (run_dir / folder.CHECKPOINTS / folder.FISHER).unlink(missing_ok=True)
    record.write(run_dir)
    folder.finish(run_dir)
