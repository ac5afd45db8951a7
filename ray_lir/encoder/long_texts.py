"""Beginnings of long texts: to keep 256 tokens of a text of 10 MB, only its first part is tokenized.

The tokens of a beginning equal those of the whole text, except near the end of the beginning. A tokenizer normalizes characters, splits the
text into words (pre-tokens), and splits each word into tokens. The first two steps depend only on a character and its neighbors, so a cut
can change only the last words. `count_stable_tokens` excludes these words; the caller takes a longer beginning until enough tokens are
stable. A tokenizer that does not split into words has no stable tokens and gets the whole text.

A word without an end ("aaaa...") has no stable tokens either. `Condenser` shortens such words for BERT's tokenizers, where a word of more
than `max_input_chars_per_word` characters is one unknown token.
"""

import json
import re
from dataclasses import dataclass

from tokenizers import Encoding, Tokenizer

UNSTABLE_WORDS = 8
"""Words at the end of a beginning that count as unstable."""
UNSTABLE_CHARACTERS = 256
"""Characters at the end of a beginning that count as unstable."""
WINDOW = 1024
"""Characters that are examined at once when a text is condensed."""
_WORD_START = re.compile(r"[ \t\n\r]\w")
_COUNTED_AT_ONCE = 1 << 18


@dataclass(frozen=True)
class Beginning:
    """The beginning of a text, possibly condensed.

    Attributes:
        text: The text to tokenize.
        pieces: (start, end) of the parts of the source that form `text`.
        end: Number of characters of the source that `text` represents.
        whole: Whether `text` represents the whole source.
        cut_at_space: Whether white space follows in the source.
    """

    text: str
    pieces: tuple[tuple[int, int], ...]
    end: int
    whole: bool
    cut_at_space: bool


def take_beginning(source: str, limit: int) -> Beginning:
    """Return at most the first `limit` characters of a text. It ends before white space if its second half contains any."""
    if len(source) <= limit:
        return Beginning(source, ((0, len(source)),), len(source), True, True)
    end = _last_space(source, limit // 2, limit)
    cut = limit if end is None else end
    return Beginning(source[:cut], ((0, cut),), cut, False, end is not None)


def _last_space(source: str, first: int, end: int) -> int | None:
    """Return where the last run of white space within source[first:end] begins; None if there is none."""
    tail = source[first:end]
    stripped = tail.rstrip()
    if len(stripped) < len(tail):
        return first + len(stripped)
    parts = tail.rsplit(None, 1)
    return first + len(parts[0]) if len(parts) == 2 else None


class Condenser:
    """Shortens text parts that give a BERT tokenizer the same tokens at any length: endless words, and runs of removed characters.

    BERT's normalizer and pre-tokenizer decide for each character independently whether it is removed, a space, a word by itself, or part of
    a word. If a window is one word that is too long for the vocabulary, it remains one unknown token when more of the same characters
    follow. A window of removed characters and spaces also stays the same.
    """

    def __init__(self, tokenizer: Tokenizer, longest_word: int, added: list[str]):
        self._tokenizer = tokenizer
        self._longest_word = longest_word
        self._added = [set(content.lower()) for content in added]
        self._longest_added = max(map(len, added), default=0)

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Condenser | None":
        """Return a condenser; None if the tokenizer is not BERT's."""
        settings = json.loads(tokenizer.to_str())
        kinds = [(settings[part] or {}).get("type") for part in ("normalizer", "pre_tokenizer", "model")]
        if kinds != ["BertNormalizer", "BertPreTokenizer", "WordPiece"]:
            return None
        return cls(tokenizer, settings["model"]["max_input_chars_per_word"], [token["content"] for token in settings["added_tokens"]])

    def condense(self, source: str, limit: int) -> Beginning:
        """Return the beginning of a text like `take_beginning`; `limit` counts the characters after condensing."""
        pieces: list[tuple[int, int]] = []
        position = size = 0
        while position < len(source) and size < limit:
            end = min(position + WINDOW, len(source))
            pieces.append((position, end))
            size += end - position
            position = self._repeated_end(source, position, end)
        text = "".join(source[first:end] for first, end in pieces)
        return Beginning(text, tuple(pieces), position, position == len(source), False)

    def _repeated_end(self, source: str, first: int, end: int) -> int:
        """Return the end of the characters after a window that change no token; `end` if the window does not end in an endless word."""
        window = source[first:end]
        if len(window.split()) > 1 or any("\ud800" <= character <= "\udfff" for character in window):
            return end
        words = self._tokenizer.pre_tokenizer.pre_tokenize_str(self._tokenizer.normalizer.normalize_str(window))
        if len(words) > 1 or (words and (len(words[0][0]) <= self._longest_word or window != window.strip())):
            return end
        characters = set(window)
        lowered = set(window.lower())
        if any(content <= lowered for content in self._added):
            return end
        run = re.compile(f"[{''.join(map(re.escape, sorted(characters)))}]*").match(source, end)
        return max(end, run.end() - self._longest_added) if run else end  # an added token may begin in the run and end after it


def count_stable_tokens(encoding: Encoding, length: int) -> int:
    """Return how many tokens of a text's beginning (without special tokens) are also tokens of the whole text.

    Args:
        encoding: Encoding of the beginning; truncated tokens are in `overflowing`.
        length: Length of the beginning in characters.
    """
    parts = [encoding, *encoding.overflowing]
    words = [(word, end) for part in parts for word, (_, end) in zip(part.word_ids, part.offsets, strict=True) if word is not None]
    last = max((word for word, _ in words), default=0)
    return sum(word <= last - UNSTABLE_WORDS and end <= length - UNSTABLE_CHARACTERS for word, end in words)


def count_words_after(source: str, start: int) -> int:
    """Return a lower bound of the number of tokens after a position: words that follow a space and begin with a letter or digit."""
    return sum(
        len(_WORD_START.findall(source, first, min(first + _COUNTED_AT_ONCE, len(source))))
        for first in range(start, len(source), _COUNTED_AT_ONCE)
    )
