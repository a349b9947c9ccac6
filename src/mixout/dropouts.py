"""The model's own dropouts: find them, set them, put them back.

A dropout is the ``p`` of a dropout module; a float attribute that a forward hands to a functional dropout
(``self.attention_dropout``); or a field of a configuration that a forward reads while it runs
(:data:`READ_FROM_CONFIG`). What stood there before is kept on the module that was changed.

Dropping whole layers (stochastic depth, LayerDrop) is another regulariser. It is left on and reported. So is a float
attribute with "drop" in its name that does not end like a dropout's (``drop_threshold``).
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeGuard

from torch import nn

FIELD = "_mixout_dropouts"  # the attribute of a module that holds what stood there before

_MODULES = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_DROPOUT = re.compile(r"drop(_?out)?\d*(_?(p|probs?|probability|rate|ratio|positions))?$", re.IGNORECASE)
_OF_LAYERS = re.compile(r"layer_?drop|drop_?path|path_?drop|stochastic|droppath", re.IGNORECASE)

READ_FROM_CONFIG = {
    "attention_dropout": """
        BigBirdPegasusEncoderAttention FalconDecoderLayer FalconFlashAttention2 GPTNeoFlashAttention2
        PersimmonAttention
    """,
    "attention_probs_dropout_prob": "BigBirdAttention Data2VecVisionSdpaSelfAttention",
    "attn_pdrop": "GPTJFlashAttention2",
    "dropout": "BltGlobalTransformer BltLocalDecoder BltLocalEncoder ProphetNetEncoder",
    "hidden_dropout": "FalconDecoderLayer",
    "layerdrop": """
        Data2VecAudioEncoder HubertEncoder HubertEncoderStableLayerNorm SEWEncoder UniSpeechEncoder
        UniSpeechEncoderStableLayerNorm UniSpeechSatEncoder UniSpeechSatEncoderStableLayerNorm
        Wav2Vec2BertEncoder Wav2Vec2ConformerEncoder Wav2Vec2Encoder Wav2Vec2EncoderStableLayerNorm WavLMEncoder
        WavLMEncoderStableLayerNorm
    """,
    "speech_decoder_prenet_dropout": "SpeechT5SpeechDecoderPrenet",
    "speech_encoder_layerdrop": "SeamlessM4TConformerEncoder SeamlessM4Tv2ConformerEncoder",
}
"""Fields that modules of transformers, by class name, read as ``self.config.FIELD`` outside of their constructor."""

# These create their nn.Dropout again, from their configuration, if their first forward changes the type of attention.
_MAKES_DROPOUTS = {
    "BigBirdAttention": "attention_probs_dropout_prob",
    "BigBirdPegasusEncoderAttention": "attention_dropout",
}

Kind = Literal["module", "attribute", "config", "left"]


@dataclass(frozen=True, kw_only=True)
class DropoutSite:
    """One place that holds a dropout probability.

    Args:
        module: dotted name of the module, "" for the model itself.
        field: name of the attribute, or of the configuration's field.
        p: probability that it holds, in [0, 1].
        kind: ``module``, a dropout module; ``attribute``; ``config``; or ``left``, which is never changed.
    """

    module: str
    field: str
    p: float
    kind: Kind

    def __str__(self) -> str:
        config = "config." if self.kind == "config" else ""
        return f"{self.module or 'the model'}.{config}{self.field} = {self.p:g}"


def find(model: nn.Module) -> list[DropoutSite]:
    """Every place in ``model`` that holds a dropout probability, whatever its value."""
    return [site for name, module in model.named_modules() for site in _sites(name, module)]


def active(model: nn.Module) -> list[DropoutSite]:
    """The dropouts of ``model`` that still drop something while it trains."""
    return [site for site in find(model) if site.p > 0]


def set_(model: nn.Module, p: float) -> list[DropoutSite]:
    """Set every dropout of ``model`` to ``p``; return the places, as before. :func:`restore_` undoes it."""
    sites = [site for site in find(model) if site.kind != "left"]
    copies: dict[int, Any] = {}  # of configurations: modules that share one share its copy
    for site in sites:
        module = model.get_submodule(site.module)
        saved = vars(module).setdefault(FIELD, {})
        if site.kind != "config":
            saved.setdefault(site.field, getattr(module, site.field))
            setattr(module, site.field, p)
            continue
        if "config" not in saved:
            config: Any = module.config
            saved["config"] = config
            module.config = copies.setdefault(id(config), copy.copy(config))
        setattr(module.config, site.field, p)
    return sites


def restore_(model: nn.Module) -> None:
    """Undo :func:`set_`, in every module of ``model`` that was changed."""
    for module in model.modules():
        for field, saved in vars(module).pop(FIELD, {}).items():
            setattr(module, field, saved)
            config_field = _MAKES_DROPOUTS.get(type(module).__name__)
            if field != "config" or config_field is None:
                continue
            for dropout in module.modules():
                if isinstance(dropout, _MODULES) and FIELD not in vars(dropout):  # created since, from the copy
                    dropout.p = getattr(saved, config_field)


def _sites(name: str, module: nn.Module) -> Iterator[DropoutSite]:
    if isinstance(module, _MODULES):
        yield DropoutSite(module=name, field="p", p=module.p, kind="module")
        return
    drops_layers = _OF_LAYERS.search(type(module).__name__) is not None
    for field, value in vars(module).items():
        if "drop" in field.lower() and _is_probability(value):
            is_dropout = _DROPOUT.search(field) and not drops_layers and not _OF_LAYERS.search(field)
            yield DropoutSite(module=name, field=field, p=float(value), kind="attribute" if is_dropout else "left")
    classes = {base.__name__ for base in type(module).__mro__}
    for field, readers in READ_FROM_CONFIG.items():
        value = getattr(getattr(module, "config", None), field, None)
        if not classes.isdisjoint(readers.split()) and _is_probability(value):
            kind: Kind = "left" if _OF_LAYERS.search(field) else "config"
            yield DropoutSite(module=name, field=field, p=float(value), kind=kind)


def _is_probability(value: object) -> TypeGuard[float]:
    # Integers count or point at something; only 0 can be a dropout that is off.
    return (isinstance(value, float) and 0 <= value <= 1) or (type(value) is int and value == 0)
