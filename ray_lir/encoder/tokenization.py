"""Text to token ids by the conventions of an EncoderContract (docs/algorithms.md#11-token-sequence); weights are not needed."""

import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from tokenizers import Encoding, Tokenizer

from ray_lir.base.arguments import text_list
from ray_lir.base.errors import ConfigError
from ray_lir.base.forking import after_fork
from ray_lir.base.short_repr import ShortRepr
from ray_lir.embeddings.contract import EncoderContract
from ray_lir.embeddings.truncation import Truncation
from ray_lir.encoder import windows as cutting
from ray_lir.encoder.long_texts import Beginning, Condenser, count_stable_tokens, count_words_after, take_beginning

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ray_lir.encoder.tokenizer_file import TokenizerFile

logger = logging.getLogger(__name__)

PARALLELISM = "TOKENIZERS_PARALLELISM"
"""Environment variable of the tokenizers library, which reads it at every call."""
COUNTED_CHARACTERS = 32_768
"""Texts up to this length in characters are tokenized completely, so their tokens can be counted. Of longer texts, only the beginning is
tokenized."""
CHARACTERS_PER_TOKEN = 16
"""Minimum length of a beginning, in characters per token that is kept."""
GROWTH = 4
"""Factor for the next beginning if one gave too few tokens."""
CHARACTERS_AT_ONCE = 1 << 18
"""Maximum number of characters that are tokenized together. This bounds memory: a token takes about 100 bytes meanwhile."""

_have_tokenized = False


@after_fork
def _tokenize_on_one_thread() -> None:
    """Disable parallel tokenization in a forked process, where the library would wait forever for its threads.

    The library itself detects a fork only if the variable is not set.
    """
    if _have_tokenized:
        os.environ[PARALLELISM] = "false"


@dataclass(frozen=True, eq=False, repr=False)
class TokenSpans(ShortRepr):
    """Where the vectors of a text come from, one entry per kept token.

    Attributes:
        pieces: The tokens as the vocabulary spells them.
        spans: [T, 2] int64, first and end character in the text; -1, -1 for tokens outside the text (special tokens, marker, prompt).
    """

    pieces: list[str]
    spans: np.ndarray


@dataclass(frozen=True, eq=False, repr=False)
class TokenizedTexts(ShortRepr):
    """Token ids of texts, and how much of each text they represent.

    Attributes:
        ids: One int32 array per text, or per window of a text, including special tokens and marker.
        truncations: One per text.
        windows: For each text its windows [W, 2] int64, first and end character; None if the texts are not divided.
    """

    ids: list[np.ndarray]
    truncations: list[Truncation]
    windows: list[np.ndarray] | None = None


@dataclass(frozen=True)
class _Cutter:
    """A tokenizer that truncates to one length.

    Attributes:
        capacity: Maximum number of tokens of a text, without special tokens.
        num_special: Number of special tokens that it adds.
    """

    tokenizer: Tokenizer
    capacity: int
    num_special: int

    @classmethod
    def of(cls, serialized: str, length: int) -> "_Cutter":
        """Return a tokenizer for this length. Each length has its own, because threads cannot change the length of a shared tokenizer."""
        tokenizer = Tokenizer.from_str(serialized)
        tokenizer.no_padding()
        tokenizer.enable_truncation(length)
        num_special = tokenizer.num_special_tokens_to_add(False)
        return cls(tokenizer, length - num_special, num_special)

    @property
    def first_limit(self) -> int:
        """Characters of a text that are tokenized first."""
        return max(COUNTED_CHARACTERS, CHARACTERS_PER_TOKEN * self.capacity)

    def num_tokens(self, encoding: Encoding) -> int:
        """Return the number of tokens before truncation, with special tokens counted once."""
        return len(encoding) + sum(len(part) - self.num_special for part in encoding.overflowing)


@dataclass(frozen=True)
class _Window:
    """A window of a document: the characters `first` to `end`.

    Attributes:
        document: The whole text.
        title_length: Characters of its title.
        head: Characters of the title that are repeated in front of the window.
        head_tokens: Tokens of these characters.
    """

    document: str
    first: int
    end: int
    title_length: int = 0
    head: int = 0
    head_tokens: int = 0

    @property
    def has_head(self) -> bool:
        return self.head > 0 and self.first >= self.title_length

    @property
    def text(self) -> str:
        """The text to tokenize."""
        text = self.document[self.first : self.end]
        return f"{self.document[: self.head]} {text}" if self.has_head else text

    def in_document(self, spans: np.ndarray) -> np.ndarray:
        """Return spans [T, 2] of `text` as spans of the document; -1 stays -1."""
        if not self.has_head:
            return np.where(spans < 0, -1, spans + self.first)
        return np.where((spans < 0) | (spans[:, :1] < self.head), spans, spans + self.first - self.head - 1)


