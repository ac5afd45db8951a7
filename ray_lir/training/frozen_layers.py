"""Training of the last layers only: the earlier layers are frozen, and on a CPU each text passes through them once.

Shapes: B texts, L tokens of the longest, W width of the model.
"""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ray_lir.base.errors import ConfigError
from ray_lir.base.short_repr import ShortRepr
from ray_lir.encoder.network import Network
from ray_lir.encoder.unpadded_bert import UnpaddedBert, has_tokens, is_supported, present_tokens
from ray_lir.scorers.batches import TokenBatch
from ray_lir.scorers.received_attention import KnownAttention, ReceivedAttention

MAX_BYTES = 1 << 30
"""Bytes of hidden states that are kept by default: 1.4 million tokens of 384 dimensions in bfloat16."""


@dataclass(frozen=True, eq=False, repr=False)
class _Kept(ShortRepr):
    """What the frozen layers give for the tokens of one text.

    Attributes:
        states: [tokens, W], in the number format of the products.
        received: [tokens, 2], `KnownAttention.received`; None if the scorer reads no attention, or the last layer is trained.
    """

    states: Tensor
    received: Tensor | None


class FrozenLayers:
    """The embedding layer and the first layers of a network as they were when this object was made.

    Args:
        network: The network in training, with a backbone like BERT.
        num_trained: Number of last layers that are trained; 0 if only the projections and the scorer's heads are.
        products: Number format of the products of the frozen layers on a CPU. A GPU uses that of the surrounding autocast.
        max_bytes: Most bytes of hidden states to keep. Once they are full, the states of further texts are computed in every step.
        attention: Keep the attention of the last layer too, if it is frozen. None: if the network's scorer reads it.

    Raises:
        ConfigError: The backbone has no list `encoder.layer`, not more than `num_trained` layers, or nothing remains to train.
    """

    def __init__(
        self,
        network: Network,
        num_trained: int,
        products: torch.dtype = torch.float32,
        max_bytes: int = MAX_BYTES,
        attention: bool | None = None,
    ):
        layers = _layers(network)
        if num_trained >= len(layers):
            raise ConfigError(f"--trained_layers {num_trained} freezes no layer: the model has {len(layers)}; give fewer, or leave it out")
        if not num_trained and not [*network.projections.parameters(), *network.scorer.parameters()]:
            raise ConfigError("--trained_layers 0 leaves nothing to train: the model has no projection; add --projection_dim")
        self._num_trained, self._max_bytes = num_trained, max_bytes
        self._attention = not num_trained and (network.scorer.reads_attention if attention is None else attention)
        first: Any = copy.deepcopy(network.backbone).requires_grad_(False).eval()
        del first.encoder.layer[len(layers) - num_trained :]
        self._first = first
        on_cpu = next(first.parameters()).device.type == "cpu"
        self._unpadded = UnpaddedBert(first.to(products)) if on_cpu and is_supported(first) else None
        self._kept: dict[bytes, _Kept] = {}

    def freeze(self, network: Network) -> None:
        """Freeze the first layers of a network, and set evaluation mode for them: frozen layers have no dropout."""
        layers = _layers(network)
        for part in (network.backbone.embeddings, *layers[: len(layers) - self._num_trained]):
            part.requires_grad_(False).eval()

    def __call__(self, network: Network, batch: TokenBatch) -> tuple[Tensor, ReceivedAttention | None]:
        """Return the last hidden states, [B, L, W], and the attention of the last layer if the scorer reads it; differentiable.

        Args:
            network: The network in training.
            batch: Token ids.
        """
        if not self._num_trained:
            return self._outputs(network, batch)
        backbone: Any = network.backbone
        layers, embeddings, states = _layers(network), backbone.embeddings, self._states(batch)
        backbone.embeddings, backbone.encoder.layer = _Given(states), layers[-self._num_trained :]
        try:
            return network.padded(batch)
        finally:
            backbone.embeddings, backbone.encoder.layer = embeddings, layers

    @torch.no_grad()
    def _outputs(self, network: Network, batch: TokenBatch) -> tuple[Tensor, ReceivedAttention | None]:
        """Return the output of the transformer if all its layers are frozen."""
        if self._unpadded is None or not has_tokens(batch):
            network.backbone.eval()
            return network.padded(batch)
        kept, present = self._texts(batch)
        received = [each.received for each in kept if each.received is not None]
        attention = KnownAttention(_pad(received, present), batch.attention_mask.bool()) if received else None
        return _pad([each.states for each in kept], present), attention

    @torch.no_grad()
    def _states(self, batch: TokenBatch) -> Tensor:
        """Return the hidden states before the trained layers, [B, L, W] float32."""
        if self._unpadded is None or not has_tokens(batch):
            return self._first(input_ids=batch.input_ids, attention_mask=batch.attention_mask).last_hidden_state.float()
        kept, present = self._texts(batch)
        return _pad([each.states for each in kept], present)

    def _texts(self, batch: TokenBatch) -> tuple[list[_Kept], Tensor]:
        """Return what the frozen layers give for each text, and the tokens that are not padding, [B, L] bool.

        A text's values do not depend on the other texts of a batch. A training that continues therefore gets the same values.
        """
        assert self._unpadded
        present = present_tokens(batch)
        keys = [
            torch.stack([ids[there], attended[there]]).numpy().tobytes()
            for ids, attended, there in zip(batch.input_ids, batch.attention_mask, present, strict=True)
        ]
        found = {key: self._kept[key] for key in keys if key in self._kept}
        new = [row for row, key in enumerate(keys) if key not in found]
        if new:
            part = TokenBatch(batch.input_ids[new], batch.attention_mask[new], batch.keep_mask[new])
            with torch.autocast("cpu", enabled=False):
                states, attention = self._unpadded(part, self._attention)
            received = torch.stack([attention.column_mean(), attention.first_row()], -1).float() if attention else None
            for place, row in enumerate(new):
                there = present[row]
                text = _Kept(states[place][there].clone(), None if received is None else received[place][there].clone())
                found[keys[row]] = text
                if text.states.nbytes <= self._max_bytes:
                    self._max_bytes -= text.states.nbytes
                    self._kept[keys[row]] = text
        return [found[key] for key in keys], present


class _Given(nn.Module):
    """An embedding layer that returns given values for any input."""

    def __init__(self, values: Tensor):
        super().__init__()
        self._values = values

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        """Return the values."""
        return self._values


def _layers(network: Network) -> nn.ModuleList:
    layers = getattr(getattr(network.backbone, "encoder", None), "layer", None)
    if not isinstance(layers, nn.ModuleList):
        model = network.backbone.config.model_type
        raise ConfigError(f"--trained_layers needs a model with layers like BERT's, and {model} has others; leave it out")
    return layers


def _pad(rows: list[Tensor], present: Tensor) -> Tensor:
    """Return the rows of all texts, [B, L, ...] float32, zero for padding."""
    padded = torch.zeros(*present.shape, rows[0].shape[-1])
    padded[present] = torch.cat(rows).float()
    return padded
