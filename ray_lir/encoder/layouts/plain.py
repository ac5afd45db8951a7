"""A plain Hugging Face model folder: its last hidden states are the token embeddings."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray_lir.base.errors import ConfigError
from ray_lir.encoder.layouts.loading import Parts, default_length, load_transformer
from ray_lir.encoder.network import Network

if TYPE_CHECKING:
    from ray_lir.encoder.layouts.loading import ModelConfig, Tokenizer


def matches(path: Path) -> bool:
    """Return True: this layout is the last that is tried."""
    return True


def load(path: Path, trust_remote_code: bool = False, light: bool = False) -> Parts:
    """Return the model and tokenizer of the folder.

    Args:
        path: The folder.
        trust_remote_code: Run Python code of the checkpoint.
        light: Load a plain BERT and its tokenizer without transformers, for inference on a CPU.

    Raises:
        ConfigError: The folder has no config.json, or cannot be loaded.
    """
    if not (path / "config.json").is_file():
        trained = path / "checkpoint"  # the output of jobs.train holds the checkpoint in this folder
        fix = f"give {trained}" if trained.is_dir() else "give a Hugging Face, sentence-transformers, PyLate or Stanford ColBERT folder"
        raise ConfigError(f"{path} holds no known checkpoint (no modules.json, config.json or .dnn file); {fix}")
    backbone, tokenizer = load_transformer(path, trust_remote_code, light)
    return Parts(Network(backbone), tokenizer, conventions(tokenizer, backbone.config))


def conventions(tokenizer: "Tokenizer", config: "ModelConfig", max_seq_length: int | None = None) -> dict[str, Any]:
    """Return conventions without marker, expansion or skip list. Queries may be as long as documents, since the model treats both alike.

    Args:
        tokenizer: The tokenizer.
        config: The transformer's configuration.
        max_seq_length: The limit in sentence-transformers' settings; None: no such limit.
    """
    length = default_length(tokenizer, config, max_seq_length)
    return {"query_length": length, "document_length": length}
