"""BERT and MPNet on a CPU without padding: the tokens of all texts form one matrix, and only attention separates the texts.

Shapes: T tokens of all texts, W width of the model, H heads, d dimensions per head.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from ray_lir.encoder.byte_layers import ByteLayers, check_layers
from ray_lir.encoder.layer_parts import LayerParts, layer_parts
from ray_lir.scorers.batches import ROWS, TokenBatch
from ray_lir.scorers.received_attention import RunAttention, UnpaddedAttention

FAMILY = {"bert", "roberta", "xlm-roberta", "camembert"}
"""Model types with BERT's layers and names."""
MPNET = "mpnet"
"""Model type with BERT's layers under other names, and a bias for the distance between two tokens."""


Products = tuple[Tensor, Tensor, Tensor]
"""Query [texts, H, length, d], key and value [texts, H, attended, d] of texts of equal length."""


@dataclass(frozen=True)
class Run:
    """`count` consecutive texts of `length` tokens each; the first `attended` tokens of each are attended to."""

    count: int
    length: int
    attended: int


class UnpaddedBert:
    """The forward pass of a supported model in evaluation mode, without gradients.

    Weights are stored a second time in oneDNN's memory order. Without that, every product takes a quarter longer, and GELU needs a pass of
    its own.

    Args:
        backbone: A model that `is_supported`.
        int8: Compute the products of linear layers in bytes (docs/algorithms.md#17-products-of-bytes).

    Raises:
        ConfigError: `int8`, and the sizes of a layer do not allow it.
        KernelUnavailable: `int8`, and the compiled kernels are missing.
    """

    def __init__(self, backbone: Any, int8: bool = False):
        self._modules = list(backbone.modules())
        self._made_of = _state(self._modules)
        self._embeddings = backbone.embeddings
        self._first_position = getattr(backbone.embeddings, "padding_idx", -1) + 1  # RoBERTa's positions start after its padding token
        parts = [layer_parts(layer) for layer in backbone.encoder.layer]
        if int8:
            check_layers([linear for each in parts for linear in each.linears])
        self._byte_layers = ByteLayers(parts) if int8 else None
        self._layers = [] if int8 else [_Layer(each) for each in parts]
        self._distances = backbone.encoder if backbone.config.model_type == MPNET else None

    @property
    def is_current(self) -> bool:
        """Whether the model still has the modules and weights that this object was made from."""
        return _state(self._modules) == self._made_of

    def __call__(self, batch: TokenBatch, with_attention: bool = True) -> tuple[Tensor, UnpaddedAttention | None]:
        """Return the last hidden states, [B, L, W], zero for padding, and the attention of the last layer if it is wanted.

        The first token of every text must be attended to (`has_tokens`).
        """
        present, attended = present_tokens(batch), batch.attention_mask.bool()
        lengths = present.sum(1).tolist(), attended.sum(1).tolist()
        runs = group_runs(*lengths)
        positions = present.nonzero()[:, 1] + self._first_position
        hidden = self._embeddings(input_ids=batch.input_ids[present][None], position_ids=positions[None])[0]
        if self._byte_layers is None:
            hidden, products, biases = self._in_floats(hidden, runs)
        else:
            hidden, products, biases = self._in_bytes(self._byte_layers, hidden, runs, lengths, with_attention)
        padded = hidden.new_zeros(*present.shape, hidden.shape[-1])
        padded[present] = hidden
        if not with_attention:
            return padded, None
        return padded, UnpaddedAttention([_last_attention(*each) for each in zip(products, biases, strict=True)], attended)

    def _in_floats(self, hidden: Tensor, runs: list[Run]) -> tuple[Tensor, list[Products], list[Tensor | None]]:
        """Return the last hidden states, [T, W], and products and bias of each run in the last layer's attention."""
        num_tokens = len(hidden)
        biases = [self._bias(run) for run in runs]
        hidden = functional.pad(hidden, (0, 0, 0, -num_tokens % ROWS))
        for layer in self._layers:
            products = layer.products(hidden, runs)
            hidden = layer(hidden, attend(products, biases, hidden))
        return hidden[:num_tokens], products, biases

    def _in_bytes(
        self, layers: ByteLayers, hidden: Tensor, runs: list[Run], lengths: tuple[list[int], list[int]], with_attention: bool
    ) -> tuple[Tensor, list[Products], list[Tensor | None]]:
        """Return the same with products of bytes; products and biases are empty unless the attention is wanted."""
        distances = self._distance_biases(max(lengths[0]))
        if not with_attention:
            return layers(hidden, *lengths, distances), [], []
        hidden = layers(hidden, *lengths, distances, last=False)
        projected, hidden = layers.last_layer(hidden, *lengths, distances)
        return hidden, _products(projected.flatten(1), runs, layers.heads), [self._bias(run) for run in runs]

    def _distance_biases(self, longest: int) -> Tensor | None:
        """Return what is added to the logits for each distance of a key from a query, [H, 2 longest + 1]; None: nothing."""
        if self._distances is None:
            return None
        buckets = self._distances.relative_position_bucket(torch.arange(-longest, longest + 1))
        return self._distances.relative_attention_bias(buckets).T

    def _bias(self, run: Run) -> Tensor | None:
        """Return what is added to the logits of attention for the distances between tokens, [1, H, length, attended]; None: nothing."""
        if self._distances is None:
            return None
        positions = torch.arange(run.length)
        buckets = self._distances.relative_position_bucket(positions[: run.attended] - positions[:, None])
        return self._distances.relative_attention_bias(buckets).permute(2, 0, 1)[None].contiguous()


