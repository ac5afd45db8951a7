"""Sources of documents for the integrations: an index on this machine, or a search service. Both answer in the same form."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, ValidationError

from ray_lir import storage
from ray_lir.api.client import Client
from ray_lir.api.search import MAX_EXPLAINED, MAX_IDS, MAX_K, MAX_QUERIES, Highlight, Quality, Snippet, StageReport, first_problem
from ray_lir.base.config import Config
from ray_lir.base.errors import ConfigError, NotFound
from ray_lir.index.filters import FiltersInput

if TYPE_CHECKING:
    from ray_lir.text_index import Index

OWN_METADATA = ("doc_id", "title", "score", "highlights", "snippet")
"""Keys of `FoundDocument.merged_metadata` that the document's own metadata cannot have."""


class SearchSettings(Config):
    """Settings of a search, the same for an index and for a service."""

    k: int = Field(10, ge=1)
    """Documents to return for each query, at most."""
    where: FiltersInput = None
    """Conditions on the documents: text (`year >= 2020`), a dict ({"year": {">=": 2020}}) or `Filters`. None: no conditions."""
    engine: str = "auto"
    """auto, or the name of an engine."""
    params: dict[str, Any] = {}
    """Parameters of the engine, such as {"nprobe": 4}."""
    quality: Quality = "balanced"
    """For the engine auto: fast, balanced or exact."""
    highlight: bool = True
    """Find the matched words and the best passage of each document."""

    @classmethod
    def of(cls, **fields: Any) -> Self:
        """Return validated settings.

        Raises:
            ConfigError: A setting is unknown or not possible.
        """
        try:
            return cls.model_validate(fields)
        except ValidationError as error:
            raise ConfigError(first_problem(error.errors(), cls)) from None

    def changed(self, **fields: Any) -> Self:
        """Return these settings with other values; None leaves a setting as it is.

        Raises:
            ConfigError: A setting is unknown or not possible.
        """
        return self.of(**{**dict(self), **{name: value for name, value in fields.items() if value is not None}})


@dataclass(frozen=True)
class StoredDocument:
    """A document of the source.

    Attributes:
        doc_id: Id of the document.
        title: Title of the document, or an empty string.
        text: Text of the document.
        metadata: Metadata of the document.
    """

    doc_id: str
    title: str
    text: str
    metadata: dict[str, Any]

    def merged_metadata(self) -> dict[str, Any]:
        """Return one dict with the document's metadata, `doc_id` and `title`, of values that JSON can represent.

        A metadata field with one of the names in `OWN_METADATA` is renamed to `metadata.NAME`, which is also its name in filters.
        """
        own = {f"metadata.{name}" if name in OWN_METADATA else name: value for name, value in self.metadata.items()}
        return {**own, "doc_id": self.doc_id, "title": self.title}


@dataclass(frozen=True)
class FoundDocument(StoredDocument):
    """A document that a search found.

    Attributes:
        score: Score of the document for the query; higher is better.
        highlights: Words of title and text that the query matched; empty if the search did not look for them.
        snippet: The best passage of the text; None likewise.
    """

    score: float
    highlights: Sequence[Highlight] = ()
    snippet: Snippet | None = field(default=None)

    def merged_metadata(self) -> dict[str, Any]:
        """Return the dict of `StoredDocument.merged_metadata` with `score`; with highlights, also `highlights` and `snippet`.

        Each highlight is a dict with `field` (title or text), `start`, `end`, `word` and `strength`; words of strength 0 are left out.
        """
        merged = {**super().merged_metadata(), "score": self.score}
        if self.snippet is not None:
            marks = [self._marked(mark) for mark in self.highlights if mark.strength > 0]
            merged |= {"highlights": marks, "snippet": self.snippet.text}
        return merged

    def _marked(self, mark: Highlight) -> dict[str, Any]:
        text = self.title if mark.field == "title" else self.text
        place = {"field": mark.field, "start": mark.start, "end": mark.end}
        return {**place, "word": text[mark.start : mark.end], "strength": mark.strength}


class DocumentTrace(Config):
    """Why a document is found, or which stage or filter drops it."""

    doc_id: str
    rank: int | None = None
    """Rank, from 1; None if the document is not among the k best."""
    score: float | None = None
    """Score in the last stage; None if that stage does not score it."""
    dropped_at: str | None = None
    """Name of the stage that dropped it, or `filters`; None if it is found."""
    reason: str
    """The explanation in one sentence."""
    stages: list[StageReport]


