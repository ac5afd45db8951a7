"""The network of an encoder: transformer, projections, masking and normalization, and a scorer's token weights.

Source: docs/algorithms.md#13-projection-and-normalisation
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ray_lir.base.config import Config
from ray_lir.base.derived import derived
from ray_lir.base.errors import ConfigError
from ray_lir.encoder import unpadded_bert
from ray_lir.scorers import MaxSim, Scorer
from ray_lir.scorers.batches import EmbeddedTexts, TokenBatch, apply_with_padded_rows
from ray_lir.scorers.received_attention import AttentionRecorder, ReceivedAttention

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from ray_lir.encoder.bert import Bert


class Dense(nn.Module):
    """A layer y = activation(W x + b). With a residual, x is added (or R x, if the sizes differ)."""

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
        """Return [..., out] from [..., in]."""
        y = self.activation(self.linear(x))
        if not self.use_residual:
            return y
        return y + (self.residual(x) if hasattr(self, "residual") else x)

    @property
    def is_identity(self) -> bool:
        """Whether the layer returns its input unchanged."""
        weight = self.linear.weight
        plain = self.linear.bias is None and isinstance(self.activation, nn.Identity) and not self.use_residual
        return plain and torch.equal(weight, torch.eye(*weight.shape).to(weight))


class Network(nn.Module):
    """Token ids to token embeddings: the last hidden states of `backbone`, through each projection, masked, normalized.

    Attributes:
        scorer: Computes token weights and scores; its heads, if any, stay in float32.
        int8: Whether encoding on a CPU computes the backbone's linear layers in bytes. Weights stay in float32.
        transformer: In training mode, computes the last hidden states and the last layer's attention in place of `padded`; None: `padded`.
    """

    def __init__(
        self, backbone: "PreTrainedModel | Bert", projections: Iterable[Dense] = (), normalize: bool = True, scorer: Scorer | None = None
    ):
        super().__init__()
        self.int8 = False
        self.transformer: Callable[[TokenBatch], tuple[Tensor, ReceivedAttention | None]] | None = None
        self.backbone = backbone
        layers = list(projections)
        width = backbone.config.hidden_size
        for layer in layers:
            if layer.linear.in_features != width:
                raise ConfigError(f"a projection reads {layer.linear.in_features} dimensions, but gets {width}; copy the checkpoint again")
            width = layer.linear.out_features
        self.projections = nn.ModuleList(layers)
        self.normalize = normalize
        self.dim: int = width
        self.scorer = scorer or MaxSim(self.dim, Config())

    @property
    def layers(self) -> list[Dense]:
        """The projections, in order."""
        return [layer for layer in self.projections if isinstance(layer, Dense)]

    def queries(self, batch: TokenBatch) -> EmbeddedTexts:
        """Return vectors and token weights of queries; differentiable. Masked rows are zero (they are masked before normalization)."""
        return self._embed(batch, self.scorer.query_weights, lambda attention: None)

    def documents(self, batch: TokenBatch) -> EmbeddedTexts:
        """Return vectors, token weights and stored attention of documents; differentiable. Masked rows are zero."""
        return self._embed(batch, self.scorer.document_weights, self.scorer.stored_attention)

    def place(self, device: torch.device, dtype: torch.dtype, int8: bool = False) -> "Network":
        """Move the network to a device and convert everything except the scorer's heads to a number format; return it.

        Args:
            device: The device.
            dtype: Number format of the weights.
            int8: Encode with products of bytes.

        Raises:
            ConfigError: `int8`, and the device or the model does not allow it.
            KernelUnavailable: `int8`, and the compiled kernels are missing.
        """
        if int8 and (device.type != "cpu" or not unpadded_bert.is_supported(self.backbone)):
            config = self.backbone.config
            activation = getattr(config, "hidden_act", None)
            model = f"a model of type {config.model_type}" + (f" and activation {activation}" if activation else "")
            reason = f"device {device}" if device.type != "cpu" else model
            raise ConfigError(f"precision int8 encodes on a CPU, with models like BERT and MPNet, and not with {reason}; choose auto")
        self.int8 = int8
        self.to(device, dtype)
        self.scorer.float()
        if int8:
            unpadded_pass(self)  # refuses sizes that bytes do not allow
        return self

    def train(self, mode: bool = True) -> "Network":
        """Set training mode. The weights prepared for encoding are dropped, because a fused optimizer changes weights without a version
        count."""
        if mode:
            unpadded_pass.forget(self)
        return super().train(mode)

    def _embed(
        self,
        batch: TokenBatch,
        weigh: Callable[[Tensor, ReceivedAttention | None], Tensor | None],
        store: Callable[[ReceivedAttention | None], Tensor | None],
    ) -> EmbeddedTexts:
        projected, attention = self._project(batch)
        with torch.autocast(projected.device.type, enabled=False):
            weights = weigh(projected, attention)
            vectors = nn.functional.normalize(projected, dim=-1, eps=1e-12) if self.normalize else projected
            return EmbeddedTexts(vectors, batch.keep_mask, weights, store(attention))

    def _project(self, batch: TokenBatch) -> tuple[Tensor, ReceivedAttention | None]:
        """Return float32 vectors before normalization, [B, L, D], and the last layer's attention if the scorer reads it."""
        in_training, reads_attention = self.transformer if self.training else None, self.scorer.reads_attention
        fast_pass = None if in_training else self._without_padding(batch)
        hidden, attention = fast_pass(batch, reads_attention) if fast_pass else (in_training or self.padded)(batch)
        for projection in self.projections:
            hidden = apply_with_padded_rows(projection, hidden)
        return hidden.float() * batch.keep_mask.unsqueeze(-1), attention if reads_attention else None

    @property
    def needs_no_padding(self) -> bool:
        """Whether this model encodes without padding on a CPU."""
        return unpadded_bert.is_supported(self.backbone)

    def padded(self, batch: TokenBatch) -> tuple[Tensor, ReceivedAttention | None]:
        """Return the last hidden states of the model's own forward pass, [B, L, W], and the attention that the scorer reads, if any."""
        recorder = AttentionRecorder() if self.scorer.reads_attention else None
        with recorder or nullcontext():
            hidden = self.backbone(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state
        return hidden, recorder.last(batch.attention_mask) if recorder else None

    def _without_padding(self, batch: TokenBatch) -> unpadded_bert.UnpaddedBert | None:
        """Return the forward pass without padding, if it can be used. Its weights are prepared once, and again if the weights change."""
        if torch.is_grad_enabled() or self.backbone.training or batch.input_ids.device.type != "cpu" or torch.is_autocast_enabled("cpu"):
            return None
        if not unpadded_bert.has_tokens(batch):
            return None
        fast_pass = unpadded_pass(self)
        if fast_pass is not None and not fast_pass.is_current:
            unpadded_pass.forget(self)
            fast_pass = unpadded_pass(self)
        return fast_pass


@derived
def unpadded_pass(network: Network) -> unpadded_bert.UnpaddedBert | None:
    """Return the forward pass without padding, with weights prepared for its products; None if the backbone has no such pass."""
    return unpadded_bert.UnpaddedBert(network.backbone, network.int8) if unpadded_bert.is_supported(network.backbone) else None
