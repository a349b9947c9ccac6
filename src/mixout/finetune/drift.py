r"""How far fine-tuning moved a model's outputs; and the models between the start and the end.

For a text encoder, on text that has nothing to do with the task:

.. math:: \text{similarity} = \frac{1}{n} \sum_i \cos(e_i^{\text{before}}, e_i^{\text{after}})

e_i is the mean of the last hidden states over the tokens of text i, in eval mode and float32. At 1 nothing moved.

For a causal language model, on the dev set, which is new text:

.. math:: \mathrm{KL}(\pi_0 \,\|\, \pi) = \frac{1}{|T|} \sum_{t \in T} \sum_v \pi_0(v) \log \frac{\pi_0(v)}{\pi(v)}

in nats per predicted token. It predicts forgetting (Shenfeld et al. 2025, arXiv 2509.04259). Forgetting itself is
measured by the loss on text of the original domain; see :mod:`mixout.finetune.causal`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, kl_div

import mixout
from mixout.errors import InputError
from mixout.finetune.batches import Example, collate
from mixout.finetune.models import Loaded
from mixout.methods.likelihood import evaluated, predictions
from mixout.methods.output import called_with
from mixout.parts import laid_out, reshard_
from mixout.selection import Selection

_BATCH = 32


class Drift:
    """Stores the embeddings of texts when it is made, and measures later how far they have turned.

    InputError where the model's body is not a text encoder.
    """

    def __init__(self, loaded: Loaded, texts: Sequence[str], max_length: int) -> None:
        self._loaded, self._texts, self._max_length = loaded, texts, max_length
        self._before = self._embed()

    def scores(self) -> dict[str, float]:
        """``original_similarity``, at most 1, nan where a hidden state is not finite; nothing without texts."""
        if not self._texts:
            return {}
        similarity = cosine_similarity(self._before, self._embed(), dim=1)
        return {"original_similarity": float(similarity.mean())}

    @torch.no_grad()
    def _embed(self) -> Tensor:
        """Mean hidden states, ``(texts, width)``, float64 on the CPU."""
        model, embeddings = self._loaded.model, []
        options = {"truncation": True, "max_length": self._max_length, "padding": True, "return_tensors": "pt"}
        with evaluated(model):
            for start in range(0, len(self._texts), _BATCH):
                batch = list(self._texts[start : start + _BATCH])
                tokens = self._loaded.tokenizer(batch, **options).to(model.device)
                hidden = getattr(model.base_model(**tokens), "last_hidden_state", None)
                if hidden is None:
                    raise InputError(
                        f"expected a text encoder for original, got {type(model.base_model).__name__}, which has no "
                        f"last hidden state; leave original out"
                    )
                mask = tokens["attention_mask"].unsqueeze(-1).double()
                embeddings.append(((hidden.double() * mask).sum(1) / mask.sum(1)).cpu())
        return torch.cat(embeddings) if embeddings else torch.empty(0)


class Divergence:
    """The KL divergence of a causal language model from its start. No second model: the weights are exchanged."""

    def __init__(self, model: Any, start: Mapping[str, Tensor], windows: Sequence[Example], batch_size: int) -> None:  # noqa: ANN401
        self._model, self._start, self._windows, self._size = model, start, windows, batch_size

    @torch.no_grad()
    def scores(self) -> dict[str, float]:
        """``kl_to_base``, at least 0, nan where an output is not finite."""
        model = self._model
        reshard_(model)
        weights = dict(model.named_parameters())
        base = {name: laid_out(value, weights[name]).to(model.device) for name, value in self._start.items()}
        total, count = 0.0, 0
        with evaluated(model):
            for at in range(0, len(self._windows), self._size):
                windows = collate(self._windows[at : at + self._size])
                batch = {key: value.to(model.device) for key, value in windows.items()}
                inputs = {key: value for key, value in batch.items() if key != "labels"}
                outputs = (model(**inputs), called_with(model, base, (), inputs))
                log_p, log_p0 = (predictions(model, batch, output).logits.float().log_softmax(-1) for output in outputs)
                total += float(kl_div(log_p, log_p0, reduction="sum", log_target=True))
                count += len(log_p)
        return {"kl_to_base": max(0.0, total / count) if total == total else total}


def interpolated(
    model: nn.Module,
    start: Mapping[str, Tensor],
    where: Selection,
    ts: Sequence[float],
    evaluate: Callable[[], dict[str, float]],
) -> tuple[dict[str, float], ...]:
    """Scores of the models between the start, t = 0, and the end, t = 1 (WiSE-FT), and t.

    Parameters outside ``where`` keep their trained values; at the end the whole model has them again.
    """
    if not ts:
        return ()
    reshard_(model)
    trained = {name: parameter.detach().to("cpu", copy=True) for name, parameter in model.named_parameters()}
    scores = []
    for t in ts:
        mixout.interpolate_(model, t, start, where=where)
        scores.append({"t": t, **evaluate()})
        reshard_(model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(trained[name])
    return tuple(scores)
