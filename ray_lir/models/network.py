"""The network of an encoder: a transformer, projections, and the mask and norm of ALGORITHMS 1.3."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


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
    """Token ids to token embeddings: the last hidden states of `backbone`, through each projection, masked, normalised."""

    def __init__(self, backbone: PreTrainedModel, projections: Iterable[Dense] = (), normalize: bool = True):
        super().__init__()
        self.backbone = backbone
        layers = list(projections)
        self.projections = nn.ModuleList(layers)
        self.normalize = normalize
        self.dim: int = layers[-1].linear.out_features if layers else backbone.config.hidden_size

    def forward(self, input_ids: Tensor, attention_mask: Tensor, keep_mask: Tensor) -> Tensor:
        """[B, L] ids and masks to [B, L, D] float32 vectors; rows outside `keep_mask` are exact zeros (masked before the norm)."""
        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        for projection in self.projections:
            hidden = projection(hidden)
        vectors = hidden.float() * keep_mask.unsqueeze(-1)
        return nn.functional.normalize(vectors, dim=-1, eps=1e-12) if self.normalize else vectors
