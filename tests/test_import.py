"""import mixout needs torch and nothing else, and exports exactly its public names."""

import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
import textwrap
import types
from pathlib import Path

import pytest
import torch
from torch import nn

import mixout
from mixout import _public

PUBLIC = {
    "ALL", "AlreadyAppliedError", "Anchor", "AnchorDecay", "AnchorMismatchError", "BODY", "Coverage", "Distance",
    "EvalModeWarning",
    "FineTunedAnchorWarning", "ForgottenMasksWarning", "FrozenLayersWarning", "GenerationWarning", "GradientMask",
    "InputError", "LowCoverageWarning", "Method", "MissingExtraError", "MissingPenaltyWarning", "Mixconnect", "Mixout",
    "MixoutError", "MixoutWarning", "NotAppliedError", "NothingMixedError", "OutputAnchor", "PAPER", "PScheduler",
    "RankMismatchError", "Seed", "State", "DecayStrengthWarning", "Where", "ZeroDecayWarning", "apply_",
    "by_depth", "coverage", "disabled",
    "distance", "fingerprint", "fisher", "functional", "interpolate_", "load_state_", "methods", "optim",
    "output_penalty", "radius_used", "register", "remove_", "save_state", "schedule", "set_p_", "state",
}  # fmt: skip

BLOCKER = """
import importlib.abc, sys

class Without(importlib.abc.MetaPathFinder):
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            return None  # as where it is not installed, also to importlib.util.find_spec
        return self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) if hasattr(finder, "find_spec") else finder for finder in sys.meta_path]
"""

USE = """
import tempfile, torch, mixout
from torch import nn
model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.1), nn.Embedding(3, 2))
mixout.apply_(model, [mixout.Mixout(0.5), mixout.AnchorDecay(0.1)], seed=3)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
model[0](torch.ones(2, 4)).sum().backward()
optimizer.step()
print(mixout.coverage(model))
assert mixout.distance(model).total > 0
state = mixout.save_state(model)
mixout.load_state_(model, state)
assert len(mixout.fingerprint(model)) == 64
mixout.PScheduler(model, mixout.schedule.LinearRamp(0.0, 0.5, 3)).step()
mixout.remove_(model)
file = tempfile.NamedTemporaryFile(suffix=".safetensors")
try:
    mixout.apply_(model, mixout.Mixout(0.5), anchor=file.name)
except mixout.MissingExtraError as error:
    assert "pip install" in str(error), error
else:
    raise SystemExit("expected MissingExtraError")
for name in ("huggingface", "lightning"):
    try:
        __import__(f"mixout.integrations.{name}")
    except mixout.MissingExtraError as error:
        assert "to be installed" in str(error), error
    else:
        raise SystemExit("expected MissingExtraError")
"""


def in_a_process(program):
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def distributions_beside_torch():
    """Top-level modules of every installed distribution that torch does not require."""
    required, queue = set(), ["torch"]
    while queue:
        name = re.sub(r"[-_.]+", "-", queue.pop()).lower()
        if name in required:
            continue
        required.add(name)
        try:
            wanted = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        queue += [re.match(r"[\w.-]+", line)[0] for line in wanted if "extra ==" not in line]
    by_module = importlib.metadata.packages_distributions()
    normal = {m: {re.sub(r"[-_.]+", "-", d).lower() for d in names} for m, names in by_module.items()}
    keep = {"mixout", *sys.stdlib_module_names}
    return {m for m, names in normal.items() if not names & required and m not in keep and m.isidentifier()}


def test_importing_mixout_loads_nothing_but_torch():
    program = (
        "import torch, sys; before = set(sys.modules); import mixout; mixout.apply_; "
        "print(*(set(sys.modules) - before), sep='\\n')"
    )
    loaded = {name.partition(".")[0] for name in in_a_process(program).split()}
    # With the wheels for CUDA comes Triton, which some versions of torch load later; Triton may load setuptools.
    third_party = loaded & distributions_beside_torch()
    assert not third_party
    names = set(in_a_process("import mixout, sys; mixout.apply_; print(*sys.modules, sep='\\n')").split())
    assert not names & {
        "transformers",
        "matplotlib",
        "accelerate",
        "safetensors",
        "pandas",
        "scipy",
        "sklearn",
        "datasets",
    }
    assert not any(
        name.startswith(("mixout.finetune", "mixout.cli", "mixout.integrations", "mixout.study")) for name in names
    )


def test_mixout_works_in_an_environment_with_torch_alone():
    """numpy is not among torch's requirements: it is blocked as well."""
    blocked = distributions_beside_torch()
    assert {"numpy", "safetensors"} <= blocked
    assert "1 layer mixed" in in_a_process(BLOCKER.format(blocked=blocked) + USE)