class SourceFacts(Config):
    """Facts about an index."""

    name: str
    """Folder of the index, or address of the service."""
    version: int
    num_docs: int
    num_tokens: int
    dim: int
    """Dimensions of a token embedding."""
    checkpoint: str
    """Checkpoint of the encoder."""
    fingerprint: str
    """Digest of the encoder's contract."""


class Source(ABC):
    """Documents to search, in an index or behind a service."""

    @classmethod
    def of(cls, source: "Source | Index | Client | storage.PathOrUrl", token: str | None = None) -> "Source":
        """Return the source for an index, a client, the folder of an index or the address of a service.

        Args:
            source: An open `Index` or `Client`; or a path; or an address that starts with http:// or https://.
            token: Bearer token for an address. None: send no token.

        Raises:
            ConfigError: `source` is none of these.
            FormatError: The folder holds no index.
        """
        if isinstance(source, Source):
            return source
        if isinstance(source, Client):
            return Service(source)
        if isinstance(source, str) and source.startswith(("http://", "https://")):
            return Service(Client(source, token))
        from ray_lir.text_index import Index  # loads torch, which a service does not need

        if isinstance(source, str | os.PathLike):
            return LocalIndex(Index.open(source))
        if isinstance(source, Index):
            return LocalIndex(source)
        raise ConfigError(f"a source is an Index, a Client, a folder or an address, not {type(source).__name__}")

    @property
    @abstractmethod
    def name(self) -> str:
        """Folder of the index, or address of the service."""

    @abstractmethod
    def search(self, queries: Sequence[str], settings: SearchSettings = SearchSettings()) -> list[list[FoundDocument]]:
        """Return the best documents for each query, best first.

        Raises:
            ConfigError: A setting is not possible.
            RayLirError: The service reports an error or does not answer.
        """

    @abstractmethod
    def scores(self, query: str, doc_ids: Sequence[str]) -> dict[str, float]:
        """Return the exact scores of documents by id. Documents that the index does not hold, or that have no tokens, are left out."""

    @abstractmethod
    def get(self, doc_id: str) -> StoredDocument | None:
        """Return a document; None if the index does not hold it."""

    @abstractmethod
    def explain(self, query: str, doc_id: str, settings: SearchSettings = SearchSettings()) -> DocumentTrace:
        """Run a search again and follow one document through its stages.

        Args:
            query: Text of the query.
            doc_id: Id of the document.
            settings: Settings of the search.

        Raises:
            NotFound: The index holds no such document.
        """

    @abstractmethod
    def facts(self) -> SourceFacts:
        """Return the size, the version and the encoder of the index."""


class LocalIndex(Source):
    """An index on this machine."""

    def __init__(self, index: "Index"):
        self.index = index

    @property
    def name(self) -> str:
        """Folder of the index."""
        return self.index.path

    def search(self, queries: Sequence[str], settings: SearchSettings = SearchSettings()) -> list[list[FoundDocument]]:
        """See `Source.search`."""
        from ray_lir.engines.choice import engine_params
        from ray_lir.engines.registry import ENGINES

        engine = engine_params(settings.engine, settings.params, tuple(ENGINES))
        where, quality, highlight = settings.where, settings.quality, settings.highlight
        found = self.index.search(list(queries), settings.k, where=where, engine=engine, quality=quality, matches=highlight)
        return [
            [FoundDocument(hit.doc_id, hit.title, hit.text, hit.metadata, hit.score, hit.highlights, hit.snippet) for hit in hits]
            for hits in found
        ]

    def scores(self, query: str, doc_ids: Sequence[str]) -> dict[str, float]:
        """See `Source.scores`."""
        searcher = self.index.searcher
        numbers = searcher.find(doc_ids)
        if not numbers:
            return {}
        embedded = self.index.encoder.encode_queries([query])
        [answer] = searcher.search(embedded, len(numbers), "exact", only=numbers.values())
        by_number = dict(zip(answer.documents.tolist(), answer.scores.tolist(), strict=True))
        return {doc_id: by_number[number] for doc_id, number in numbers.items() if number in by_number}

    def get(self, doc_id: str) -> StoredDocument | None:
        """See `Source.get`."""
        fields = self.index.get(doc_id)
        return None if fields is None else StoredDocument(**fields)

    def explain(self, query: str, doc_id: str, settings: SearchSettings = SearchSettings()) -> DocumentTrace:
        """See `Source.explain`.

        Args: as in `Source.explain`.
        """
        from ray_lir.engines.choice import engine_params
        from ray_lir.engines.registry import ENGINES

        if doc_id not in self.index:
            raise NotFound(f"there is no document {doc_id!r}; check the id")
        engine = engine_params(settings.engine, settings.params, tuple(ENGINES))
        trace = self.index.explain(query, doc_id, settings.k, where=settings.where, engine=engine)
        stages = [StageReport(**vars(stage)) for stage in trace.stages]
        return DocumentTrace(
            doc_id=doc_id, rank=trace.rank, score=trace.score, dropped_at=trace.dropped_at, reason=trace.reason, stages=stages
        )

    def facts(self) -> SourceFacts:
        """See `Source.facts`."""
        manifest, contract = self.index.manifest, self.index.manifest.contract
        return SourceFacts(
            name=self.name,
            version=self.index.version,
            num_docs=manifest.num_docs,
            num_tokens=manifest.num_tokens,
            dim=manifest.dim,
            checkpoint=contract.checkpoint,
            fingerprint=contract.fingerprint,
        )


