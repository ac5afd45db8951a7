"""Stanford ColBERT checkpoints: one weight file that includes the projection, and settings in artifact.metadata.

Source: docs/algorithms.md#14-checkpoint-layouts
"""

import string
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ray_lir.base.errors import ConfigError
from ray_lir.encoder.layouts.loading import Parts, load_backbone, load_tokenizer, load_transformer, load_weights, read_json_object
from ray_lir.encoder.network import Dense, Network

if TYPE_CHECKING:
    from ray_lir.encoder.layouts.loading import Backbone, Tokenizer

QUERY_LENGTH, DOCUMENT_LENGTH = 32, 220  # the defaults of the original (docs/algorithms.md#12-lengths)


def matches(path: Path) -> bool:
    """Return whether this is a .dnn file, or a folder with the architecture HF_ColBERT."""
    return path.suffix == ".dnn" or "HF_ColBERT" in (read_json_object(path / "config.json").get("architectures") or [])


def load(path: Path, trust_remote_code: bool = False, light: bool = False) -> Parts:
    """Return the network, tokenizer and conventions of a folder, or of a legacy .dnn file with its base model's config.json and tokenizer
    beside it.

    Args:
        path: The folder or file.
        trust_remote_code: Run Python code of the checkpoint.
        light: Load a plain BERT and its tokenizer without transformers, for inference on a CPU.

    Raises:
        ConfigError: A file or the projection is missing, or a file is damaged.
    """
    backbone: Backbone
    tokenizer: Tokenizer
    if path.suffix == ".dnn":
        folder, state = path.parent, _legacy_weights(path)
        if not (folder / "config.json").is_file():
            raise ConfigError(f"{path} holds only weights; put the config.json and tokenizer files of its base model beside it")
        backbone, tokenizer = load_backbone(folder, state, trust_remote_code), load_tokenizer(folder, trust_remote_code)
    else:
        folder, state = path, load_weights(path)
        backbone, tokenizer = load_transformer(folder, trust_remote_code, light)
    weight = state.get("linear.weight")
    if weight is None:
        raise ConfigError(f"{path} has no linear.weight, the projection of a ColBERT checkpoint; copy the checkpoint again")
    projection = Dense(weight.shape[1], weight.shape[0])
    projection.load_state_dict({"linear.weight": weight})
    return Parts(Network(backbone, [projection.float()]), tokenizer, conventions(read_json_object(folder / "artifact.metadata"), tokenizer))


def conventions(metadata: dict[str, Any], tokenizer: "Tokenizer") -> dict[str, Any]:
    """Return the conventions in artifact.metadata; missing settings have Stanford's defaults."""
    return {
        "query_marker": metadata.get("query_token_id") or "[unused0]",
        "document_marker": metadata.get("doc_token_id") or "[unused1]",
        "query_length": metadata.get("query_maxlen") or QUERY_LENGTH,
        "document_length": metadata.get("doc_maxlen") or DOCUMENT_LENGTH,
        "query_expansion": True,
        "attend_to_expansion": bool(metadata.get("attend_to_mask_tokens", False)),
        "expansion_token": tokenizer.mask_token,
        "skip_tokens": _skip_list(tokenizer) if metadata.get("mask_punctuation", True) else (),
    }


def _skip_list(tokenizer: "Tokenizer") -> tuple[int, ...]:
    """Return the first sub-token of each punctuation character (docs/algorithms.md#11-token-sequence)."""
    first = [tokenizer.encode(symbol, add_special_tokens=False)[:1] for symbol in string.punctuation]
    return tuple(sorted({ids[0] for ids in first if ids and ids[0] != tokenizer.unk_token_id}))


def _legacy_weights(path: Path) -> dict[str, torch.Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)["model_state_dict"]
    except Exception as error:  # a pickle with other content can raise almost any exception
        reason = " ".join(str(error).split())[:120]
        raise ConfigError(
            f"{path} is not a ColBERT file of plain tensors ({type(error).__name__}: {reason}); convert it to a folder"
        ) from None
