"""nn.Embedding: a linear on one-hot vectors, so a token is an input neuron and its row is its unit."""

from __future__ import annotations

from torch import Tensor, nn

from mixout.functional import mixed_embedding
from mixout.layers.mixed import Mixed, mixes


class MixedEmbedding(Mixed, nn.Embedding):
    """An embedding that reads rows of Phi while training and of its weight in eval mode."""

    def forward(self, input: Tensor) -> Tensor:
        """Indices of any shape to (..., embedding_dim)."""
        if not mixes(self):
            return nn.Embedding.forward(self, input)
        self.count_pass()
        return mixed_embedding(
            input,
            self.weight,
            self._mixed.anchor.beside(self.weight),
            **self.mix_options(),
            padding_idx=self.padding_idx,
            max_norm=self.max_norm,
            norm_type=self.norm_type,
            scale_grad_by_freq=self.scale_grad_by_freq,
            sparse=self.sparse,
        )