def attend(products: list[Products], biases: list[Tensor | None], rest: Tensor) -> Tensor:
    """Return the result of attention for all tokens, [T, W].

    Args:
        products: Query, key and value of each run.
        biases: What to add to the logits of each run, [1, H, length, attended]; None: nothing.
        rest: [T, W]; its rows after the tokens of the runs are copied.
    """
    mixed = [
        functional.scaled_dot_product_attention(*each, attn_mask=bias).transpose(1, 2).flatten(0, 1).flatten(1)
        for each, bias in zip(products, biases, strict=True)
    ]
    return torch.cat([*mixed, rest[sum(map(len, mixed)) :]])


class _Layer:
    """One layer, in the number format of its weights."""

    def __init__(self, parts: LayerParts):
        self._heads = parts.heads
        self._project, self._output, self._norm = _linear(*parts.project), _linear(parts.output), parts.norm
        self._widen, self._narrow, self._last_norm = _linear(parts.widen, activation="gelu"), _linear(parts.narrow), parts.last_norm

    def products(self, hidden_TW: Tensor, runs: list[Run]) -> list[Products]:
        """Return for each run the query, [count, H, length, d], and key and value, [count, H, attended, d]."""
        return _products(self._project(hidden_TW), runs, self._heads)

    def __call__(self, hidden_TW: Tensor, attended_TW: Tensor) -> Tensor:
        """Return the output of the layer from its input and the result of attention, [T, W]."""
        hidden = self._norm(self._output(attended_TW) + hidden_TW)
        return self._last_norm(self._narrow(self._widen(hidden)) + hidden)


def is_supported(backbone: Any) -> bool:
    """Return whether UnpaddedBert can replace a model: it has the original layers of BERT or MPNet, and no layer was replaced."""
    config = backbone.config
    if config.model_type not in {*FAMILY, MPNET} or config.hidden_act != "gelu" or getattr(config, "is_decoder", False):
        return False
    if getattr(config, "position_embedding_type", "absolute") != "absolute" or not len(backbone.encoder.layer):
        return False
    return all(type(module) is nn.Linear for name, module in backbone.encoder.named_modules() if name.endswith(LINEAR))


LINEAR = (".query", ".key", ".value", ".dense", ".attn.q", ".attn.k", ".attn.v", ".attn.o")


def has_tokens(batch: TokenBatch) -> bool:
    """Return whether the first token of every text is attended to."""
    return batch.input_ids.numel() > 0 and bool(batch.attention_mask[:, 0].all())


def present_tokens(batch: TokenBatch) -> Tensor:
    """Return [B, L] bool; false for padding, which is neither attended to nor kept."""
    return batch.attention_mask.bool() | batch.keep_mask


def group_runs(lengths: list[int], attended: list[int]) -> list[Run]:
    """Return consecutive texts that attention can process together without a mask."""
    return [Run(len(list(texts)), *sizes) for sizes, texts in groupby(zip(lengths, attended, strict=True))]


def native_bfloat16() -> bool:
    """Return whether this machine's CPU multiplies bfloat16 natively."""
    supported = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    return supported and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # oneDNN may be configured for a smaller instruction set


def _state(modules: list[nn.Module]) -> tuple[list[int], list[tuple[int, int]]]:
    """Return values that differ if a module is replaced or a weight changes. They are read for every batch, so torch's slower search is
    avoided."""
    weights = (weight for module in modules for weight in module._parameters.values() if weight is not None)
    return (
        [id(part) for module in modules for part in module._modules.values()],
        [(weight.data_ptr(), 0 if weight.is_inference() else weight._version) for weight in weights],
    )


def _products(projected_TX: Tensor, runs: list[Run], heads: int) -> list[Products]:
    """Return the products of each run from those of all tokens, [T, 3 H d]; further rows are ignored."""
    sizes = [run.count * run.length for run in runs]
    parts = projected_TX[: sum(sizes)].split(sizes)
    return [_heads(part, run, heads) for part, run in zip(parts, runs, strict=True)]


def _heads(projected_TX: Tensor, run: Run, heads: int) -> Products:
    query, key, value = projected_TX.view(run.count, run.length, 3, heads, -1).permute(2, 0, 3, 1, 4)
    return query, key[:, :, : run.attended], value[:, :, : run.attended]


def _last_attention(products: Products, bias: Tensor | None) -> RunAttention:
    """Return the attention of the attended tokens; attention paid by other tokens does not count."""
    query, key, _ = products
    attended = key.shape[2]
    return RunAttention(query[:, :, :attended], key, key.shape[-1] ** -0.5, None if bias is None else bias[0, :, :attended])


def _linear(*layers: nn.Linear, activation: str = "none") -> Callable[[Tensor], Tensor]:
    """Return [T, in] -> [T, out]: layers with the same input as one product, followed by the activation."""
    weight, bias = (torch.cat([getattr(layer, name).detach() for layer in layers]) for name in ("weight", "bias"))
    native = weight.dtype == torch.float32 or (weight.dtype == torch.bfloat16 and native_bfloat16())
    if native and torch.backends.mkldnn.is_available():
        packed = torch.ops.mkldnn._reorder_linear_weight(weight)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, activation, [], "none")
    follow = {"none": lambda x: x, "gelu": functional.gelu}[activation]
    return lambda x: follow(functional.linear(x, weight, bias))
