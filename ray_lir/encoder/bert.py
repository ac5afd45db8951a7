"""BERT's weights for inference, loaded without transformers: importing its models takes longer than importing torch.

`UnpaddedBert` computes with the modules. Their names are those of transformers' BertModel, so weights have the same names and digest.
"""

from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ray_lir.base.config import parse_json
from ray_lir.encoder.bert_files import is_plain_bert, weight_name


class Bert(nn.Module):
    """The modules of a BERT without pooler. `UnpaddedBert` is their forward pass.

    Attributes:
        config: The settings of config.json.
    """

    def __init__(self, config: SimpleNamespace):
        super().__init__()
        self.config = config
        self.embeddings = _Embeddings(config)
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(_layer(config) for _ in range(config.num_hidden_layers))


class _Embeddings(nn.Module):
    def __init__(self, config: SimpleNamespace):
        super().__init__()
        self.word_embeddings = _embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = _embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = _embedding(config.type_vocab_size, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, input_ids: Tensor, position_ids: Tensor) -> Tensor:
        """Return [..., W] from token ids and positions [...]; sums in transformers' order, so the bits are the same."""
        words = self.word_embeddings(input_ids) + self.token_type_embeddings.weight[0]
        return self.LayerNorm(words + self.position_embeddings(position_ids))


def _layer(config: SimpleNamespace) -> nn.Module:
    width, inner, eps = config.hidden_size, config.intermediate_size, config.layer_norm_eps
    layer = nn.Module()
    layer.attention, layer.intermediate = nn.Module(), nn.Module()
    layer.attention.self = nn.Module()
    layer.attention.self.num_attention_heads = config.num_attention_heads
    for name in ("query", "key", "value"):
        layer.attention.self.register_module(name, _linear(width, width))
    layer.attention.output = _output(width, width, eps)
    layer.intermediate.dense = _linear(width, inner)
    layer.output = _output(inner, width, eps)
    return layer


def _linear(inputs: int, outputs: int) -> nn.Linear:
    """Return a layer with unset weights. torch's constructor would draw random numbers; on the meta device it would load torch._dynamo,
    which takes longer than the model."""
    layer = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(layer)
    layer.in_features, layer.out_features = inputs, outputs
    layer.weight, layer.bias = nn.Parameter(torch.empty(outputs, inputs)), nn.Parameter(torch.empty(outputs))
    return layer


def _embedding(count: int, width: int) -> nn.Embedding:
    """Return an embedding table with unset weights."""
    return nn.Embedding(count, width, _weight=torch.empty(count, width))


def _output(inner: int, width: int, eps: float) -> nn.Module:
    output = nn.Module()
    output.dense = _linear(inner, width)
    output.LayerNorm = nn.LayerNorm(width, eps=eps)
    return output


def load_bert(folder: Path) -> Bert | None:
    """Return the model of a checkpoint folder in float32; None if it is not a plain BERT with all weights in one model.safetensors.

    Args:
        folder: Folder with config.json. transformers loads the folders that are refused here, and reports what is wrong with them.
    """
    try:
        settings = parse_json((folder / "config.json").read_text())
        if not is_plain_bert(settings) or (folder / "adapter_config.json").exists():
            return None
        tensors = load_file(folder / "model.safetensors")
        weights = {known: tensor for name, tensor in tensors.items() if (known := weight_name(name))}
        if len(weights) < sum(weight_name(name) is not None for name in tensors):
            return None  # a weight under two names
        layers = {name.split(".")[2] for name in weights if name.startswith("encoder.layer.")}
        if layers != set(map(str, range(min(settings["num_hidden_layers"], len(weights))))):
            return None
        model = Bert(SimpleNamespace(**{"layer_norm_eps": 1e-12} | settings))
        # The copy stays valid if the file is overwritten.
        copies = {name: tensor.to(torch.float32, copy=True) for name, tensor in weights.items()}
        model.load_state_dict(copies, assign=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, SafetensorError):
        return None
    return model.eval()