class TextTokenizer:
    """Token ids of queries and documents: special tokens, markers, truncation, expansion. It can be pickled and used from several threads.

    White space at both ends of a text is removed, and lone surrogates become U+FFFD.

    Attributes:
        contract: The conventions.
        tokenizer: The checkpoint's tokenizer, needed to save the checkpoint.
    """

    def __init__(self, contract: EncoderContract, tokenizer: "PreTrainedTokenizerBase | TokenizerFile"):
        if not tokenizer.is_fast:
            raise ConfigError(f"{contract.checkpoint} has no fast tokenizer (tokenizer.json); convert it with transformers first")
        self.contract = contract
        self.tokenizer = tokenizer
        self._query_marker = _marker_id(tokenizer, contract.query_marker)
        self._document_marker = _marker_id(tokenizer, contract.document_marker)
        self._expansion = _marker_id(tokenizer, contract.expansion_token if contract.query_expansion else None)
        serialized = tokenizer.backend_tokenizer.to_str()
        self._queries = self._cutter(serialized, "query", self._query_marker)
        self._documents = self._cutter(serialized, "document", self._document_marker)
        self._whole = _whole_texts(serialized)
        self._separator = self._sentence_separator() if contract.document_form == "sentences" else None
        self._warned: set[str] = set()
        self._condenser = Condenser.of(self._documents.tokenizer)

    @classmethod
    def load(cls, checkpoint: str, contract: EncoderContract) -> "TextTokenizer":
        """Load the tokenizer from the checkpoint's small files, without its weights.

        Raises:
            ConfigError: There is no such checkpoint, or its tokenizer cannot be used.
        """
        from ray_lir.encoder import layouts  # transformers takes seconds to load
        from ray_lir.encoder.checkpoint import find

        return cls(contract, layouts.load_tokenizer(find(checkpoint, weights=False)))

    def _cutter(self, serialized: str, side: Literal["query", "document"], marker: int | None) -> _Cutter:
        """Return the tokenizer of a side.

        Raises:
            ConfigError: Its length leaves no room for a token of a text.
        """
        length = self.contract.query_length if side == "query" else self.contract.document_length
        cutter = _Cutter.of(serialized, length - (marker is not None))
        if cutter.capacity < 1:
            fixed = cutter.num_special + (marker is not None)
            raise ConfigError(
                f"{side}_length {length} leaves no room for a text beside {fixed} special tokens and markers; set {fixed + 1} or more"
            )
        return cutter

    def check_markers(self, vocabulary_size: int | None) -> None:
        """Check that a model has vectors for the markers and for the expansion token.

        Args:
            vocabulary_size: Number of token vectors of the model; None: unknown.

        Raises:
            ConfigError: It has no vector for one of them.
        """
        fixed = {"query_marker": self._query_marker, "document_marker": self._document_marker, "expansion_token": self._expansion}
        for name, number in fixed.items():
            if number is not None and vocabulary_size and number >= vocabulary_size:
                raise ConfigError(
                    f"{name} {getattr(self.contract, name)!r} has id {number} in the tokenizer, but the model of "
                    f"{self.contract.checkpoint} has {vocabulary_size} token vectors; use another token, or another checkpoint"
                )

    def check_ids(self, token_ids: Sequence[np.ndarray], vocabulary_size: int | None) -> None:
        """Check that a model has vectors for these tokens.

        Args:
            token_ids: Vocabulary ids of texts, one int32 array each.
            vocabulary_size: Number of token vectors of the model; None: unknown.

        Raises:
            ConfigError: It has no vector for one of them.
        """
        wrong = next((int(ids.max()) for ids in token_ids if vocabulary_size and len(ids) and ids.max() >= vocabulary_size), None)
        if wrong is not None:
            token = list(self.tokenizer.convert_ids_to_tokens([wrong]))[0]
            raise ConfigError(
                f"the tokenizer of {self.contract.checkpoint} has the token {token!r} with id {wrong}, but its model has "
                f"{vocabulary_size} token vectors; use the tokenizer that was saved with the checkpoint"
            )

    def _sentence_separator(self) -> int:
        """Return the id of the last special token of a document, such as [SEP].

        Raises:
            ConfigError: The tokenizer adds no token at the end, or the contract has windows.
        """
        if self.contract.windows:
            raise ConfigError("document_form sentences cannot be used with windows; leave one of them out")
        encoding = self._documents.tokenizer.encode("")
        if len(encoding) < 2:
            raise ConfigError(f"document_form sentences needs a [SEP] token, and {self.contract.checkpoint} adds none; leave it out")
        return encoding.ids[-1]

    def documents(self, texts: Sequence[str], title_lengths: Sequence[int] | None = None) -> list[np.ndarray]:
        """Return token ids of documents, one int32 array per text: special tokens and marker included, truncated to `document_length`.

        The last special token is kept. If the contract has windows, a text's array holds the ids of all its windows.

        Args: as in `tokenize_documents`.

        Raises:
            ConfigError: A text is not a string; the message has its position.
        """
        tokens = self.tokenize_documents(texts, title_lengths)
        if tokens.windows is None:
            return tokens.ids
        ends = np.cumsum([len(spans) for spans in tokens.windows])
        return [np.concatenate(tokens.ids[end - len(spans) : end]) for end, spans in zip(ends, tokens.windows, strict=True)]

    def tokenize_documents(self, texts: Sequence[str], title_lengths: Sequence[int] | None = None) -> TokenizedTexts:
        """Return token ids of documents or of their windows, with the number of tokens of each document before truncation.

        Args:
            texts: N documents.
            title_lengths: N numbers of characters at the beginning of each text that are its title; None: no titles. Used if the contract
                repeats titles or separates sentences.

        Raises:
            ConfigError: A text is not a string, or is too long to be divided into windows.
        """
        if not self.contract.windows:
            return self._tokenize(self._documents, texts, self.contract.document_prompt, self._document_marker, title_lengths)
        texts = text_list("texts", texts)
        heads = [self._head(text, length) for text, length in zip(texts, title_lengths or [0] * len(texts), strict=True)]
        windows = [_Window(text, *span, *head) for text, head in zip(texts, heads, strict=True) for span in self._plan(text, *head)]
        result = TokenizedTexts([], [], [])
        fitted = self._fit(windows)
        position = 0
        for text in texts:
            spans: list[tuple[int, int]] = []
            kept = total = 0
            while not spans or spans[-1][1] < len(text):
                window, ids, truncation = fitted[position]
                spans.append((window.first, window.end))
                result.ids.append(ids)
                kept, total, position = kept + truncation.kept, total + truncation.total, position + 1
            result.truncations.append(Truncation(kept, total))
            assert result.windows is not None
            result.windows.append(np.array(spans, np.int64))
        return result

    def queries(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return token ids of queries, padded with expansion tokens if the contract says so."""
        return [self.expand(ids) for ids in self.bare_queries(texts)]

    def bare_queries(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Return token ids of queries without expansion tokens."""
        return self.tokenize_queries(texts).ids

    def tokenize_queries(self, texts: Sequence[str]) -> TokenizedTexts:
        """Return token ids of queries without expansion tokens, with the number of tokens of each before truncation to `query_length`."""
        return self._tokenize(self._queries, texts, self.contract.query_prompt, self._query_marker)

    def document_truncations(self, texts: Sequence[str]) -> list[Truncation]:
        """Return the number of tokens of each document, before and after truncation."""
        return self.tokenize_documents(texts).truncations

    def query_truncations(self, texts: Sequence[str]) -> list[Truncation]:
        """Return the number of tokens of each query, before and after truncation."""
        return self.tokenize_queries(texts).truncations

    def warn_if_cut(self, kind: Literal["query", "document"], truncations: Sequence[Truncation]) -> None:
        """Log a warning for the first truncated text, once per kind, since a whole corpus may follow."""
        cut = next((each for each in truncations if each.is_cut), None)
        if cut is None or kind in self._warned:
            return
        self._warned.add(kind)
        length = self.contract.query_length if kind == "query" else self.contract.document_length
        logger.warning(
            "a %s exceeds %s_length %d and was truncated: %s are kept, the rest is ignored (later ones are truncated without a warning)",
            kind,
            kind,
            length,
            cut,
        )

    def expand(self, ids: np.ndarray) -> np.ndarray:
        """Return a query's ids with its expansion tokens."""
        if self._expansion is None:
            return ids
        missing = (self.contract.expansion_length or self.contract.query_length) - len(ids)
        return np.pad(ids, (0, max(0, missing)), constant_values=self._expansion)

    def document_spans(self, text: str, title_length: int = 0) -> TokenSpans:
        """Return the tokens of a document that have a vector, in the order of the vectors. With pooling there are none, since a vector
        then represents tokens in several places.

        Args:
            text: The document.
            title_length: Number of characters at the beginning of the text that are its title.
        """
        contract = self.contract
        if contract.pooling_factor > 1:
            return TokenSpans([], np.zeros((0, 2), np.int64))
        if not contract.windows:
            return self._document_spans(text, title_length)
        [windows] = self.tokenize_documents([text], [title_length]).windows or []
        parts = [self.window_spans(text, int(first), int(end), title_length) for first, end in windows]
        return TokenSpans([piece for part in parts for piece in part.pieces], np.concatenate([part.spans for part in parts]))

    def window_spans(self, text: str, first: int, end: int, title_length: int = 0) -> TokenSpans:
        """Return the tokens of one window of a document that have a vector, with their positions in the whole document.

        Args:
            text: The document.
            first: First character of the window.
            end: Character after the window.
            title_length: Number of characters at the beginning of the text that are its title.
        """
        if self.contract.pooling_factor > 1:
            return TokenSpans([], np.zeros((0, 2), np.int64))
        window = _Window(text, first, end, *self._head(text, title_length))
        found = self._document_spans(window.text)
        return TokenSpans(found.pieces, window.in_document(found.spans))

    def _document_spans(self, text: str, title_length: int = 0) -> TokenSpans:
        contract = self.contract
        return self._spans(
            self._documents, text, contract.document_prompt, self._document_marker, contract.skip_tokens, False, title_length
        )

    def _head(self, text: str, title_length: int) -> tuple[int, int, int]:
        """Return the length of a document's title, and how many of its characters and tokens are repeated in every window."""
        windows = self.contract.windows
        if windows is None or not windows.repeat_title or not title_length:
            return title_length, 0, 0
        found = self._token_starts(text[:title_length])
        most = self._capacity // cutting.TITLE_FRACTION
        if len(found.starts) <= most:
            return title_length, title_length, len(found.starts)
        last = found.words[found.words <= most]
        end = int(last[-1]) if len(last) else 0
        return title_length, len(text[: found.starts[end]].rstrip()), end

    @property
    def _capacity(self) -> int:
        """Tokens of a document in one window, without special tokens, marker and prompt."""
        prompt = self.contract.document_prompt
        return max(1, self._documents.capacity - (len(self._token_starts(prompt).starts) if prompt else 0))

    def _plan(self, text: str, title_length: int, head: int, head_tokens: int) -> list[tuple[int, int]]:
        """Return the windows of a document as (first, end) in characters."""
        cutting.check_characters(text)
        size = self._capacity
        if 4 * len(text) <= size:  # a character has at most four tokens
            return [(0, len(text))]
        tokens = self._token_starts(text)
        if len(tokens.starts) > size:
            size = max(1, size - head_tokens)
        assert self.contract.windows is not None
        overlap = min(max(0, self.contract.document_length - self.contract.windows.stride), size - 1)
        spans = cutting.cut(text, tokens, size, overlap, self._documents.first_limit // 2)
        return [(int(first), int(end)) for first, end in spans]

    def _token_starts(self, text: str) -> cutting.TokenStarts:
        blocks = list(cutting.blocks_of(text))
        encodings: list[Encoding] = []
        for group in _groups([block for _, block in blocks], cutting.BLOCK_CHARACTERS):
            encodings += self._whole.encode_batch([self._prepared(block, "") for block in group], add_special_tokens=False)
        return cutting.token_starts(blocks, encodings)

    def _fit(self, windows: Sequence["_Window"]) -> list[tuple["_Window", np.ndarray, Truncation]]:
        """Return the token ids of windows. A window that is longer than planned is halved until it fits, since a part of a text may have
        more tokens than it has within the text."""
        tokens = self._tokenize(self._documents, [window.text for window in windows], self.contract.document_prompt, self._document_marker)
        fitted = list(zip(windows, tokens.ids, tokens.truncations, strict=True))
        parts = {
            position: [replace(window, first=first, end=end) for first, end in cutting.halves(window.document, window.first, window.end)]
            for position, (window, _, truncation) in enumerate(fitted)
            if truncation.is_cut and window.end - window.first > 1
        }
        if not parts:
            return fitted
        halved = iter(self._fit([part for each in parts.values() for part in each]))
        ends = {position: each[-1].end for position, each in parts.items()}
        result: list[tuple[_Window, np.ndarray, Truncation]] = []
        for position, each in enumerate(fitted):
            if position not in ends:
                result.append(each)
                continue
            result.append(next(halved))
            while result[-1][0].end < ends[position]:
                result.append(next(halved))
        return result

    def query_spans(self, text: str) -> TokenSpans:
        """Return the tokens of a query that have a vector, including expansion tokens, in the order of the vectors."""
        contract = self.contract
        return self._spans(self._queries, text, contract.query_prompt, self._query_marker, contract.query_skip_tokens, True)

    def _spans(
        self, cutter: _Cutter, text: str, prompt: str, marker: int | None, skip: Sequence[int], expand: bool, title_length: int = 0
    ) -> TokenSpans:
        start = len(text) - len(text.lstrip())
        encoding, read, _ = self._encode(cutter, text.strip(), prompt, cutter.first_limit)
        ids, spans = np.array(encoding.ids, np.int32), np.array(encoding.offsets, np.int64).reshape(-1, 2)
        origins = self._origins(read, prompt, start)
        inside = (spans[:, 0] < spans[:, 1]) & (origins[spans[:, 0]] >= 0)
        spans = np.where(inside[:, None], np.stack([origins[spans[:, 0]], origins[spans[:, 1] - 1] + 1], axis=1), -1)
        if cutter is self._documents and self._separator is not None:
            places = self._sentence_places(encoding, self._prepared(read.text, prompt), len(prompt) + title_length if title_length else 0)
            ids, spans = self._separated(ids, places), np.insert(spans, places, -1, axis=0)
            spans = np.concatenate([spans[: len(ids) - 1], [[-1, -1]]])
        if marker is not None:
            at = min(1, len(ids))
            ids, spans = np.insert(ids, at, np.int32(marker)), np.insert(spans, at, -1, axis=0)
        if expand:
            ids = self.expand(ids)
            spans = np.pad(spans, ((0, len(ids) - len(spans)), (0, 0)), constant_values=-1)
        kept = ~np.isin(ids, skip)
        return TokenSpans(list(self.tokenizer.convert_ids_to_tokens(ids[kept].tolist())), spans[kept])

    def _origins(self, read: Beginning, prompt: str, start: int) -> np.ndarray:
        """Return the position in the text of each character of the prepared text (-1 in the prompt), plus one entry for the end."""
        places = np.concatenate([np.full(len(prompt), -1), *(start + np.arange(*piece) for piece in read.pieces)])
        if self.contract.lower_case:  # one character may become several
            places = np.repeat(places, [len(character.lower()) for character in prompt + read.text])
        return np.append(places, -1)

    def _sentence_places(self, encoding: Encoding, prepared: str, title_end: int) -> np.ndarray:
        """Return the positions of the tokens that begin a sentence after the first one, or the text after the title."""
        starts = np.array(encoding.offsets, np.int64).reshape(-1, 2)[:, 0]
        inside = np.flatnonzero(np.array(encoding.special_tokens_mask) == 0)
        ends = cutting.sentence_starts(prepared)
        ends = np.union1d(ends, [title_end]) if title_end > 0 else ends
        places = np.unique(np.searchsorted(starts[inside], ends))
        return inside[places[(places > 0) & (places < len(inside))]]

    def _separated(self, ids: np.ndarray, places: np.ndarray) -> np.ndarray:
        """Return token ids with a separator before each of the places, cut to the length of a document; the last token is kept."""
        separated = np.insert(ids, places, np.int32(self._separator or 0))
        length = self._documents.capacity + self._documents.num_special
        return separated if len(separated) <= length else np.append(separated[: length - 1], separated[-1:])

    def _tokenize(
        self, cutter: _Cutter, texts: Sequence[str], prompt: str, marker: int | None, title_lengths: Sequence[int] | None = None
    ) -> TokenizedTexts:
        global _have_tokenized
        _have_tokenized = True
        if "RAY_RAYLET_PID" in os.environ:  # each Ray worker would start one thread per core
            os.environ.setdefault(PARALLELISM, "false")
        limit = cutter.first_limit
        result, separates = TokenizedTexts([], []), cutter is self._documents and self._separator is not None
        texts = text_list("texts", texts)
        titles = iter(title_lengths or [0] * len(texts))
        for group in _groups(texts, limit):
            for encoding, total, exact, prepared in self._encode_group(cutter, [text.strip() for text in group], prompt, limit, separates):
                ids, title = np.array(encoding.ids, np.int32), next(titles)
                if separates:
                    places = self._sentence_places(encoding, prepared, len(prompt) + title if title else 0)
                    ids, total = self._separated(ids, places), total + len(places)
                if marker is not None:
                    ids, total = np.insert(ids, min(1, len(ids)), np.int32(marker)), total + 1
                result.ids.append(ids)
                result.truncations.append(Truncation(len(ids), total, exact))
        return result

    def _encode_group(
        self, cutter: _Cutter, sources: list[str], prompt: str, limit: int, offsets: bool
    ) -> Iterator[tuple[Encoding, int, bool, str]]:
        """Yield the truncated encoding of each text, its number of tokens before truncation, whether that number is exact, and the prepared
        text. With `offsets`, encodings know where their tokens are."""
        read = [self._read(source, limit) for source in sources]
        prepared = [self._prepared(each.text, prompt) for each in read]
        all_whole = all(each.whole for each in read)  # encode_batch_fast omits the offsets that count_stable_tokens needs
        encode = cutter.tokenizer.encode_batch_fast if all_whole and not offsets else cutter.tokenizer.encode_batch
        for source, each, text, encoding in zip(sources, read, prepared, encode(prepared), strict=True):
            stable = 0 if each.whole else count_stable_tokens(encoding, len(text))
            if not each.whole and stable < cutter.capacity:
                encoding, each, stable = self._encode(cutter, source, prompt, GROWTH * limit)
                text = self._prepared(each.text, prompt)
            if each.whole:
                yield encoding, cutter.num_tokens(encoding), True, text
            else:
                yield encoding, cutter.num_special + stable + count_words_after(source, each.end), False, text

    def _encode(self, cutter: _Cutter, source: str, prompt: str, limit: int) -> tuple[Encoding, Beginning, int]:
        """Return the encoding of a beginning that is long enough for the kept tokens, the beginning, and its number of stable tokens."""
        while True:
            read = self._read(source, limit, self._condenser)
            text = self._prepared(read.text, prompt)
            encoding = cutter.tokenizer.encode(text)
            stable = 0 if read.whole else count_stable_tokens(encoding, len(text))
            if read.whole or stable >= cutter.capacity:
                return encoding, read, stable
            limit *= GROWTH

    def _read(self, source: str, limit: int, condenser: Condenser | None = None) -> Beginning:
        read = condenser.condense(source, limit) if condenser and len(source) > limit else take_beginning(source, limit)
        depends_on_rest = self.contract.lower_case and "Σ" in read.text  # the lower case of a final sigma differs
        if depends_on_rest and not read.cut_at_space:
            return take_beginning(source, len(source))
        return read

    def _prepared(self, text: str, prompt: str) -> str:
        text = prompt + _valid_unicode(text)
        return text.lower() if self.contract.lower_case else text


def _groups(texts: Sequence[str], longest: int) -> Iterator[Sequence[str]]:
    """Yield runs of texts to tokenize together; at most `longest` characters of each count."""
    first = size = 0
    for position, text in enumerate(texts):
        if size + min(len(text), longest) > CHARACTERS_AT_ONCE and position > first:
            yield texts[first:position]
            first, size = position, 0
        size += min(len(text), longest)
    if first < len(texts):
        yield texts[first:]


def _whole_texts(serialized: str) -> Tokenizer:
    """Return a tokenizer that neither truncates nor pads."""
    tokenizer = Tokenizer.from_str(serialized)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def _valid_unicode(text: str) -> str:
    try:
        text.encode()
        return text
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _marker_id(tokenizer: "PreTrainedTokenizerBase | TokenizerFile", token: str | None) -> int | None:
    if token is None:
        return None
    vocabulary = tokenizer.get_vocab()
    if token not in vocabulary:
        raise ConfigError(
            f"the tokenizer has no token {token!r}, which the checkpoint needs; use the tokenizer that was saved with the checkpoint"
        )
    return vocabulary[token]
