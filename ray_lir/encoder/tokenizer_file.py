"""Read a tokenizer.json without transformers, which takes seconds to load."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ray_lir.base.config import parse_json

BERT_CLASSES = {"BertTokenizer", "BertTokenizerFast"}
"""Tokenizer classes of transformers that read only the vocabulary of a tokenizer.json, and build the rest from tokenizer_config.json."""
FILE_CLASSES = {"TokenizersBackend", "PreTrainedTokenizerFast", "PreTrainedTokenizer"}
"""Tokenizer classes of transformers that use a tokenizer.json unchanged."""
SPECIAL = ("cls_token", "mask_token", "pad_token", "sep_token", "unk_token")
"""Special tokens that a tokenizer_config.json must name; transformers has defaults for missing ones."""
NO_EFFECT = {
    *("add_bos_token", "add_eos_token", "add_prefix_space", "additional_special_tokens", "backend", "bos_token", "chat_template"),
    *("clean_up_tokenization_spaces", "do_basic_tokenize", "eos_token", "is_local", "local_files_only", "max_length", "max_seq_length"),
    *("model_input_names", "model_max_length", "name_or_path", "never_split", "pad_to_multiple_of", "pad_token_type_id", "padding_side"),
    *("processor_class", "special_tokens_map_file", "stride", "tokenizer_file", "truncation_side", "truncation_strategy", "use_fast"),
}
"""Settings of tokenizer_config.json that do not change token ids; `is_plain_bert_tokenizer` compares the others with tokenizer.json."""
NO_LIMIT = 10**30
"""`model_max_length` of a tokenizer without a limit, as in transformers."""


class TokenizerFile:
    """The part of transformers' fast tokenizers that the encoder uses.

    Attributes:
        backend_tokenizer: The tokenizer of tokenizer.json.
        model_max_length: Maximum number of tokens of the model.
        mask_token: Mask token.
        eos_token: End of sequence; None: the tokenizer has none.
        pad_token: Padding token.
        unk_token_id: Vocabulary id of the unknown token.
    """

    is_fast = True

    def __init__(self, backend_tokenizer: Tokenizer, config: dict[str, Any]):
        backend_tokenizer.no_padding()
        backend_tokenizer.no_truncation()
        self.backend_tokenizer = backend_tokenizer
        self.model_max_length: int = config.get("model_max_length") or NO_LIMIT
        self.mask_token, self.eos_token, self.pad_token = (_content(config.get(name)) for name in ("mask_token", "eos_token", "pad_token"))
        self.unk_token_id: int | None = backend_tokenizer.token_to_id(_content(config["unk_token"]) or "")

    @classmethod
    def load(cls, folder: Path) -> "TokenizerFile | None":
        """Return the tokenizer of a checkpoint folder; None if there is none, or if transformers could interpret it differently."""
        file, config_file = folder / "tokenizer.json", folder / "tokenizer_config.json"
        if not file.is_file() or not config_file.is_file():
            return None
        added_file = folder / "added_tokens.json"
        added = parse_json(added_file.read_text()) if added_file.exists() else {}
        config, serialized = parse_json(config_file.read_text()), parse_json(file.read_text())
        return cls(Tokenizer.from_file(str(file)), config) if is_plain_bert_tokenizer(serialized, config, added) else None

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Return the vocabulary ids of a text.

        Args:
            text: The text.
            add_special_tokens: Whether to add [CLS] and [SEP].
        """
        return self.backend_tokenizer.encode(text, add_special_tokens=add_special_tokens).ids

    def get_vocab(self) -> dict[str, int]:
        """Return token -> vocabulary id."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """Return the tokens with these vocabulary ids."""
        return [self.backend_tokenizer.id_to_token(number) or "" for number in ids]


def is_plain_bert_tokenizer(serialized: dict[str, Any], config: dict[str, Any], added_later: dict[str, int]) -> bool:
    """Return whether transformers would use a tokenizer.json unchanged, and it is a WordPiece tokenizer with BERT's normalizer.

    Args:
        serialized: The content of tokenizer.json.
        config: The content of tokenizer_config.json.
        added_later: The content of added_tokens.json, token -> vocabulary id; empty if there is no such file.
    """
    normalizer, added = serialized.get("normalizer") or {}, serialized.get("added_tokens") or []
    expected = {"lowercase": "do_lower_case", "strip_accents": "strip_accents", "handle_chinese_chars": "tokenize_chinese_chars"}
    known = {*NO_EFFECT, *SPECIAL, *expected.values(), "added_tokens_decoder", "extra_special_tokens", "tokenizer_class"}
    limit = config.get("model_max_length")
    return (
        config.keys() <= known
        and (config.get("tokenizer_class") in FILE_CLASSES or _is_bert_default(serialized, config))
        and (limit is None or type(limit) in (int, float))
        and (serialized.get("model") or {}).get("type") == "WordPiece"
        and normalizer.get("type") == "BertNormalizer"
        and all(normalizer.get(name) == config[setting] for name, setting in expected.items() if setting in config)
        and not (config.get("added_tokens_decoder") or {}).keys() - {str(token["id"]) for token in added}
        and not set(config.get("extra_special_tokens") or ()) - {token["content"] for token in added}
        and not added_later.items() - {(token["content"], token["id"]) for token in added}
        and {_content(config.get(name)) for name in SPECIAL} <= {token["content"] for token in added}
    )


def _is_bert_default(serialized: dict[str, Any], config: dict[str, Any]) -> bool:
    """Return whether a tokenizer.json has what a class of BERT_CLASSES builds from its vocabulary and tokenizer_config.json."""
    first, last = _content(config.get("cls_token")), _content(config.get("sep_token"))
    model = {name: value for name, value in serialized["model"].items() if name not in ("type", "vocab")}
    processor = serialized.get("post_processor") or {}
    if processor.get("type") == "BertProcessing":
        ends = [processor["cls"][0], None, processor["sep"][0]]
    else:
        ends = [part.get("SpecialToken", {}).get("id") for part in processor.get("single") or ()]
    return (
        config.get("tokenizer_class") in BERT_CLASSES
        and model == {"unk_token": _content(config.get("unk_token")), "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
        and serialized.get("normalizer")
        == {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": config.get("tokenize_chinese_chars", True),
            "strip_accents": config.get("strip_accents"),
            "lowercase": config.get("do_lower_case", True),
        }
        and serialized.get("pre_tokenizer") == {"type": "BertPreTokenizer"}
        and ends == [first, None, last]
    )


def _content(token: str | dict[str, Any] | None) -> str | None:
    """Return the text of a special token of tokenizer_config.json, which may be stored with its properties."""
    return token["content"] if isinstance(token, dict) else token
