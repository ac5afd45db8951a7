"""Which BERT checkpoints are read without transformers, and the names of their weights."""

from typing import Any

CHANGES = ("_attn_implementation", "add_cross_attention", "attn_implementation", "auto_map", "is_decoder", "quantization_config")
"""Settings of config.json that select other layers, weights or code."""


def is_plain_bert(config: dict[str, Any]) -> bool:
    """Return whether a config.json describes BERT's original layers."""
    return (
        config.get("model_type") == "bert"
        and config.get("hidden_act") == "gelu"
        and config.get("position_embedding_type") in (None, "absolute")
        and not any(config.get(name) for name in CHANGES)
    )


def weight_name(name: str) -> str | None:
    """Return a weight's name in transformers' BertModel from its name in a checkpoint; None if the hidden states need no such weight."""
    name = name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return name if name.startswith(("embeddings.", "encoder.")) and not name.endswith(("position_ids", "token_type_ids")) else None
