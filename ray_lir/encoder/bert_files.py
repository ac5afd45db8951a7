"""Which BERT checkpoints are read without transformers, and the names of their weights."""

from typing import Any

SIZES = (
    "hidden_size",
    "intermediate_size",
    "max_position_embeddings",
    "num_attention_heads",
    "num_hidden_layers",
    "type_vocab_size",
    "vocab_size",
)
"""Sizes that a config.json must name; transformers has defaults for missing ones."""
NO_CHANGE: dict[str, tuple[object, ...]] = {
    "model_type": ("bert",),
    "hidden_act": ("gelu",),
    "position_embedding_type": (None, "absolute"),
    "_attn_implementation": (None,),
    "add_cross_attention": (None, False),
    "attn_implementation": (None,),
    "auto_map": (None, {}),
    "is_decoder": (None, False),
    "is_encoder_decoder": (None, False),
    "pruned_heads": (None, {}),
    "quantization_config": (None, {}),
    "dtype": (None, "bfloat16", "float16", "float32"),
    "torch_dtype": (None, "bfloat16", "float16", "float32"),
}
"""Values of settings for which the layers and the weights are BERT's original ones."""
FRACTIONS = ("attention_probs_dropout_prob", "classifier_dropout", "hidden_dropout_prob", "initializer_range", "layer_norm_eps")
NO_EFFECT = {
    *("_name_or_path", "architectures", "bos_token_id", "chunk_size_feed_forward", "cls_token_id", "directionality", "eos_token_id"),
    *("finetuning_task", "gradient_checkpointing", "id2label", "label2id", "mask_token_id", "model_max_length", "name_or_path"),
    *("num_labels", "output_attentions", "output_hidden_states", "output_past", "pooler_fc_size", "pooler_num_attention_heads"),
    *("pooler_num_fc_layers", "pooler_size_per_head", "pooler_type", "problem_type", "return_dict", "sentence_transformers"),
    *("sep_token_id", "task_specific_params", "tie_word_embeddings", "tokenizer_class", "torchscript", "transformers_version"),
    *("use_bfloat16", "use_cache"),
}
"""Settings that do not change hidden states. transformers loads a model with a setting that is in none of these lists."""


def is_plain_bert(config: dict[str, Any]) -> bool:
    """Return whether a config.json describes BERT's original layers, with settings that are all known here."""
    if not all(type(config.get(name)) is int and config[name] > 0 for name in SIZES):
        return False
    pad, known = config.get("pad_token_id"), {*SIZES, *NO_CHANGE, *FRACTIONS, *NO_EFFECT, "pad_token_id"}
    return (
        config.keys() <= known
        and config["hidden_size"] % config["num_attention_heads"] == 0
        and {"model_type", "hidden_act"} <= config.keys()
        and all(config[name] in values for name, values in NO_CHANGE.items() if name in config)
        and all(type(config[name]) is float or _is_optional(name, config[name]) for name in FRACTIONS if name in config)
        and (pad is None or (type(pad) is int and 0 <= pad < config["vocab_size"]))
    )


def _is_optional(name: str, value: object) -> bool:
    """Whether a setting of FRACTIONS may have a value that is no fraction."""
    return (name == "classifier_dropout" and value is None) or (name.endswith(("dropout", "dropout_prob")) and type(value) is int)


def weight_name(name: str) -> str | None:
    """Return a weight's name in transformers' BertModel from its name in a checkpoint; None if the hidden states need no such weight."""
    name = name.removeprefix("bert.").replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")
    return name if name.startswith(("embeddings.", "encoder.")) and not name.endswith(("position_ids", "token_type_ids")) else None
