"""Index: text in, hits out. The shortest way to use ray_lir on one machine; the functions beneath it are public too."""

import html
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, islice
from pathlib import Path
from textwrap import shorten
from typing import Any, overload

from ray_lir import storage
from ray_lir.api.search import MARKED_FRACTION, Highlight, Snippet
from ray_lir.base.arguments import id_list, text_list
from ray_lir.base.config import Config, EncoderConfig, IndexConfig
from ray_lir.base.derived import derived
from ray_lir.base.errors import ConfigError
from ray_lir.building.build import build_index
from ray_lir.building.compact import Compaction, compact_index
from ray_lir.building.update import Update, update_index
from ray_lir.corpus.records import ID_FIELDS
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.encoder.corpus_encoder import encode_corpus
from ray_lir.encoder.encoder import Encoder
from ray_lir.engines.plan import TopK
from ray_lir.index.filters import Filters
from ray_lir.index.manifest import IndexManifest
from ray_lir.search.explain import Trace, explain
from ray_lir.search.highlights import match_hits, snippet
from ray_lir.search.searcher import Searcher

Documents = storage.PathOrUrl | Iterable[str | Mapping[str, Any]]
"""A corpus path, or texts, or dicts with `text` and, if wanted, `_id`, `title`, `metadata` or other fields."""
Where = Filters | str | Mapping[str, Any] | None
"""A filter, or how people write one."""


@dataclass(frozen=True)
class Match:
    """What one query token matched in a hit.

    Attributes:
        token: The query token, as the tokenizer writes it.
        field: `title` or `text`; None if the matched token stands for no character, such as `[CLS]`.
        start, end: Characters of the field.
        similarity: Similarity of both tokens.
        contribution: What it adds to the score.
    """

    token: str
    field: str | None
    start: int | None
    end: int | None
    similarity: float
    contribution: float


@dataclass(frozen=True, repr=False)
class Hit:
    """A document that was found.

    Attributes:
        matches: What each query token matched.
        highlights: Words of title and text that the query matched, with their strength.
        snippet: The best passage of the text. It and the two before are empty if a search is told `matches=False`.
    """

    doc_id: str
    score: float
    title: str
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)
    matches: tuple[Match, ...] = ()
    highlights: tuple[Highlight, ...] = ()
    snippet: Snippet | None = None

    def __repr__(self) -> str:
        parts = [repr(self.doc_id), f"{self.score:.3f}", *([repr(self.title)] if self.title else []), repr(shorten(self.text, 80))]
        return f"Hit({', '.join(parts)}{f', {self.metadata}' if self.metadata else ''})"

    def _repr_html_(self) -> str:
        return Hits([self])._repr_html_()


class Hits(list[Hit]):
    """The hits of one query, best first. A notebook shows them as a table with the matched words marked."""

    def __repr__(self) -> str:
        return f"[{f',{chr(10)} '.join(map(repr, self))}]"

    def _repr_html_(self) -> str:
        weakest = MARKED_FRACTION * max((mark.strength for hit in self for mark in hit.highlights), default=0.0)
        rows = "".join(
            f"<tr><td>{rank}</td><td>{hit.score:.3f}</td><td>{html.escape(hit.doc_id)}</td><td>{_marked_html(hit, weakest)}</td></tr>"
            for rank, hit in enumerate(self, 1)
        )
        return f"<table><tr><th></th><th>score</th><th>id</th><th>document</th></tr>{rows}</table>"


