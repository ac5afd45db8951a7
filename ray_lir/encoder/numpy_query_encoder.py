"""Encode queries of BERT checkpoints with NumPy. For one query, loading torch and transformers takes a hundred times as long as encoding.

Shapes: T tokens of a query, W width of the model, H heads, D dimensions.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ray_lir.base.config import parse_json
from ray_lir.embeddings.contract import EncoderContract
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.encoder.bert_files import is_plain_bert, weight_name
from ray_lir.encoder.checkpoint import find
from ray_lir.encoder.tokenization import TextTokenizer
from ray_lir.encoder.tokenizer_file import TokenizerFile
from ray_lir.storage.file_names import check_name

Weights = dict[str, np.ndarray]
MODULES = {"Transformer", "Dense", "Pooling", "Normalize", "Dropout", "MultiVectorMask"}
"""Modules of a modules.json that this encoder supports: Transformer and Dense; the contract describes the effect of the others."""

_erf = np.frompyfunc(math.erf, 1, 1)


class NumpyQueryEncoder:
    """Encodes queries as `Encoder` does in float32, except for rounding of sums.

    Attributes:
        contract: The conventions.
        tokenizer: Makes the token ids of queries.
    """

    def __init__(self, contract: EncoderContract, tokenizer: TextTokenizer, config: dict[str, Any], weights: Weights, dense: Sequence[str]):
        self.contract = contract
        self.tokenizer = tokenizer
        self._config = config
        self._weights = weights
        self._dense = dense

    @classmethod
    def load(cls, contract: EncoderContract, checkpoint: str) -> "NumpyQueryEncoder | None":
        """Return the encoder of a contract; None if its checkpoint is not supported here or has other weights.

        Args:
            contract: The contract of the index.
            checkpoint: Path, URL or name of the checkpoint.

        Raises:
            ConfigError: There is no such checkpoint.
        """
        if contract.scorer != "maxsim" or contract.weighs:
            return None
        try:
            return cls._load(contract, find(checkpoint))
        except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError):  # `Encoder` reports the problem
            return None

    @classmethod
    def _load(cls, contract: EncoderContract, path: Path) -> "NumpyQueryEncoder | None":
        modules = parse_json((path / "modules.json").read_text()) if (path / "modules.json").is_file() else []
        for name in filter(None, (module["path"] for module in modules)):
            check_name(name)
        kinds = {module["path"]: module["type"].rpartition(".")[2] for module in modules}
        folder = path / next((name for name, kind in kinds.items() if kind == "Transformer"), "")
        config = parse_json((folder / "config.json").read_text())
        if not is_plain_bert(config) or set(kinds.values()) - MODULES:
            return None
        tokenizer = TokenizerFile.load(folder)
        if tokenizer is None or not tokenizer.encode(""):  # a query without tokens needs a pass of its own
            return None
        weights = _backbone(load_file(folder / "model.safetensors"))
        layers = [path / name for name, kind in kinds.items() if kind == "Dense"]
        dense = list(_projections(layers, weights))
        if _digest(weights, len(dense)) != contract.weights_digest:
            return None
        return cls(contract, TextTokenizer(contract, tokenizer), config, weights, dense)

    def encode_queries(self, texts: Sequence[str]) -> TokenEmbeddings:
        """Return queries as token embeddings, including expansion tokens.

        Raises:
            ConfigError: A text is not a string, or the model has no vector for a token.
        """
        vectors, tokens = [], self.tokenizer.bare_queries(texts)
        self.tokenizer.check_ids(tokens, self._config["vocab_size"])
        for bare in tokens:
            ids = self.tokenizer.expand(bare)
            attended = len(ids) if self.contract.attend_to_expansion else len(bare)
            kept = ~np.isin(ids, self.contract.query_skip_tokens)
            vectors.append(self._vectors(ids, attended)[kept].astype(np.float16))
        return TokenEmbeddings.of(vectors, texts=texts)

    def _vectors(self, ids: np.ndarray, attended: int) -> np.ndarray:
        """Return [T, D] float32; the first `attended` tokens are attended to."""
        hidden = self._hidden(ids, attended)
        for name in self._dense:
            hidden = hidden @ self._weights[f"{name}.weight"].T + self._weights.get(f"{name}.bias", 0)
        if not self.contract.normalize:
            return hidden
        return hidden / np.maximum(np.linalg.norm(hidden, axis=1, keepdims=True), 1e-12)

    def _hidden(self, ids: np.ndarray, attended: int) -> np.ndarray:
        """Return the last hidden states, [T, W] float32."""
        weights, prefix = self._weights, "backbone.embeddings."
        words = weights[f"{prefix}word_embeddings.weight"][ids]
        positions = weights[f"{prefix}position_embeddings.weight"][: len(ids)]
        hidden = self._norm(words + positions + weights[f"{prefix}token_type_embeddings.weight"][0], f"{prefix}LayerNorm")
        for number in range(self._config["num_hidden_layers"]):
            layer = f"backbone.encoder.layer.{number}."
            mixed = self._linear(self._attention(hidden, attended, f"{layer}attention.self."), f"{layer}attention.output.dense")
            hidden = self._norm(mixed + hidden, f"{layer}attention.output.LayerNorm")
            wide = self._linear(hidden, f"{layer}intermediate.dense")
            wide = 0.5 * wide * (1 + _erf(wide * 0.5**0.5).astype(np.float32))
            hidden = self._norm(self._linear(wide, f"{layer}output.dense") + hidden, f"{layer}output.LayerNorm")
        return hidden

    def _attention(self, hidden: np.ndarray, attended: int, name: str) -> np.ndarray:
        heads = self._config["num_attention_heads"]
        query, key, value = (
            self._linear(hidden, name + part).reshape(len(hidden), heads, -1).transpose(1, 0, 2) for part in ("query", "key", "value")
        )
        scores = query @ key[:, :attended].transpose(0, 2, 1) / math.sqrt(query.shape[-1])
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (shares / shares.sum(axis=-1, keepdims=True)) @ value[:, :attended]
        return mixed.transpose(1, 0, 2).reshape(hidden.shape)

    def _linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _norm(self, x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + self._config.get("layer_norm_eps", 1e-12))
        return scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]


def _backbone(tensors: Weights) -> Weights:
    """Return the tensors under the names that the network uses."""
    weights = {}
    for name, tensor in tensors.items():
        if name == "linear.weight":
            weights["projections.0.linear.weight"] = tensor
        elif known := weight_name(name):
            weights[f"backbone.{known}"] = tensor
    return {name: tensor.astype(np.float32, copy=False) for name, tensor in weights.items()}


def _projections(folders: Sequence[Path], weights: Weights) -> Iterator[str]:
    """Yield the names of the projections, and add the weights of those in separate folders. An identity is left out.

    Raises:
        ValueError: A projection has an activation or a residual.
    """
    if "projections.0.linear.weight" in weights:
        yield "projections.0.linear"
    for folder in folders:
        config, tensors = parse_json((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
        if not str(config.get("activation_function")).endswith(".Identity") or config.get("use_residual"):
            raise ValueError(f"{folder} is not a plain projection")
        weight = tensors["linear.weight"].astype(np.float32)
        if "linear.bias" not in tensors and weight.shape[0] == weight.shape[1] and (weight == np.eye(len(weight))).all():
            continue
        name = f"projections.{sum(name.endswith('linear.weight') for name in weights)}.linear"
        weights[f"{name}.weight"] = weight
        if "linear.bias" in tensors:
            weights[f"{name}.bias"] = tensors["linear.bias"].astype(np.float32)
        yield name


def _digest(weights: Weights, num_projections: int) -> str:
    """Return `weights_digest` of encoder.py for the same network."""
    sha = hashlib.sha256(b"Identity False;" * num_projections)
    for name, tensor in sorted(weights.items()):
        sha.update(f"{name} {list(tensor.shape)} torch.float32;".encode())
        sha.update(np.ascontiguousarray(tensor).data.cast("B"))
    return sha.hexdigest()
