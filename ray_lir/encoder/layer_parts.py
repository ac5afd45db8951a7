"""The modules of a transformer layer of BERT or MPNet, under the same names for both."""

from dataclasses import dataclass
from typing import Any

from torch import nn


@dataclass(frozen=True)
class LayerParts:
    """Attention and a feed-forward network of two products, each followed by residual and norm.

    Attributes:
        heads: Attention heads.
        project: The linear layers that compute query, key and value.
        output: The linear layer after attention.
        norm: The norm of its sum with the layer's input.
        widen: The first layer of the feed-forward network, followed by GELU.
        narrow: The second one.
        last_norm: The norm of its sum with the network's input.
    """

    heads: int
    project: tuple[nn.Linear, nn.Linear, nn.Linear]
    output: nn.Linear
    norm: nn.LayerNorm
    widen: nn.Linear
    narrow: nn.Linear
    last_norm: nn.LayerNorm

    @property
    def linears(self) -> tuple[nn.Linear, ...]:
        """All linear layers."""
        return *self.project, self.output, self.widen, self.narrow


def layer_parts(layer: Any) -> LayerParts:
    """Return the modules of a layer of BERT or MPNet."""
    attention, ends = layer.attention, (layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm)
    if hasattr(attention, "attn"):  # MPNet
        own = attention.attn
        return LayerParts(own.num_attention_heads, (own.q, own.k, own.v), own.o, attention.LayerNorm, *ends)
    own = attention.self
    return LayerParts(own.num_attention_heads, (own.query, own.key, own.value), attention.output.dense, attention.output.LayerNorm, *ends)
