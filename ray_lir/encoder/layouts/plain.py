"""A plain Hugging Face model folder: its last hidden states are the token embeddings."""

from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ray_lir.base.errors import ConfigError
from ray_lir.encoder.layouts.loading import Parts, default_length, load_backbone, load_tokenizer
from ray_lir.encoder.network import Network


def matches(path: Path) -> bool:
    return True


def load(path: Path, trust_remote_code: bool = False) -> Parts:
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"{path} holds no checkpoint that is known (no modules.json, config.json or .dnn file); "
            "give a Hugging Face, sentence-transformers, PyLate or Stanford ColBERT folder"
        )
    backbone, tokenizer = (
        load_backbone(path, trust_remote_code=trust_remote_code),
        load_tokenizer(path, trust_remote_code=trust_remote_code),
    )
    return Parts(Network(backbone), tokenizer, conventions(tokenizer, backbone.config))


def conventions(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, max_seq_length: int | None = None) -> dict[str, Any]:
    """No marker, no expansion, no skip list; queries may be as long as documents, since the model knows no difference."""
    length = default_length(tokenizer, config, max_seq_length)
    return {"query_length": length, "document_length": length}
