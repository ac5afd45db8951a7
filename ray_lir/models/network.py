"""The network of an encoder: a transformer, projections, the mask and norm of ALGORITHMS 1.3, and a scorer's token weights."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ray_lir.config import Config
from ray_lir.models.attention import AttentionRecorder, LastAttention
from ray_lir.models.batches import EmbeddedTexts, TokenBatch
from ray_lir.models.scorers import MaxSim, Scorer


class Dense(nn.Module):
    """y = activation(W x + b), plus x (or R x, where the sizes differ) with a residual."""

    def __init__(
        self, in_features: int, out_features: int, bias: bool = False, activation: nn.Module | None = None, use_residual: bool = False
    ):
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=bias)
        self.activation = activation or nn.Identity()
        self.use_residual = use_residual
        if use_residual and in_features != out_features:
            self.residual = nn.Linear(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.activation(self.linear(x))
        if not self.use_residual:
            return y
        return y + (self.residual(x) if hasattr(self, "residual") else x)

    @property
    def is_identity(self) -> bool:
        """Whether it gives back what it gets."""
        weight = self.linear.weight
        plain = self.linear.bias is None and isinstance(self.activation, nn.Identity) and not self.use_residual
        return plain and torch.equal(weight, torch.eye(*weight.shape).to(weight))


class Network(nn.Module):
    """Token ids to token embeddings: the last hidden states of `backbone`, through each projection, masked, normalised.

    Attributes:
        scorer: weighs the tokens, and scores queries with documents; its heads, if it has any, stay in float32.
    """

    def __init__(self, backbone: PreTrainedModel, projections: Iterable[Dense] = (), normalize: bool = True, scorer: Scorer | None = None):
        super().__init__()
        self.backbone = backbone
        layers = list(projections)
        self.projections = nn.ModuleList(layers)
        self.normalize = normalize
        self.dim: int = layers[-1].linear.out_features if layers else backbone.config.hidden_size
        self.scorer = scorer or MaxSim(self.dim, Config())

    def queries(self, batch: TokenBatch) -> EmbeddedTexts:
        """Queries with the scorer's weights of their tokens; differentiable. Rows outside the mask are zeros (masked before the norm)."""
        return self._embed(batch, self.scorer.query_weights)

    def documents(self, batch: TokenBatch) -> EmbeddedTexts:
        """The same of documents."""
        return self._embed(batch, self.scorer.document_weights)

    def place(self, device: torch.device, dtype: torch.dtype) -> "Network":
        """Moves it, and gives all but the scorer's heads the number format."""
        self.to(device, dtype)
        self.scorer.float()
        return self

    def _embed(self, batch: TokenBatch, weigh: Callable[[Tensor, LastAttention | None], Tensor | None]) -> EmbeddedTexts:
        recorder = AttentionRecorder() if self.scorer.reads_attention else None
        with recorder or nullcontext():
            projected = self._project(batch)
        with torch.autocast(projected.device.type, enabled=False):
            weights = weigh(projected, recorder.last(batch.attention_mask) if recorder else None)
            vectors = nn.functional.normalize(projected, dim=-1, eps=1e-12) if self.normalize else projected
            return EmbeddedTexts(vectors, batch.keep_mask, weights)

    def _project(self, batch: TokenBatch) -> Tensor:
        """[B, L, D] float32 vectors before the norm."""
        hidden = self.backbone(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        for projection in self.projections:
            hidden = projection(hidden)
        return hidden.float() * batch.keep_mask.unsqueeze(-1)
