"""Index: text in, hits out. The shortest way to use ray_lir on one machine; the functions beneath it are public too."""

import html
import json
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from ray_lir import storage
from ray_lir.base.arguments import id_list, text_list
from ray_lir.base.config import Config, EncoderConfig, IndexConfig
from ray_lir.base.errors import ConfigError
from ray_lir.building.build import build_index
from ray_lir.building.compact import Compaction, compact_index
from ray_lir.building.update import Update, update_index
from ray_lir.corpus.records import document_text
from ray_lir.encoder.corpus_encoder import encode_corpus
from ray_lir.encoder.encoder import Encoder
from ray_lir.engines.plan import QueryPlan, TopK
from ray_lir.index.filters import Filters
from ray_lir.index.manifest import IndexManifest
from ray_lir.index.versions import latest_version
from ray_lir.search.explain import Trace, explain, in_fields, match_tokens, shard_of
from ray_lir.search.searcher import Searcher

Documents = storage.PathOrUrl | Iterable[str | Mapping[str, Any]]
"""A corpus path, or texts, or dicts with `text` and, if wanted, `_id`, `title`, `metadata` or other fields."""
Where = Filters | str | Mapping[str, Any] | None
"""A filter, or how people write one."""
SNIPPET = 300
"""Characters of a hit's text that its table shows."""


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


@dataclass(frozen=True)
class Hit:
    """A document that was found."""

    doc_id: str
    score: float
    title: str
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)
    matches: tuple[Match, ...] = field(default=(), repr=False)

    def _repr_html_(self) -> str:
        return Hits([self])._repr_html_()