class Index:
    """An index of documents with the encoder that made it.

    Changes made through this object are seen by its next search. `refresh` opens a version that another process has published.

    Attributes:
        path: Folder of the index.
        encoder: The encoder of its documents and queries.
        searcher: The open version.

    Example:
        >>> index = ray_lir.Index.create("my-index", ["The mitochondrion makes ATP.", "Zinc fingers bind DNA."])
        >>> index.search("where does energy come from?", k=1)[0].text
        'The mitochondrion makes ATP.'
    """

    def __init__(self, path: storage.PathOrUrl, encoder: Encoder | None = None):
        self.path = storage.absolute(path)
        self.searcher = Searcher.open(self.path)
        if encoder is not None:
            _encoder_of.put(self, encoder)

    @classmethod
    def create(
        cls,
        path: storage.PathOrUrl,
        documents: Documents,
        encoder: str | EncoderConfig = EncoderConfig(),
        config: IndexConfig | None = None,
    ) -> "Index":
        """Encode documents, build an index of them and open it.

        Args:
            path: Folder for the index.
            documents: Texts, or dicts with `text` and optionally `_id`, `title` and metadata; or the path of a corpus (JSONL, Parquet, or
                a BEIR folder). Texts and dicts without an id are numbered from 0.
            encoder: Name or folder of a checkpoint, or its configuration.
            config: Number of shards, bits per dimension and clustering; None for the defaults.

        Raises:
            ConfigError: A document is not usable, or `path` holds something else. Nothing is written then.
        """
        settings = encoder if isinstance(encoder, EncoderConfig) else EncoderConfig(checkpoint=encoder)
        with tempfile.TemporaryDirectory(prefix="ray_lir-") as scratch:
            corpus = _corpus(documents, Path(scratch), map(str, count()))
            encoded = encode_corpus(corpus, f"{scratch}/embeddings", settings)
            _check_all_used(documents, encoded.manifest, f"{scratch}/embeddings")
            build_index(f"{scratch}/embeddings", path, config)
        return cls(path)

    @classmethod
    def open(cls, path: storage.PathOrUrl) -> "Index":
        """Open an index that exists. The encoder is loaded when it is first needed.

        Raises:
            FormatError: There is no index, or it is damaged.
        """
        return cls(path)

    @property
    def encoder(self) -> Encoder:
        """The encoder of the index's documents and queries, loaded at first use."""
        return _encoder_of(self)

    @property
    def manifest(self) -> IndexManifest:
        """What the open version holds."""
        return self.searcher.manifest

    @overload
    def search(self, query: str, k: int = 10, **options: Any) -> Hits: ...
    @overload
    def search(self, query: Sequence[str], k: int = 10, **options: Any) -> list[Hits]: ...
    def search(
        self,
        query: str | Sequence[str],
        k: int = 10,
        *,
        where: Where = None,
        engine: str | Config = "auto",
        quality: str = "balanced",
        matches: bool = True,
    ) -> Hits | list[Hits]:
        """Return the k best documents for a query, or for each of several.

        Args:
            query: One text, or a list of them.
            k: Documents to return; fewer come back if fewer pass the filter.
            where: A filter such as `"year >= 2020, tags ~ news"`, or `{"year": {">=": 2020}}`.
            engine: Name of an engine, or its parameters.
            quality: `fast`, `balanced` or `exact`, for engine `auto`.
            matches: Also find what each query token matched, and the best passage.

        Raises:
            ConfigError: `k`, `where`, `engine` or `quality` is not possible.
        """
        queries = [query] if isinstance(query, str) else text_list("query", query)
        filters = None if where is None else Filters.of(where)
        embedded = self.encoder.encode_queries(queries)
        answers = self.searcher.search(embedded, k, engine, quality, filters=filters)
        found = [
            self._hits(text, embedded.slice(number, number + 1) if matches else None, answer)
            for number, (text, answer) in enumerate(zip(queries, answers, strict=True))
        ]
        return found[0] if isinstance(query, str) else found

    def explain(self, query: str, doc_id: str, k: int = 10, *, where: Where = None, engine: str | Config = "auto") -> Trace:
        """Follow one document through the search of a query: its score in each stage, and why it was found or not.

        Raises:
            ConfigError: The index holds no such document.
        """
        [doc_id] = id_list("doc_id", [doc_id])
        numbers = self.searcher.find([doc_id])
        if doc_id not in numbers:
            raise ConfigError(f"{self.path} holds no document {doc_id!r}; check the id")
        filters = None if where is None else Filters.of(where)
        trace, _ = explain(
            self.searcher, self.encoder.encode_queries([query]), numbers[doc_id], k, engine, filters, tokenizer=self.encoder.tokenizer
        )
        return trace

    def get(self, doc_id: str) -> dict[str, Any] | None:
        """Return id, title, text and metadata of a document; None if the index does not hold it."""
        numbers = self.searcher.find([doc_id])
        return self.searcher.documents(list(numbers.values()))[0] if numbers else None

    def add(self, documents: Documents) -> Update:
        """Encode documents and add them. A document with the id of another replaces it; one without an id gets a number that is free.

        Raises:
            ConfigError: A document is not usable; nothing has changed then.
            Conflict: Another change was published meanwhile; this one has changed nothing then.
        """
        with tempfile.TemporaryDirectory(prefix="ray_lir-") as scratch:
            corpus = _corpus(documents, Path(scratch), self._unused_ids())
            contract = self.manifest.contract
            settings = EncoderConfig(checkpoint=contract.checkpoint)
            encoded = encode_corpus(corpus, f"{scratch}/embeddings", settings, contract=contract, kept="last")
            _check_all_used(documents, encoded.manifest, f"{scratch}/embeddings")
            update = update_index(self.path, f"{scratch}/embeddings")
        self.refresh()
        return update

    def delete(self, doc_ids: Iterable[str]) -> Update:
        """Delete documents by id; ids that the index does not hold are counted in the result."""
        update = update_index(self.path, delete=doc_ids)
        self.refresh()
        return update

    def compact(self, num_shards: int | None = None) -> Compaction:
        """Publish a version without deleted documents and delta shards."""
        compaction = compact_index(self.path, num_shards)
        self.refresh()
        return compaction

    def refresh(self) -> None:
        """Open the latest version."""
        self.searcher = Searcher.open(self.path)

    def __len__(self) -> int:
        return self.manifest.num_docs

    def __contains__(self, doc_id: object) -> bool:
        return isinstance(doc_id, str) and bool(self.searcher.find([doc_id]))

    def __repr__(self) -> str:
        return f"Index({self.path!r}, {len(self)} documents, version {self._version})"

    @property
    def _version(self) -> int:
        """The number of the open version."""
        return self.manifest.change.parent + 1 if self.manifest.change else 1

    def _unused_ids(self) -> Iterator[str]:
        """Numbers, ascending, that are no document's id."""
        return (doc_id for doc_id in map(str, count(self.manifest.num_numbers)) if doc_id not in self)

    def _hits(self, query: str, embedded: TokenEmbeddings | None, answer: TopK) -> Hits:
        """The hits of one query; with what it matched if its token embeddings are given."""
        documents = self.searcher.documents(answer.documents)
        for number, score, document in zip(answer.documents.tolist(), answer.scores.tolist(), documents, strict=True):
            document |= {"number": number, "score": score}
        if embedded is None:
            return Hits(_hit(document) for document in documents)
        found = match_hits(self.searcher, self.encoder.tokenizer, query, embedded, documents)
        return Hits(
            _hit(
                document,
                tuple(Match(piece, **match.model_dump()) for piece, match in zip(each.pieces, each.matches, strict=False)),
                tuple(each.highlights),
                each.snippet,
            )
            for document, each in zip(documents, found, strict=True)
        )


