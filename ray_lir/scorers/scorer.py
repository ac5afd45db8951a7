"""What every scorer is: token weights while encoding, and scores of queries with documents.

B queries of n tokens, N documents of m tokens, D dimensions.
"""

from typing import ClassVar, Literal

from torch import Tensor, nn

from ray_lir.base.config import Config
from ray_lir.scorers.batches import EmbeddedTexts
from ray_lir.scorers.received_attention import ReceivedAttention


class Scorer(nn.Module):
    """A late-interaction function; owns the weights that it adds to an encoder, its heads.

    Attributes:
        settings: of the type `Settings`; saved with a checkpoint.
    """

    name: ClassVar[str]
    Settings: ClassVar[type[Config]] = Config
    reads_attention: ClassVar[bool] = False
    """Whether token weights are made from the attention of the last layer."""

    def __init__(self, dim: int, settings: Config):
        super().__init__()
        self.settings = settings

    @property
    def weighs(self) -> tuple[Literal["queries", "documents"], ...]:
        """Texts whose tokens it weighs."""
        return ()

    def query_weights(self, projected_BnD: Tensor, attention: ReceivedAttention | None) -> Tensor | None:
        """[B, n] factors of the query tokens (u of docs/algorithms.md#7-one-factored-form); None: 1.

        Args:
            projected_BnD: float32, before the norm; zero where nothing is kept.
            attention: only if the scorer reads it.
        """
        return None

    def document_weights(self, projected_NmD: Tensor, attention: ReceivedAttention | None) -> Tensor | None:
        """[N, m] factors of the document tokens (rho of docs/algorithms.md#7-one-factored-form); None: 1."""
        return None

    def forward(self, queries: EmbeddedTexts, documents: EmbeddedTexts) -> Tensor:
        """[B, N] scores as in search; differentiable. A pair's score depends on that pair alone."""
        raise NotImplementedError

    def training_scores(self, queries: EmbeddedTexts, documents: EmbeddedTexts) -> list[Tensor]:
        """[B, N] scores that losses compare within a batch; with several, the losses are averaged."""
        return [self(queries, documents)]