class Hits(list[Hit]):
    """The hits of one query, best first. A notebook shows them as a table with the matched words marked."""

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{rank}</td><td>{hit.score:.3f}</td><td>{html.escape(hit.doc_id)}</td><td>{_marked_html(hit)}</td></tr>"
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
            self.encoder = encoder

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
            corpus = _corpus(documents, Path(scratch), 0)
            encoded = encode_corpus(corpus, f"{scratch}/embeddings", settings)
            _check_all_used(documents, encoded.manifest.num_dead, f"{scratch}/embeddings")
            build_index(f"{scratch}/embeddings", path, config)
        return cls(path)

    @classmethod
    def open(cls, path: storage.PathOrUrl) -> "Index":
        """Open an index that exists. The encoder is loaded when it is first needed.

        Raises:
            FormatError: There is no index, or it is damaged.
        """
        return cls(path)

    @cached_property
    def encoder(self) -> Encoder:
        return Encoder.for_contract(self.manifest.contract)

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
            matches: Also find what each query token matched.

        Raises:
            ConfigError: `k`, `where`, `engine` or `quality` is not possible.
        """
        queries = [query] if isinstance(query, str) else text_list("query", query)
        filters = None if where is None else Filters.of(where)
        embedded = self.encoder.encode_queries(queries)
        answers = self.searcher.search(embedded, k, engine, quality, filters=filters)
        plans = self.searcher.planner.plan(embedded, k, engine, quality) if matches else [None] * len(answers)
        found = [self._hits(*each) for each in zip(queries, answers, plans, strict=True)]
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
        """Encode documents and add them. A document with the id of another replaces it.

        Raises:
            ConfigError: A document is not usable; nothing has changed then.
            Conflict: Another change was published meanwhile; this one has changed nothing then.
        """
        with tempfile.TemporaryDirectory(prefix="ray_lir-") as scratch:
            corpus = _corpus(documents, Path(scratch), self._unused_number())
            contract = self.manifest.contract
            settings = EncoderConfig(checkpoint=contract.checkpoint)
            encoded = encode_corpus(corpus, f"{scratch}/embeddings", settings, contract=contract, kept="last")
            _check_all_used(documents, encoded.manifest.num_dead, f"{scratch}/embeddings")
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
        return f"Index({self.path!r}, {len(self)} documents, version {latest_version(self.path)})"

    def _unused_number(self) -> int:
        """The first number that no document has as its id, nor any after it."""
        number = self.manifest.num_numbers
        while any(str(candidate) in self for candidate in range(number, number + 64)):
            number += 64
        return number

    def _hits(self, query: str, answer: TopK, plan: QueryPlan | None) -> Hits:
        pieces = self.encoder.tokenizer.query_spans(query).pieces if plan is not None else ()
        return Hits(
            Hit(
                document["doc_id"],
                score,
                document["title"],
                document["text"],
                document["metadata"],
                () if plan is None else self._matches(plan, number, document, pieces),
            )
            for number, score, document in zip(
                answer.documents.tolist(), answer.scores.tolist(), self.searcher.documents(answer.documents), strict=True
            )
        )

    def _matches(self, plan: QueryPlan, number: int, document: Mapping[str, Any], pieces: Sequence[str]) -> tuple[Match, ...]:
        found = match_tokens(plan, shard_of(self.searcher.shards, number), self.searcher.planner.codec, number)
        spans = self.encoder.tokenizer.document_spans(document_text(document["title"], document["text"])).spans
        places = in_fields(spans, document["title"], document["text"])
        return tuple(
            Match(piece, *((places[token] if token < len(places) else None) or (None, None, None)), similarity, contribution)
            for piece, token, similarity, contribution in zip(
                pieces, found.tokens.tolist(), found.similarities.tolist(), found.contributions.tolist(), strict=False
            )
        )


def _corpus(documents: Documents, folder: Path, first: int) -> str:
    """The corpus as a path: documents in memory are written as JSON lines, numbered from `first` where they have no id."""
    if isinstance(documents, (str, os.PathLike)):
        return storage.absolute(documents)
    if isinstance(documents, Mapping) or not isinstance(documents, Iterable):
        raise ConfigError(f"documents must be texts, dicts or the path of a corpus, not {type(documents).__name__}; put one into a list")
    path, number = folder / "documents.jsonl", first
    with path.open("w", encoding="utf-8") as file:
        for position, document in enumerate(documents):
            if isinstance(document, str):
                document = {"text": document}
            if not isinstance(document, Mapping):
                raise ConfigError(f"document {position} is {type(document).__name__}, not a text or a dict with `text`")
            fields = dict(document)
            if not any(name in fields for name in ("_id", "doc_id", "id")):
                fields, number = {"_id": str(number), **fields}, number + 1
            try:
                file.write(json.dumps(fields) + "\n")
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"document {position} holds a value that JSON has not ({error}); use texts, numbers, lists and dicts"
                ) from None
    return str(path)


def _check_all_used(documents: Documents, num_dead: int, embeddings: str) -> None:
    """Raises ConfigError if a document given in memory was refused; refused rows of a file are counted and kept as dead letters."""
    if not num_dead or isinstance(documents, (str, os.PathLike)):
        return
    letters = [json.loads(line) for path in sorted(Path(embeddings).rglob("dead_letters/*.jsonl")) for line in path.open(encoding="utf-8")]
    reasons = "; ".join(f"document {letter.get('line', 0) - 1}: {letter.get('reason')}" for letter in letters[:3])
    raise ConfigError(f"{num_dead} documents are not usable ({reasons}); mend or leave them out")


def _marked_html(hit: Hit) -> str:
    spans = sorted({(match.start, match.end) for match in hit.matches if match.field == "text" and match.contribution > 0.3})
    first = max(0, spans[0][0] - SNIPPET // 4) if spans and spans[0][0] > SNIPPET else 0
    text, at, parts = hit.text[: first + SNIPPET], first, []
    for start, end in spans:
        if at <= start and end <= len(text):
            parts += [html.escape(text[at:start]), f"<mark>{html.escape(text[start:end])}</mark>"]
            at = end
    body = ("... " if first else "") + "".join(parts) + html.escape(text[at:]) + (" ..." if len(hit.text) > len(text) else "")
    return (f"<b>{html.escape(hit.title)}</b> " if hit.title else "") + body