class Service(Source):
    """A search service. Requests that are larger than the service allows are sent in parts."""

    def __init__(self, client: Client):
        self.client = client

    @property
    def name(self) -> str:
        """Address of the service."""
        return self.client.url

    def search(self, queries: Sequence[str], settings: SearchSettings = SearchSettings()) -> list[list[FoundDocument]]:
        """See `Source.search`. Highlights are left out for more than 200 documents a query, the most that a service locates."""
        if settings.k > MAX_K:
            raise ConfigError(f"k: a service returns at most {MAX_K} documents a query, not {settings.k}; lower k")
        highlight = settings.highlight and settings.k <= MAX_EXPLAINED
        options = {
            "k": settings.k,
            "filters": settings.where,
            "engine": settings.engine,
            "params": settings.params,
            "quality": settings.quality,
            "highlight": highlight,
        }
        size = max(1, min(MAX_QUERIES, MAX_EXPLAINED // settings.k)) if highlight else MAX_QUERIES
        replies = (self.client.search(part, **options) for part in _parts(queries, size))
        return [
            [
                FoundDocument(hit.doc_id, hit.title or "", hit.text or "", hit.metadata or {}, hit.score, hit.highlights or (), hit.snippet)
                for hit in hits
            ]
            for reply in replies
            for hits in reply.results
        ]

    def scores(self, query: str, doc_ids: Sequence[str]) -> dict[str, float]:
        """See `Source.scores`."""
        found: dict[str, float] = {}
        for part in _parts(list(dict.fromkeys(doc_ids)), MAX_IDS):
            try:
                results = self.client.rerank(query, doc_ids=part).results
            except NotFound:  # the service refuses the whole request
                part = [doc_id for doc_id in part if self.get(doc_id)]
                results = self.client.rerank(query, doc_ids=part).results if part else []
            found |= {part[each.position]: each.score for each in results}
        return found

    def get(self, doc_id: str) -> StoredDocument | None:
        """See `Source.get`."""
        try:
            document = self.client.document(doc_id)
        except NotFound:
            return None
        return StoredDocument(document.doc_id, document.title, document.text, document.metadata)

    def explain(self, query: str, doc_id: str, settings: SearchSettings = SearchSettings()) -> DocumentTrace:
        """See `Source.explain`.

        Args: as in `Source.explain`.
        """
        options = {"k": settings.k, "filters": settings.where, "engine": settings.engine, "params": settings.params}
        found = self.client.explain(query, doc_id, quality=settings.quality, **options)
        fields = {name: getattr(found, name) for name in ("rank", "score", "dropped_at", "reason", "stages")}
        return DocumentTrace(doc_id=found.document.doc_id, **fields)

    def facts(self) -> SourceFacts:
        """See `Source.facts`."""
        facts = self.client.index()
        return SourceFacts(
            name=self.name,
            version=facts.version,
            num_docs=facts.num_docs,
            num_tokens=facts.num_tokens,
            dim=facts.contract.dim,
            checkpoint=facts.contract.checkpoint,
            fingerprint=facts.fingerprint,
        )


def _parts(items: Iterable[str], size: int) -> Iterator[list[str]]:
    items = list(items)
    return (items[start : start + size] for start in range(0, len(items), size))
