"""Highlights and snippets: the words of a document that the query matched, and its best passage. Offsets count code points."""

import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from ray_lir.api.search import Highlight, Match, Passage, QueryToken, Snippet
from ray_lir.embeddings.page_grid import PageGrid

if TYPE_CHECKING:
    import numpy as np

    from ray_lir.embeddings.token_embeddings import TokenEmbeddings
    from ray_lir.engines.plan import QueryPlan
    from ray_lir.search.explain import TokenMatches
    from ray_lir.search.searcher import Searcher

SNIPPET_LENGTH = 240
"""Characters of a snippet, at most."""
LEAD = 60
"""Characters before the first highlight of a snippet, at most; the snippet starts with a sentence if one begins there."""
FUNCTION_WORD_WEIGHT = 0.2
"""Weight of a match of a function word, relative to a match of a content word: function words occur in every text."""
FUNCTION_WORDS = frozenset(
    """a about after again all also am an and any are as at be been before being between both but by can could did do does doing down during
    each few for from had has have having he her here hers him his how i if in into is it its me more most my no nor not of off on once only
    or other our out over own s same she should so some such t than that the their them then there these they this those through to too
    under until up very was we were what when where which while who whom why will with would you your
    der die das ein eine und oder ist sind im in am an von zu mit für auf wie was wer wo
    le la les un une des et ou est sont du de en dans pour par sur qui que
    el los las una y o es son del por para con que como""".split()
)
SPECIAL_TOKEN_WEIGHT = 0.01
"""Weight of a match of a special token when the best window is chosen, so that it decides only between equal windows."""
SENTENCE_END = ".!?\n"


def query_tokens(plan: "QueryPlan", pieces: Sequence[str], spans: "np.ndarray") -> list[QueryToken]:
    """Return the tokens of a query with their weights.

    Args:
        plan: The plan of the query of n tokens.
        pieces: The n tokens, as the vocabulary spells them.
        spans: [n, 2] int64, first and end character of each token; -1 for a token that is not in the text.
    """
    return [
        QueryToken(piece=piece, start=None if first < 0 else first, end=None if first < 0 else end, weight=weight)
        for piece, (first, end), weight in zip(pieces, spans.tolist(), plan.query.importance.tolist(), strict=True)
    ]


def token_matches(
    found: "TokenMatches", title: str, text: str, spans: "np.ndarray", metadata: Mapping[str, Any] | None = None
) -> list[Match]:
    """Return the match of each query token in a document, with its position in the title or the text.

    Args:
        found: The matched tokens of the document.
        title: Title of the document.
        text: Text of the document.
        spans: [n, 2] int64, first and end character of each matched token in `document_text(title, text)` (`matched_spans`).
        metadata: Metadata of the document, which may have the grid of an image page.
    """
    from ray_lir.search.explain import in_fields

    grid = PageGrid.of(metadata)
    matches = []
    for place, token, similarity, contribution in zip(
        in_fields(spans, title, text), found.tokens.tolist(), found.similarities.tolist(), found.contributions.tolist(), strict=True
    ):
        field, start, end = place or (None, None, None)
        box = grid.box(token) if grid else None
        matches.append(Match(similarity=similarity, contribution=contribution, field=field, start=start, end=end, box=box))
    return matches


def matched_spans(tokenizer: "LocatesTokens", tokens: "np.ndarray", windows: "np.ndarray | None", title: str, text: str) -> "np.ndarray":
    """Return the position of each matched token in `document_text(title, text)`: [n, 2] int64, -1 for a token that is not in it.

    Args:
        tokenizer: Tokenizer of the index's encoder.
        tokens: [n] int64, matched tokens, counted from the first vector of the document.
        windows: [n, 3] int64, the window of each token (`TokenMatches.windows`). Only these windows are tokenized. None: the document is
            tokenized.
        title: Title of the document.
        text: Text of the document.
    """
    import numpy as np

    from ray_lir.corpus.records import document_text, title_length

    joined, head = document_text(title, text), title_length(title, text)
    if windows is None:
        return spans_of(tokens, tokenizer.document_spans(joined, head).spans)
    spans = np.full((len(tokens), 2), -1, np.int64)
    for start, first, end in np.unique(windows, axis=0).tolist():
        inside = windows[:, 0] == start
        spans[inside] = spans_of(tokens[inside] - start, tokenizer.window_spans(joined, first, end, head).spans)
    return spans


def spans_of(tokens: "np.ndarray", spans: "np.ndarray") -> "np.ndarray":
    """Return the spans of some tokens, [n, 2] int64; -1 for tokens without a span.

    If the stored text is not the text that was encoded, there may be fewer spans than tokens.

    Args:
        tokens: [n] int64, numbers of tokens.
        spans: [T, 2] int64, the spans of all tokens.
    """
    import numpy as np

    if not len(spans):
        return np.full((len(tokens), 2), -1, np.int64)
    return np.where((tokens < len(spans))[:, None], spans[np.minimum(tokens, len(spans) - 1)], -1)


