"""Read a tokenizer.json without transformers, which takes seconds to load."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ray_lir.base.config import parse_json

CLASSES = {"BertTokenizer", "BertTokenizerFast", "TokenizersBackend", "PreTrainedTokenizerFast", "PreTrainedTokenizer"}
"""Tokenizer classes of transformers that use a tokenizer.json unchanged, if `is_plain_bert_tokenizer` is true."""


class TokenizerFile:
    """The part of transformers' fast tokenizers that `TextTokenizer` uses."""

    is_fast = True

    def __init__(self, backend_tokenizer: Tokenizer):
        self.backend_tokenizer = backend_tokenizer

    @classmethod
    def load(cls, folder: Path) -> "TokenizerFile | None":
        """Return the tokenizer of a checkpoint folder; None if there is none, or if transformers could interpret it differently."""
        file, config_file = folder / "tokenizer.json", folder / "tokenizer_config.json"
        if not file.is_file() or not config_file.is_file():
            return None
        config = parse_json(config_file.read_text())
        serialized = parse_json(file.read_text())
        return cls(Tokenizer.from_file(str(file))) if is_plain_bert_tokenizer(serialized, config) else None

    def get_vocab(self) -> dict[str, int]:
        """Return token -> vocabulary id."""
        return self.backend_tokenizer.get_vocab(with_added_tokens=True)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        """Return the tokens with these vocabulary ids."""
        return [self.backend_tokenizer.id_to_token(number) or "" for number in ids]


def is_plain_bert_tokenizer(serialized: dict[str, Any], config: dict[str, Any]) -> bool:
    """Return whether a tokenizer.json and tokenizer_config.json describe the same WordPiece tokenizer with BERT's normalizer."""
    normalizer, added = serialized.get("normalizer") or {}, serialized.get("added_tokens") or []
    expected = {"lowercase": "do_lower_case", "strip_accents": "strip_accents", "handle_chinese_chars": "tokenize_chinese_chars"}
    return (
        config.get("tokenizer_class") in CLASSES
        and (serialized.get("model") or {}).get("type") == "WordPiece"
        and normalizer.get("type") == "BertNormalizer"
        and all(normalizer.get(name) == config[setting] for name, setting in expected.items() if setting in config)
        and not config.get("added_tokens_decoder", {}).keys() - {str(token["id"]) for token in added}
        and not set(config.get("extra_special_tokens") or ()) - {token["content"] for token in added}
    )
