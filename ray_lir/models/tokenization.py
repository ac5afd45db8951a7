"""Text to token ids as an EncoderContract says (ALGORITHMS 1.1); needs the tokenizer's files, but no weights."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from ray_lir.errors import ConfigError
from ray_lir.formats.contract import EncoderContract
from ray_lir.models import layouts
from ray_lir.models.checkpoint import find


@dataclass(frozen=True)
class TokenSpans:
    """Where the vectors of a text come from: one entry for each token that is kept.

    Attributes:
        pieces: the tokens as the vocabulary has them.
        spans: [T, 2] int64, first and end character of the text; -1, -1 for tokens that are not in it (special, marker, prompt).
    """

    pieces: list[str]
    spans: np.ndarray


class TextTokenizer:
    """The token ids of queries and documents: special tokens, markers, truncation, expansion. Picklable; safe in threads.

    Texts are stripped of white space at both ends, and lone surrogates become U+FFFD.

    Attributes:
        contract: the conventions followed.
        tokenizer: the checkpoint's own tokenizer, for whoever saves it again.
    """

    def __init__(self, contract: EncoderContract, tokenizer: PreTrainedTokenizerBase):
        if not tokenizer.is_fast:
            raise ConfigError(f"{contract.checkpoint} has no fast tokenizer (tokenizer.json); convert it with transformers first")
        self.contract = contract
        self.tokenizer = tokenizer
        self._query_marker = _marker_id(tokenizer, contract.query_marker)
        self._document_marker = _marker_id(tokenizer, contract.document_marker)
        self._expansion = _marker_id(tokenizer, contract.expansion_token if contract.query_expansion else None)
        serialized = tokenizer.backend_tokenizer.to_str()
        self._query_tokenizer = _cutting(serialized, contract.query_length - (self._query_marker is not None))
        self._document_tokenizer = _cutting(serialized, contract.document_length - (self._document_marker is not None))

    @classmethod
    def load(cls, checkpoint: str, contract: EncoderContract) -> "TextTokenizer":
        """From the checkpoint's small files, where its weights are not wanted; it pickles, too."""
        return cls(contract, layouts.load_tokenizer(find(checkpoint, weights=False)))

    def documents(self, texts: Sequence[str]) -> list[np.ndarray]:
        """One int32 array a text: special tokens and marker included, cut to `document_length` (the last special token stays).

        Raises:
            ConfigError: if a text is not a string; the message has its position.
        """
        return self._ids(self._document_tokenizer, texts, self.contract.document_prompt, self._document_marker)

    def queries(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The same for queries, padded with expansion tokens if the contract expands."""
        return [self.expand(ids) for ids in self.bare_queries(texts)]

    def bare_queries(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Queries without their expansion tokens."""
        return self._ids(self._query_tokenizer, texts, self.contract.query_prompt, self._query_marker)

    def expand(self, ids: np.ndarray) -> np.ndarray:
        """A query's ids with its expansion tokens."""
        if self._expansion is None:
            return ids
        missing = (self.contract.expansion_length or self.contract.query_length) - len(ids)
        return np.pad(ids, (0, max(0, missing)), constant_values=self._expansion)

    def document_spans(self, text: str) -> TokenSpans:
        """The tokens of a document that have a vector, in the order of their vectors; none if they are pooled, since a vector
        then stands for tokens in several places."""
        contract = self.contract
        if contract.pooling_factor > 1:
            return TokenSpans([], np.zeros((0, 2), np.int64))
        return self._spans(self._document_tokenizer, text, contract.document_prompt, self._document_marker, contract.skip_tokens, False)

    def query_spans(self, text: str) -> TokenSpans:
        """The same for a query, expansion tokens included."""
        contract = self.contract
        return self._spans(self._query_tokenizer, text, contract.query_prompt, self._query_marker, contract.query_skip_tokens, True)

    def _spans(self, tokenizer: Tokenizer, text: str, prompt: str, marker: int | None, skip: Sequence[int], expand: bool) -> TokenSpans:
        encoding = tokenizer.encode(self._prepared(text, prompt))
        ids, spans = np.array(encoding.ids, np.int32), np.array(encoding.offsets, np.int64).reshape(-1, 2)
        origins = self._origins(text, prompt)
        inside = (spans[:, 0] < spans[:, 1]) & (origins[spans[:, 0]] >= 0)
        spans = np.where(inside[:, None], np.stack([origins[spans[:, 0]], origins[spans[:, 1] - 1] + 1], axis=1), -1)
        if marker is not None:
            at = min(1, len(ids))
            ids, spans = np.insert(ids, at, np.int32(marker)), np.insert(spans, at, -1, axis=0)
        if expand:
            ids = self.expand(ids)
            spans = np.pad(spans, ((0, len(ids) - len(spans)), (0, 0)), constant_values=-1)
        kept = ~np.isin(ids, skip)
        return TokenSpans(self.tokenizer.convert_ids_to_tokens(ids[kept].tolist()), spans[kept])

    def _origins(self, text: str, prompt: str) -> np.ndarray:
        """For each character of the prepared text its place in `text`, -1 in the prompt; and one more for the end."""
        stripped = text.strip()
        start = len(text) - len(text.lstrip())
        places = np.concatenate([np.full(len(prompt), -1), np.arange(start, start + len(stripped))])
        if self.contract.lower_case:  # one character may become several
            places = np.repeat(places, [len(character.lower()) for character in prompt + stripped])
        return np.append(places, -1)

    def _ids(self, tokenizer: Tokenizer, texts: Sequence[str], prompt: str, marker: int | None) -> list[np.ndarray]:
        if "RAY_RAYLET_PID" in os.environ:  # in a Ray worker, where each one would start a thread a core
            os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        encodings = tokenizer.encode_batch_fast([self._prepared(text, prompt) for text in checked(texts)])
        ids = [np.array(encoding.ids, np.int32) for encoding in encodings]
        return ids if marker is None else [np.insert(row, min(1, len(row)), np.int32(marker)) for row in ids]

    def _prepared(self, text: str, prompt: str) -> str:
        text = prompt + _valid_unicode(text).strip()
        return text.lower() if self.contract.lower_case else text


def checked(texts: Sequence[str]) -> Sequence[str]:
    """The texts, if each is a string.

    Raises:
        ConfigError: if they are not; the message has the position of the first that is not.
    """
    if isinstance(texts, str):
        raise ConfigError("texts must be a list of strings, not one string; put it in a list")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise ConfigError(f"text {position} is {type(text).__name__}, not a string; leave it out or convert it")
    return texts


def _valid_unicode(text: str) -> str:
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _cutting(serialized: str, length: int) -> Tokenizer:
    """A tokenizer of its own for each length: one that is shared would have to be switched, which threads cannot do."""
    tokenizer = Tokenizer.from_str(serialized)
    tokenizer.no_padding()
    tokenizer.enable_truncation(length)
    return tokenizer


def _marker_id(tokenizer: PreTrainedTokenizerBase, token: str | None) -> int | None:
    if token is None:
        return None
    vocabulary = tokenizer.get_vocab()
    if token not in vocabulary:
        raise ConfigError(f"the tokenizer has no token {token!r}, which its checkpoint names; use the tokenizer that was saved with it")
    return vocabulary[token]