def row_windows(found: "TokenMatches", title: str, text: str) -> "np.ndarray | None":
    """Return the windows of matched tokens, [n, 3], with characters of `document_text(title, text)`.

    Args:
        found: The matched tokens of the document or passage.
        title: Its title.
        text: Its text. If it is a passage, this is only the text of its window.
    """
    if found.windows is None or not found.is_passage:
        return found.windows
    import numpy as np

    from ray_lir.corpus.records import document_text

    windows, size = found.windows.copy(), len(document_text(title, text))
    windows[:, 1] = np.where(windows[:, 1] == 0, 0, size - len(text.rstrip()))
    windows[:, 2] = size
    return windows


def best_window(found: "TokenMatches", query: str, tokens: Sequence[QueryToken], title: str, text: str) -> Passage | None:
    """Return the window of a document with the largest part of the score; None if the document is not stored in windows.

    For a passage it is the passage, in characters of the document's text.

    Function words of the query count a fifth, as in highlights.

    Args:
        found: The matched tokens of the document.
        query: Text of the query.
        tokens: The n tokens of the query.
        title: Title of the document.
        text: Text of the document.
    """
    if found.windows is None or not len(found.tokens):
        return None
    import numpy as np

    from ray_lir.index.passages import span_in_text
    from ray_lir.search.explain import in_fields

    if found.is_passage:
        start, end = span_in_text(title, *found.windows[0, 1:].tolist())
        return Passage(start=start, end=end)
    weights = [_word_weight(query, token.start, token.end) or SPECIAL_TOKEN_WEIGHT for token in tokens]
    parts: dict[tuple[int, int], float] = {}
    for (_, first, end), weight, contribution in zip(found.windows.tolist(), weights, found.contributions.tolist(), strict=True):
        parts[first, end] = parts.get((first, end), 0.0) + weight * max(0.0, contribution)
    first, end = max(parts, key=lambda window: (parts[window], -window[0]))
    [place] = in_fields(np.array([[first, end]]), title, text)
    if place is None or place[0] != "text":
        return Passage(start=0, end=0)
    return Passage(start=place[1], end=min(place[2], len(text)))


def highlights(
    query: str, tokens: Sequence[QueryToken], matches: Sequence[Match], field: Literal["title", "text"], text: str
) -> list[Highlight]:
    """Return the words of a field that query tokens matched, in the order of the text.

    The strength of a word is the weighted sum of its matches' contributions to the score. A match has weight `FUNCTION_WORD_WEIGHT` if the
    query word or the matched word is a function word. It has weight 0 if a word is punctuation, or if the query token is not in the query's
    text (special and expansion tokens).

    Args:
        query: Text of the query.
        tokens: The n tokens of the query.
        matches: The match of each query token.
        field: Name of the field.
        text: Text of the field.
    """
    found: dict[int, tuple[int, float, list[int]]] = {}
    weights = [_word_weight(query, token.start, token.end) for token in tokens]
    for number, (match, weight) in enumerate(zip(matches, weights, strict=True)):
        if match.field != field or match.start is None or match.end is None or not 0 <= match.start < match.end <= len(text):
            continue
        start, end = _word(text, match.start, match.end)
        factor = _weight_of(text[start:end])
        last, strength, numbers = found.get(start, (end, 0.0, []))
        found[start] = (max(last, end), strength + weight * factor * max(0.0, match.contribution), [*numbers, number])
    result: list[Highlight] = []
    for start, (end, strength, numbers) in sorted(found.items()):
        if not result or start >= result[-1].end:
            result.append(Highlight(field=field, start=start, end=end, strength=strength, query_tokens=numbers))
    return result


