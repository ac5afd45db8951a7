"""Prints hits on a terminal: the best passage of each document with matched words marked, and chosen metadata."""

import os
import shutil
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from ray_lir.api.search import MARKED_FRACTION

WIDEST = 110
LINES = 3
INDENT = " " * 5
MARK, PLAIN = "\033[1;33m", "\033[0m"


def names(value: Any) -> Any:
    """Return the names in a comma-separated text; other values are returned unchanged."""
    return [name.strip() for name in value.split(",") if name.strip()] if isinstance(value, str) else value


def show_hits(hits: Sequence[Mapping[str, Any]], metadata: Sequence[str] = ()) -> None:
    """Print the hits: rank, title and score; id and metadata; the best passage, or the beginning of the text.

    Args:
        hits: Hits as in the JSON of a search, best first.
        metadata: Names of the metadata fields to show.
    """
    if not hits:
        print("no document found")
    strongest = max((mark["strength"] for hit in hits for mark in hit.get("highlights") or ()), default=0.0)
    for rank, hit in enumerate(hits, 1):
        found = hit.get("metadata") or {}
        facts = [f"{name}: {found[name]}" for name in metadata if name in found]
        if sides := hit.get("sides"):
            found_by, vectors = " and ".join(sides["found_by"]), sides["late_interaction"] or 0.0
            facts.append(f"found by {found_by}: BM25 {sides['bm25']:.2f}, vectors {vectors:.2f}")
        if hit.get("title"):
            print(f"{rank:3}. {hit['title']}  ({hit['score']:.3f})")
            facts.insert(0, hit["doc_id"])
        else:
            print(f"{rank:3}. {hit['doc_id']}  ({hit['score']:.3f})")
        if facts:
            print(INDENT + " | ".join(facts))
        if body := _body(hit, MARKED_FRACTION * strongest):
            print(body)


def _body(hit: Mapping[str, Any], weakest: float) -> str:
    snippet = hit.get("snippet")
    if not snippet:
        return textwrap.shorten(hit.get("text") or "", LINES * _width(), initial_indent=INDENT, placeholder=" ...")
    text, first = snippet["text"], snippet["start"]
    end = first + len(text)
    strong = [mark for mark in hit.get("highlights") or () if mark["strength"] > weakest and _inside(mark, first, end)]
    marks = [(mark["start"] - first, mark["end"] - first) for mark in strong]
    lines = _lines(text)
    before, after = "... " if first else "", " ..." if snippet["more"] else ""
    shown = [INDENT + _marked(text, start, stop, marks) for start, stop in lines]
    return (INDENT + before + "\n".join(shown).removeprefix(INDENT) + after) if shown else ""


def _inside(mark: Mapping[str, Any], first: int, end: int) -> bool:
    return mark["field"] == "text" and first <= mark["start"] and mark["end"] <= end


def _lines(text: str) -> list[tuple[int, int]]:
    """Return the start and end of each line of a text that is wrapped to the width of the terminal."""
    lines: list[tuple[int, int]] = []
    at = 0
    for word in text.split():
        start = text.index(word, at)
        at = start + len(word)
        if lines and at - lines[-1][0] <= _width():
            lines[-1] = (lines[-1][0], at)
        else:
            lines.append((start, at))
    return lines


def _marked(text: str, start: int, stop: int, marks: Sequence[tuple[int, int]]) -> str:
    before, after = ("[", "]") if os.environ.get("NO_COLOR") else (MARK, PLAIN)
    parts, at = [], start
    for first, end in marks:
        if at <= first and end <= stop:
            parts += [text[at:first], before, text[first:end], after]
            at = end
    return " ".join("".join([*parts, text[at:stop]]).split())


def _width() -> int:
    return min(WIDEST, shutil.get_terminal_size().columns) - len(INDENT)
