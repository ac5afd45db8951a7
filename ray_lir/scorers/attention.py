"""ColBERT-Att: MaxSim with token weights e^A, where A is the attention that a token receives in the last layer.

Source: docs/algorithms.md#6-colbert-att
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor

from ray_lir.base.config import AttentionChanges, AttentionConfig
from ray_lir.base.derived import derived
from ray_lir.scorers import maxsim
from ray_lir.scorers.batches import EmbeddedTexts
from ray_lir.scorers.received_attention import ReceivedAttention
from ray_lir.scorers.scorer import Scorer


class Attention(Scorer):
    """ColBERT-Att's scorer. In training, delta is 1 (docs/algorithms.md#61-score); otherwise delta is min(1, tokens / delta_length)."""

    name = "attention"
    Settings = AttentionConfig
    reads_attention: ClassVar[bool] = True

    settings: AttentionConfig

    @property
    def weighs(self) -> tuple[Literal["queries", "documents"], ...]:
        return ("queries", "documents") if self.settings.sides == "both" else (self.settings.sides,)

    def query_weights(self, projected_BnD: Tensor, attention: ReceivedAttention | None) -> Tensor | None:
        """Return e^A of the query tokens, [B, n]; None if only documents are weighted. `Scorer.query_weights` has the arguments."""
        return None if self.settings.sides == "documents" else self._received(attention).exp()

    def document_weights(self, projected_NmD: Tensor, attention: ReceivedAttention | None) -> Tensor | None:
        """Return e^(delta A) of the document tokens, [N, m]; None if only queries are weighted."""
        if self.settings.sides == "queries":
            return None
        received = self._received(attention)
        if self.training or self.settings.delta_length is None:
            return received.exp()
        assert attention is not None
        return (received * delta(attention.attended.sum(1), self.settings.delta_length).to(received.dtype)[:, None]).exp()

    def stored_attention(self, attention: ReceivedAttention | None) -> Tensor | None:
        """Return the attention that each token receives, and the attended tokens of its document, [N, m, 2]; None during training."""
        if self.training:
            return None
        assert attention is not None
        received = self._received(attention).float()
        return torch.stack([received, attention.attended.sum(1, keepdim=True).expand_as(received).float()], dim=-1)

    def forward(self, queries: EmbeddedTexts, documents: EmbeddedTexts) -> Tensor:
        """Return weighted MaxSim scores, [B, N]."""
        return maxsim.scores(queries, documents)

    def _received(self, attention: ReceivedAttention | None) -> Tensor:
        assert attention is not None  # reads_attention is True
        received = attention.first_row() if self.settings.reading == "cls_row" else _column_mean(attention)
        return received.detach() if self.settings.detach else received


def changed_settings(settings: AttentionConfig, changes: AttentionChanges) -> AttentionConfig:
    """Return settings with some changes."""
    update: dict[str, object] = {"sides": changes.sides or settings.sides}
    if changes.delta_length is not None:
        update["delta_length"] = changes.delta_length or None
    return settings.model_copy(update=update)


@derived
def _column_mean(attention: ReceivedAttention) -> Tensor:
    """Return `attention.column_mean()`, which weights and stored attention share."""
    return attention.column_mean()


def delta(num_tokens_N: Tensor, delta_length: int) -> Tensor:
    """Return the exponent min(1, length / delta_length) of each document, [N]; a document's length is its number of attended tokens.

    Source: docs/algorithms.md#9-where-sources-disagree
    """
    return (num_tokens_N.double() / delta_length).clamp(max=1.0)