def snippet(text: str, marks: Sequence[Highlight], length: int = SNIPPET_LENGTH, within: Passage | None = None) -> Snippet:
    """Return the passage of a text with the strongest highlights; the beginning of the text or of the window if there are none.

    Args:
        text: Text of the document.
        marks: Highlights of the document. Highlights of the title are ignored.
        length: Characters of the passage, at most.
        within: The best window of the text, which holds the first highlight of the passage; None: it may lie anywhere.
    """
    if len(text) <= length:
        return Snippet(text=text, start=0, more=False)
    marks = [mark for mark in marks if mark.field == "text" and (within is None or within.start <= mark.start < within.end)]
    earliest = within.start if within else 0
    start = max(earliest, _start(text, _best_first(marks, length - LEAD, earliest), length))
    end = min(len(text), start + length)
    if end < len(text):
        end = next((place for place in range(end, start + length // 2, -1) if text[place].isspace()), end)
    return Snippet(text=text[start:end].rstrip(), start=start, more=end < len(text))


def _best_first(marks: Sequence[Highlight], length: int, otherwise: int) -> int:
    """Start of the first highlight in the best passage; ties go to the first passage, and without highlights it is `otherwise`."""
    best, place = 0.0, otherwise
    for number, mark in enumerate(marks):
        strength = sum(other.strength for other in marks[number:] if other.end <= mark.start + length)
        if strength > best + 1e-9:
            best, place = strength, mark.start
    return place


def _start(text: str, first: int, length: int) -> int:
    """Start of a snippet: a sentence that begins at most `LEAD` characters before its first highlight, or else a word."""
    earliest = max(0, min(first - LEAD, len(text) - length))
    if not earliest:
        return 0
    for place in range(first, earliest, -1):
        if text[place - 1].isspace() and text[:place].rstrip(" \t")[-1:] in SENTENCE_END:
            return place
    return next((place for place in range(earliest, first + 1) if text[place - 1].isspace() and not text[place].isspace()), first)


def _word_weight(query: str, start: int | None, end: int | None) -> float:
    if start is None or end is None:
        return 0.0
    first, last = _word(query, start, end)
    return _weight_of(query[first:last])


def _weight_of(word: str) -> float:
    if all(unicodedata.category(letter).startswith("P") for letter in word):
        return 0.0  # a match of punctuation says nothing about the document
    return FUNCTION_WORD_WEIGHT if word.casefold() in FUNCTION_WORDS else 1.0


def _word(text: str, start: int, end: int) -> tuple[int, int]:
    """First and end character of the whole words that contain the characters start to end of a text."""
    if _in_word(text[start]):
        while start and _in_word(text[start - 1]):
            start -= 1
    if _in_word(text[end - 1]):
        while end < len(text) and _in_word(text[end]):
            end += 1
    return start, end


def _in_word(character: str) -> bool:
    return character == "_" or unicodedata.category(character)[0] in "LNM"


class TokenPositions(Protocol):
    """The part of `TokenSpans` that highlights use: T tokens, and the first and end character [T, 2] of each."""

    @property
    def pieces(self) -> list[str]:
        """The tokens, as the vocabulary spells them."""
        ...

    @property
    def spans(self) -> "np.ndarray":
        """[T, 2] int64, first and end character; -1 for a token that is not in the text."""
        ...


class LocatesTokens(Protocol):
    """The part of `TextTokenizer` that returns the positions of tokens in a text."""

    def query_spans(self, text: str) -> TokenPositions:
        """Return the tokens of a query, in the order of its vectors."""
        ...

    def document_spans(self, text: str, title_length: int = 0) -> TokenPositions:
        """Return the tokens of a document, in the order of its vectors."""
        ...

    def window_spans(self, text: str, first: int, end: int, title_length: int = 0) -> TokenPositions:
        """Return the tokens of one window of a document, in the order of its vectors.

        Args: as in `TextTokenizer.window_spans`.
        """
        ...


class MatchedHit(NamedTuple):
    """The matches of a query in one hit.

    Attributes:
        pieces: The query's tokens, as the vocabulary spells them.
        matches: The match of each query token; empty for a document without tokens.
        highlights: Matched words of the title and the text.
        snippet: The best passage of the text.
        passage: The best window of the text; None if the document is not stored in windows.
    """

    pieces: Sequence[str]
    matches: list[Match]
    highlights: list[Highlight]
    snippet: Snippet
    passage: Passage | None


def match_hits(
    searcher: "Searcher", tokenizer: "LocatesTokens", query: str, embedded: "TokenEmbeddings", hits: Iterable[Mapping[str, Any]]
) -> Iterator[MatchedHit]:
    """Yield the matches of a query in each hit of a search in this process.

    Args:
        searcher: The opened index.
        tokenizer: Tokenizer of the index's encoder.
        query: Text of the query.
        embedded: Token embeddings of the query.
        hits: Dicts with number, title and text.

    Raises:
        ConfigError: The embeddings do not fit the index, or it does not hold a hit's number.
    """
    from ray_lir.search.explain import match_tokens, shard_of

    [plan] = searcher.planner.plan(embedded, 1, "exact")
    spans = tokenizer.query_spans(query)
    tokens = query_tokens(plan, spans.pieces, spans.spans)
    for hit in hits:
        title, text = hit["title"], hit["text"]
        found = match_tokens(plan, shard_of(searcher.shards, hit["number"]), searcher.planner.codec, hit["number"])
        places = matched_spans(tokenizer, found.tokens, row_windows(found, title, text), title, text)
        matches = token_matches(found, title, text, places, hit.get("metadata"))
        passage = best_window(found, query, tokens, title, text)
        within = None if found.is_passage else passage
        yield MatchedHit(spans.pieces, matches, *highlighted(query, tokens, matches, title, text, within), passage)


def highlighted(
    query: str, tokens: Sequence[QueryToken], matches: Sequence[Match], title: str, text: str, passage: Passage | None = None
) -> tuple[list[Highlight], Snippet]:
    """Return the highlights of a document's title and text, and its snippet.

    Args:
        query: Text of the query.
        tokens: The n tokens of the query.
        matches: The match of each query token; empty for a document without tokens.
        title: Title of the document.
        text: Text of the document.
        passage: Its best window (`best_window`), which holds the snippet; None if it is not stored in windows.
    """
    if len(matches) != len(tokens):  # a document without tokens
        matches, tokens = [], []
    marks = [*highlights(query, tokens, matches, "title", title), *highlights(query, tokens, matches, "text", text)]
    return marks, snippet(text, marks, within=passage)
