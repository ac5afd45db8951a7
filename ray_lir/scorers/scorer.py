"""Scorer, the base class: token weights at encoding time, and scores of queries with documents.

Shapes: B queries of n tokens, N documents of m tokens, D dimensions.
"""

from typing import ClassVar, Literal

from torch import Tensor, nn

from ray_lir.base.config import Config
from ray_lir.embeddings.relation import Relation
from ray_lir.scorers.batches import EmbeddedTexts
from ray_lir.scorers.received_attention import ReceivedAttention


class Scorer(nn.Module):
    """A late-interaction function. Its own weights, if any, are small networks (heads) added to the encoder.

    Attributes:
        settings: Settings of type `Settings`; they are saved with a checkpoint.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[Config]] = Config
    reads_attention: ClassVar[bool] = False
    """Whether token weights depend on the attention of the last layer."""
    penalizes_query_weights: ClassVar[bool] = False
    """Whether training adds `gate_weight` times the size of the query weights to the loss."""

    def __init__(self, dim: int, settings: Config):
        super().__init__()
        self.settings = settings

    @property
    def weighs(self) -> tuple[Literal["queries", "documents"], ...]:
        """Sides (queries, documents) that get token weights."""
        return ()

    def to_arrays(self) -> Relation | None:
        """Return what search needs beside vectors and token weights, as NumPy arrays; None if it needs no more."""
        return None

    def query_weights(self, projected_BnD: Tensor, attention: ReceivedAttention | None) -> Tensor | None:
        """Return the weights of the query tokens, [B, n] (u of docs/algorithms.md#7-one-factored-form); None: all 1.

        Args:
            projected_BnD: [B, n, D] float32 vectors before normalization; zero where no token is kept.
            attention: Attention of the last layer; None unless `reads_attention`.
        """
        return None

    def document_weights(self, projected_NmD: Tensor, attention: ReceivedAttention | None) -> Tensor | None:
        """Return the weights of the document tokens, [N, m] (rho of docs/algorithms.md#7-one-factored-form); None: all 1.

        Args:
            projected_NmD: [N, m, D] float32 vectors before normalization; zero where no token is kept.
            attention: Attention of the last layer; None unless `reads_attention`.
        """
        return None

    def stored_attention(self, attention: ReceivedAttention | None) -> Tensor | None:
        """Return what embeddings store of the attention of documents, [N, m, 2] float32 (`TokenEmbeddings.attention`); None: nothing.

        Args:
            attention: Attention of the last layer; None unless `reads_attention`.
        """
        return None

    def forward(self, queries: EmbeddedTexts, documents: EmbeddedTexts) -> Tensor:
        """Return the scores of all pairs as in search, [B, N]; differentiable. A pair's score does not depend on other pairs."""
        raise NotImplementedError

    def training_scores(self, queries: EmbeddedTexts, documents: EmbeddedTexts) -> list[Tensor]:
        """Return [B, N] scores for the losses of a batch. If there are several, the losses are averaged."""
        return [self(queries, documents)]