def test_the_public_names():
    exported = {
        alias.asname
        for node in ast.parse(Path(mixout.__file__).with_name("_public.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert exported == PUBLIC <= set(dir(mixout))
    for name in PUBLIC:
        assert getattr(mixout, name) is getattr(_public, name) is not None


def test_no_module_has_the_name_of_a_public_function():
    """The import of such a module would put itself in the function's place."""
    modules = {path.stem for path in Path(mixout.__file__).parent.iterdir()}
    assert {name for name in PUBLIC & modules if not isinstance(getattr(mixout, name), types.ModuleType)} == set()


@pytest.mark.sweep
def test_each_module_can_be_the_first_that_is_imported():
    """Those of the library, each in a fork of a process that has loaded torch, but nothing of mixout."""
    package = Path(mixout.__file__).parent
    modules = [f"mixout.{path.stem}" for path in sorted(package.glob("*.py")) if not path.stem.startswith("__")]
    program = """
        import os, torch, torch.distributed.tensor
        for module in {modules}:
            if not (child := os.fork()):
                try:
                    __import__(module)
                except Exception as error:
                    print(module, repr(error), flush=True)
                os._exit(0)
            os.waitpid(child, 0)
    """
    assert in_a_process(textwrap.dedent(program).format(modules=modules)) == ""


def test_torch_is_loaded_at_the_first_use_of_a_name():
    program = "import sys, mixout; print('torch' in sys.modules); mixout.apply_; print('torch' in sys.modules)"
    assert in_a_process(program).split() == ["False", "True"]


@pytest.mark.parametrize("name", sorted(PUBLIC - {"ALL", "BODY", "PAPER", "functional", "methods", "schedule"}))
def test_every_public_name_is_documented(name):
    assert (getattr(mixout, name).__doc__ or "").strip()


def test_the_version_is_the_packages():
    assert mixout.__version__ == importlib.metadata.version("mixout")


def test_errors_derive_from_the_builtin_that_fits():
    for error, builtin in {
        mixout.NothingMixedError: ValueError,
        mixout.AlreadyAppliedError: RuntimeError,
        mixout.NotAppliedError: RuntimeError,
        mixout.AnchorMismatchError: ValueError,
        mixout.MissingExtraError: ImportError,
        mixout.InputError: ValueError,
    }.items():
        assert issubclass(error, builtin)
        assert issubclass(error, mixout.MixoutError)


@pytest.mark.parametrize(
    ("place", "old", "new"),
    [
        ("mixout", "Dropout", "mixout.methods.Dropout"),
        ("mixout", "Dropconnect", "mixout.methods.Dropconnect"),
        ("mixout", "Plain", "mixout.methods.Plain"),
        ("mixout", "state_dict", "mixout.save_state"),
        ("mixout", "load_state_dict_", "mixout.load_state_"),
        ("mixout.schedule", "Linear", "LinearRamp"),
        ("mixout.schedule", "Cosine", "CosineRamp"),
        ("mixout.integrations.huggingface", "AnchorCallback", "MixoutCallback"),
        ("mixout.integrations.lightning", "AnchorCallback", "MixoutCallback"),
        ("mixout.delta", "Delta", "mixout.delta.drop_ (and mixout.interpolate_)"),
    ],
)
def test_an_old_name_leads_to_the_new_one(place, old, new):
    if place.endswith("lightning"):
        pytest.importorskip("lightning")
    module = importlib.import_module(place)
    with pytest.raises(ImportError, match=rf"no attribute '{old}'; it is called {re.escape(new)} now$"):
        getattr(module, old)
    with pytest.raises(ImportError, match=rf"it is called {re.escape(new)} now$"):
        exec(f"from {place} import {old}")
    with pytest.raises(AttributeError, match=r"no attribute 'nothing'$"):
        _ = module.nothing


def test_each_error_and_warning_is_on_the_page_and_says_what_to_do():
    page = (Path(__file__).parents[1] / "docs" / "errors.md").read_text(encoding="utf-8")
    own = (mixout.MixoutError, mixout.MixoutWarning)
    kinds = [kind for kind in vars(mixout.errors).values() if isinstance(kind, type) and issubclass(kind, own)]
    for kind in kinds:
        if kind not in own:
            assert f"| `{kind.__name__}` |" in page
            assert "What to do:" in kind.__doc__
            assert kind.__name__ in PUBLIC


@pytest.mark.sweep
def test_a_model_that_was_pickled_whole_is_mixed_and_decays_in_a_process_that_has_applied_nothing(tmp_path):
    peft = pytest.importorskip("peft")
    decayed = mixout.apply_(nn.Linear(3, 3, bias=False), mixout.AnchorDecay(radius=0.01))
    config = peft.LoraConfig(r=2, target_parameters=["0.weight"])  # the adapter of a parameter
    adapted = peft.inject_adapter_in_model(config, nn.Sequential(nn.Linear(3, 3, bias=False)))
    nn.init.ones_(adapted[0].lora_B["default"].weight)
    mixout.apply_(adapted, mixout.Mixout(1.0), where=mixout.ALL)
    torch.save([decayed, decayed.weight.detach().clone()], tmp_path / "decayed.pt")
    torch.save(adapted, tmp_path / "adapted.pt")
    in_a_process(f"""
import torch
decayed, start = torch.load({str(tmp_path / "decayed.pt")!r}, weights_only=False)
optimizer = torch.optim.SGD(decayed.parameters(), lr=1.0)
decayed(torch.ones(1, 3)).sum().backward()
optimizer.step()
assert (decayed.weight - start).abs().max() < 1e-6, "it does not decay"
adapted, x = torch.load({str(tmp_path / "adapted.pt")!r}, weights_only=False), torch.ones(1, 3)
assert adapted(x).allclose(x @ adapted[0].get_base_layer().weight.t()), "it is not mixed"
""")


def test_everything_public_can_be_had_at_once():
    names = {}
    exec("from mixout import *", names)
    assert {"apply_", "Mixout", "AnchorDecay"} <= set(names)
    assert all(names[name] is getattr(mixout, name) for name in names if name != "__builtins__")
