"""Windows of long documents: where each begins and ends, in characters (docs/algorithms.md#15-windows).

Windows are planned in tokens and stored in characters. Together they cover the whole text. A window ends at the end of a sentence if one
lies in its second half, otherwise at the end of a word, otherwise between two tokens.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from tokenizers import Encoding

from ray_lir.base.errors import ConfigError
from ray_lir.base.short_repr import ShortRepr
from ray_lir.encoder.long_texts import take_beginning

MAX_CHARACTERS = 20_000_000
"""Longest document that is divided into windows, in characters."""
BLOCK_CHARACTERS = 8192
"""Characters that are tokenized as one text to plan the windows."""
TITLE_FRACTION = 4
"""A repeated title takes at most this part (1/4) of a window's tokens; a longer title is cut there."""
_SENTENCE_START = re.compile(r"""[.!?…]+["'”’»)\]]*\s+|[。！？]+[”’」』）]*\s*|\n\s*""")


@dataclass(frozen=True, eq=False, repr=False)
class TokenStarts(ShortRepr):
    """Where the T tokens of a text begin.

    Attributes:
        starts: [T] int64, first character of each token, ascending.
        words: [W] int64, positions in `starts` of tokens that begin a word.
    """

    starts: np.ndarray
    words: np.ndarray


def check_characters(text: str) -> None:
    """Check that a document is short enough to be divided into windows.

    Raises:
        ConfigError: It has more than MAX_CHARACTERS characters.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(
            f"the text has {len(text):,} characters, and a document in windows may have {MAX_CHARACTERS:,} at most; "
            "split it into several documents"
        )


def blocks_of(text: str) -> Iterator[tuple[int, str]]:
    """Yield (first character, block) of consecutive blocks of a text; a block ends before white space if it can."""
    first = 0
    while first < len(text):
        size = take_beginning(text[first : first + BLOCK_CHARACTERS + 1], BLOCK_CHARACTERS).end
        yield first, text[first : first + size]
        first += size


def token_starts(blocks: Sequence[tuple[int, str]], encodings: Sequence[Encoding]) -> TokenStarts:
    """Return where the tokens of a text begin, from the encodings of its blocks without special tokens."""
    starts: list[np.ndarray] = []
    is_word: list[np.ndarray] = []
    for (first, block), encoding in zip(blocks, encodings, strict=True):
        offsets = np.array(encoding.offsets, np.int64).reshape(-1, 2)[:, 0]
        words = np.array([-1 if word is None else word for word in encoding.word_ids], np.int64)
        starts.append(first + np.minimum(np.maximum.accumulate(offsets), len(block) - 1))  # lower case can lengthen a block
        is_word.append(np.diff(words, prepend=-2) != 0)
    starts_T = np.concatenate([np.zeros(0, np.int64), *starts])
    new = np.diff(starts_T, prepend=-1) > 0  # several tokens can share one character
    return TokenStarts(starts_T, np.flatnonzero(np.concatenate([np.zeros(0, bool), *is_word]) & new))


def sentence_starts(text: str) -> np.ndarray:
    """Return the positions after each end of a sentence and after each line, [S] int64, ascending."""
    return np.array([found.end() for found in _SENTENCE_START.finditer(text)], np.int64)


def cut(text: str, tokens: TokenStarts, size: int, overlap: int, max_characters: int) -> np.ndarray:
    """Return the windows of a text, [W, 2] int64: first and end character. They cover the text, and each begins after the one before.

    Args:
        text: The text.
        tokens: Where its tokens begin.
        size: Tokens of a window, at most.
        overlap: Tokens at the end of a window that the next window repeats, at most; less than `size`.
        max_characters: Characters from the first to the last token of a window, at most.
    """
    starts, count = tokens.starts, len(tokens.starts)
    sentences = np.searchsorted(starts, sentence_starts(text))
    windows: list[tuple[int, int]] = []
    first = 0

    def reach(first: int) -> int:
        """Return the largest possible end of a window that begins at token `first`."""
        within = int(np.searchsorted(starts, starts[first] + max_characters, side="right"))
        return min(first + size, max(within, first + 1))

    while count and reach(first) < count:
        highest = reach(first)
        lowest = min(first + max(size // 2, overlap) + 1, highest)
        end = next((found for found in (_last(each, lowest, highest) for each in (sentences, tokens.words)) if found), highest)
        windows.append((first, end))
        begin = max(end - overlap, first + 1)
        inside = (_first(each, begin, end - 1) for each in (sentences, tokens.words))
        repeated = next((found for found in inside if found), end)
        first = repeated if reach(repeated) > end else end
    windows.append((first, count))
    places = np.append(starts, len(text))
    if len(places):
        places[0] = 0
    spans = np.array([(places[start], places[end]) for start, end in windows], np.int64)
    spans[0, 0], spans[-1, 1] = 0, len(text)
    return spans


def halves(text: str, first: int, end: int) -> list[tuple[int, int]]:
    """Return the two halves of a window, divided before white space if possible; the window itself if it has one character.

    Args:
        text: The whole text.
        first: First character of the window.
        end: Character after the window.
    """
    if end - first < 2:
        return [(first, end)]
    middle = (first + end) // 2
    space = text.rfind(" ", first + 1, middle + 1)
    middle = middle if space < 0 else space
    return [(first, middle), (middle, end)]


def _last(places: np.ndarray, lowest: int, highest: int) -> int | None:
    """Return the largest of ascending places between two bounds, inclusive; None if there is none."""
    number = int(np.searchsorted(places, highest, side="right")) - 1
    return int(places[number]) if number >= 0 and places[number] >= lowest else None


def _first(places: np.ndarray, lowest: int, highest: int) -> int | None:
    number = int(np.searchsorted(places, lowest))
    return int(places[number]) if number < len(places) and places[number] <= highest else None