def _hit(document: Mapping[str, Any], *found: Any) -> Hit:
    return Hit(*(document[name] for name in ("doc_id", "score", "title", "text", "metadata")), *found)


def _corpus(documents: Documents, folder: Path, free_ids: Iterator[str]) -> str:
    """The corpus as a path: documents in memory are written as JSON lines, with the next free id where they have none.

    Raises:
        ConfigError: A document is no text or dict, or has an id that another was given because it had none.
    """
    if isinstance(documents, (str, os.PathLike)):
        return storage.absolute(documents)
    if isinstance(documents, Mapping) or not isinstance(documents, Iterable):
        raise ConfigError(f"documents must be texts, dicts or the path of a corpus, not {type(documents).__name__}; put one into a list")
    path, given, taken = folder / "documents.jsonl", set(), set()
    with path.open("w", encoding="utf-8") as file:
        for position, document in enumerate(documents):
            if isinstance(document, str):
                document = {"text": document}
            if not isinstance(document, Mapping):
                raise ConfigError(f"document {position} is {type(document).__name__}, not a text or a dict with `text`")
            fields = dict(document)
            own = next((fields[name] for name in ID_FIELDS if name in fields), None)
            if own is None and not any(name in fields for name in ID_FIELDS):
                own = next(doc_id for doc_id in free_ids if doc_id not in taken)
                given.add(own)
                fields = {"_id": own, **fields}
            elif str(own) in given:
                raise ConfigError(
                    f"document {position} has the id {own!r}, which a document before it without an id was given; give ids to all"
                )
            taken.add(str(own))
            try:
                file.write(json.dumps(fields) + "\n")
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"document {position} holds a value that JSON has not ({error}); use texts, numbers, lists and dicts"
                ) from None
    return str(path)


def _check_all_used(documents: Documents, manifest: EmbeddingsManifest, folder: str) -> None:
    """Raises ConfigError if a document given in memory was refused; refused rows of a file are counted and kept as dead letters."""
    if not manifest.num_dead or isinstance(documents, (str, os.PathLike)):
        return
    lines = (line for entry in manifest.dead_letters for line in storage.read_bytes(storage.join(folder, entry.name)).splitlines())
    letters = [json.loads(line) for line in islice(lines, 3)]
    reasons = "; ".join(f"document {letter['line'] - 1}: {letter['reason']}" for letter in letters)
    raise ConfigError(f"{manifest.num_dead} documents are not usable ({reasons}); mend or leave them out")


def _marked_html(hit: Hit, weakest: float) -> str:
    passage = hit.snippet or snippet(hit.text, ())
    at, end, parts = passage.start, passage.start + len(passage.text), []
    for mark in hit.highlights:
        if mark.field == "text" and mark.strength > weakest and at <= mark.start and mark.end <= end:
            parts += [html.escape(hit.text[at : mark.start]), f"<mark>{html.escape(hit.text[mark.start : mark.end])}</mark>"]
            at = mark.end
    body = ("... " if passage.start else "") + "".join(parts) + html.escape(hit.text[at:end]) + (" ..." if passage.more else "")
    return (f"<b>{html.escape(hit.title)}</b> " if hit.title else "") + body


@derived
def _encoder_of(index: Index) -> Encoder:
    return Encoder.for_contract(index.manifest.contract)
