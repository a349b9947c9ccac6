r"""How far fine-tuning moved what the body of a text encoder says of text that the task has nothing to do with.

.. math:: \text{similarity} = \frac{1}{n} \sum_i \cos(e_i^{\text{before}}, e_i^{\text{after}})

e_i is the mean of the last hidden states over the tokens of text i, in eval mode and float32. 1: nothing moved. What
was forgotten of a language model is its loss on such text; see :mod:`mixout.finetune.causal`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from mixout.errors import InputError
from mixout.finetune.models import Loaded

_BATCH = 32


class Drift:
    """Takes the embeddings of texts when it is made, and says later how far they have turned.

    Args:
        loaded: the model, with its pretrained weights.
        texts: of the domain that it knew before; none are all right.
        max_length: longest text, in tokens; longer ones are cut.

    Raises:
        InputError: the model's body is no encoder of text.
    """

    def __init__(self, loaded: Loaded, texts: Sequence[str], max_length: int) -> None:
        self._loaded, self._texts, self._max_length = loaded, texts, max_length
        self._before = self._embed()

    def scores(self) -> dict[str, float]:
        """``original_similarity``, at most 1, nan where a hidden state is not finite; nothing without texts."""
        if not self._texts:
            return {}
        turned = cosine_similarity(self._before, self._embed(), dim=1)
        return {"original_similarity": float(turned.mean())}

    @torch.no_grad()
    def _embed(self) -> Tensor:
        """Mean hidden states, ``(texts, width)``, float64 on the CPU."""
        model, tokenizer = self._loaded.model, self._loaded.tokenizer
        training = model.training
        model.train(False)
        found = [torch.empty(0, dtype=torch.float64)]
        for start in range(0, len(self._texts), _BATCH):
            batch = list(self._texts[start : start + _BATCH])
            tokens = tokenizer(
                batch, truncation=True, max_length=self._max_length, padding=True, return_tensors="pt"
            ).to(model.device)
            hidden = getattr(model.base_model(**tokens), "last_hidden_state", None)
            if hidden is None:
                raise InputError(
                    f"expected a text encoder for original, got {type(model.base_model).__name__}, which has no last "
                    f"hidden state; leave original out"
                )
            present = tokens["attention_mask"].unsqueeze(-1).double()
            found.append(((hidden.double() * present).sum(1) / present.sum(1)).cpu())
        model.train(training)
        return torch.cat(found[bool(self._texts) :])
