"""A plain Hugging Face model folder: its last hidden states are the token embeddings."""

from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from ray_lir.base.errors import ConfigError
from ray_lir.encoder.layouts.loading import Parts, default_length, load_backbone, load_tokenizer
from ray_lir.encoder.network import Network


def matches(path: Path) -> bool:
    """Return True: this layout is the last that is tried."""
    return True


def load(path: Path, trust_remote_code: bool = False) -> Parts:
    """Return the model and tokenizer of the folder.

    Raises:
        ConfigError: The folder has no config.json, or cannot be loaded.
    """
    if not (path / "config.json").is_file():
        raise ConfigError(
            f"{path} holds no known checkpoint (no modules.json, config.json or .dnn file); "
            "give a Hugging Face, sentence-transformers, PyLate or Stanford ColBERT folder"
        )
    backbone, tokenizer = (
        load_backbone(path, trust_remote_code=trust_remote_code),
        load_tokenizer(path, trust_remote_code=trust_remote_code),
    )
    return Parts(Network(backbone), tokenizer, conventions(tokenizer, backbone.config))


def conventions(tokenizer: PreTrainedTokenizerBase, config: PretrainedConfig, max_seq_length: int | None = None) -> dict[str, Any]:
    """Return conventions without marker, expansion or skip list. Queries may be as long as documents, since the model treats both alike.

    Args:
        tokenizer: The tokenizer.
        config: The transformer's configuration.
        max_seq_length: The limit in sentence-transformers' settings; None: no such limit.
    """
    length = default_length(tokenizer, config, max_seq_length)
    return {"query_length": length, "document_length": length}
