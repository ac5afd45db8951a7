"""Lexical analysis: turns text into terms, the words that BM25 counts. Documents and queries are analysed alike.

1. The text is normalized (NFKC). A token is a run of letters, marks, digits and underscores, or several runs with one joining character
   between each two (`os.path.join`, `B-1234`, `it's`).
2. The runs of a token are its parts, without underscores. A part in camel case also has its words (`ZipFile`: zipfile, zip, file).
3. Parts are lower-cased and stemmed. A token that differs from its part is a term too, lower-cased but not stemmed. Identifiers are
   therefore found whole and by their parts.
4. Scripts without spaces between words (Han, Kana, Thai, Lao, Khmer, Myanmar) give each character and each pair of neighbours.

Source: docs/algorithms.md#101-terms
"""

import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from threading import Lock

import regex
import Stemmer

from ray_lir.base.forking import fork_safe

MAX_TERM = 100
"""Characters of a term, at most. Longer parts are cut, and longer tokens are found by their parts only."""
MAX_CACHE = 1 << 18
"""Tokens whose terms an analyzer keeps."""
_UNSPACED = "".join(rf"\p{{scx={script}}}" for script in ("Han", "Hiragana", "Katakana", "Thai", "Lao", "Khmer", "Myanmar"))
_RUN = r"[\p{L}\p{M}\p{N}_]+"
_TOKENS = regex.compile(rf"{_RUN}(?:(?:::|->|[.\-/:@'’]){_RUN})*")
_PARTS = regex.compile(rf"[[\p{{L}}\p{{M}}\p{{N}}]&&[{_UNSPACED}]]+|[[\p{{L}}\p{{M}}\p{{N}}]--[{_UNSPACED}]]+", regex.V1)
_IS_UNSPACED = regex.compile(rf"[{_UNSPACED}]", regex.V1)
_CAMEL = regex.compile(r"(?<=\p{Ll}\p{Ll})(?=\p{Lu}\p{L})|(?<=\p{Lu})(?=\p{Lu}\p{Ll}\p{Ll})", regex.V1)


class Analyzer:
    """Turns text into terms. Threads may share one.

    Args:
        stemmer: Language of the Snowball stemmer, such as english; None for no stemming.
    """

    def __init__(self, stemmer: str | None):
        self._stemmer = Stemmer.Stemmer(stemmer) if stemmer else None
        self._cache: dict[str, tuple[str, ...]] = {}
        self._lock = fork_safe(Lock())

    def terms(self, text: str) -> list[str]:
        """Return the terms of a text, in order. A term that occurs twice is in the list twice."""
        found: list[str] = []
        for token in _TOKENS.findall(unicodedata.normalize("NFKC", text)):
            found += self._cache.get(token) or self._analyzed(token)
        return found

    def _analyzed(self, token: str) -> tuple[str, ...]:
        with self._lock:  # a stemmer is for one thread at a time
            terms = tuple(self._terms_of(token))
            if len(self._cache) >= MAX_CACHE:
                self._cache.clear()
            self._cache[token] = terms
        return terms

    def _terms_of(self, token: str) -> Iterator[str]:
        if token[-2:] in ("'s", "’s", "'S", "’S"):
            token = token[:-2]
        parts = _PARTS.findall(token)
        whole = token.lower()
        if parts and parts != [token] and len(whole) <= MAX_TERM:
            yield whole
        for part in parts:
            if _IS_UNSPACED.match(part):
                yield from part
                yield from (part[start : start + 2] for start in range(len(part) - 1))
                continue
            words = _CAMEL.split(part)
            for word in [part, *(words if len(words) > 1 else ())]:
                lowered = word[:MAX_TERM].lower()
                yield self._stemmer.stemWord(lowered) if self._stemmer else lowered


@lru_cache
def analyzer(stemmer: str | None) -> Analyzer:
    """Return the analyzer of this process for a language; None: without stemming."""
    return Analyzer(stemmer)
