"""Index: text in, hits out. The shortest way to use ray_lir on one machine, over functions that are public too."""

import html
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count, islice
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any, overload

from ray_lir import storage
from ray_lir.api.search import MARKED_FRACTION, Highlight, HitSides, Passage, Snippet
from ray_lir.base.arguments import id_list, text_list
from ray_lir.base.config import EncoderConfig, IndexConfig
from ray_lir.base.derived import derived
from ray_lir.base.errors import ConfigError
from ray_lir.building.build import build_index
from ray_lir.building.compact import Compaction, compact_index
from ray_lir.building.update import Update, update_index
from ray_lir.corpus.records import ID_FIELDS
from ray_lir.embeddings.cards import CardFacts
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.engines.params import EngineConfig
from ray_lir.engines.plan import TopK
from ray_lir.index.card import index_card
from ray_lir.index.filters import Filters
from ray_lir.index.manifest import IndexManifest
from ray_lir.index.remote import ENCODER, index_content, opened_folder
from ray_lir.search.explain import Trace, explain
from ray_lir.search.highlights import match_hits, snippet
from ray_lir.search.searcher import Searcher
from ray_lir.storage import hub

if TYPE_CHECKING:
    from ray_lir.encoder.encoder import Encoder  # torch takes seconds to load, and opening an index does not need it

Documents = storage.PathOrUrl | Iterable[str | Mapping[str, Any]]
"""The path of a corpus; or texts; or dicts with `text` and optionally `_id`, `title`, `metadata` and other fields."""
Where = Filters | str | Mapping[str, Any] | None
"""A filter as an object, as text (`"year >= 2020"`) or as a dict (`{"year": {">=": 2020}}`)."""


@dataclass(frozen=True)
class Match:
    """The best match of one query token in a hit.

    Attributes:
        token: The query token, as the tokenizer writes it.
        field: `title` or `text`; None if the matched token is a special token such as `[CLS]`.
        start: First character of the match in the field, counted in code points; None for a special token.
        end: Character after the match; None for a special token.
        similarity: Dot product of the two token vectors.
        contribution: Part of the hit's score that comes from this match.
        box: For a page that is an image: the matched part, as left, top, right and bottom in fractions of its size; otherwise None.
    """

    token: str
    field: str | None
    start: int | None
    end: int | None
    similarity: float
    contribution: float
    box: tuple[float, float, float, float] | None = None


@dataclass(frozen=True, repr=False)
class Hit:
    """A document that a search found.

    Attributes:
        doc_id: Id of the document.
        score: Score of the document for the query; higher is better.
        title: Title of the document, or an empty string.
        text: Text of the document.
        metadata: Metadata of the document.
        matches: The best match of each query token; empty if the search ran with `matches=False`.
        highlights: Words of title and text that the query matched, with their strength; empty likewise.
        snippet: The best passage of the text; None likewise.
        sides: With the engine hybrid: the BM25 score, the late-interaction score, and which side found the document; None otherwise.
        passage: The window of the text with the largest part of the score; None if the index has no windows. In an index of passages,
            `text` is only the text of this passage, and `Index.get` returns the whole document.
    """

    doc_id: str
    score: float
    title: str
    text: str
    metadata: dict[str, Any] = field(default_factory=dict)
    matches: tuple[Match, ...] = ()
    highlights: tuple[Highlight, ...] = ()
    snippet: Snippet | None = None
    sides: HitSides | None = None
    passage: Passage | None = None

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
    """An index of documents, together with the encoder that made it.

    A search sees the changes that were made through the same object. `refresh` opens a version that another process has published.

    Attributes:
        path: Folder of the index.
        encoder: The encoder of documents and queries; it is loaded when it is first used.
        searcher: The open version.

    Example:
        >>> index = ray_lir.Index.create("my-index", ["The mitochondrion makes ATP.", "Zinc fingers bind DNA."])
        >>> index.search("where does the energy of a cell come from?", k=1)[0].text
        'The mitochondrion makes ATP.'
        >>> index
        Index('.../my-index', 2 documents, version 1)
    """

    def __init__(self, path: storage.PathOrUrl, encoder: "Encoder | None" = None):
        self.path = storage.absolute(path)
        self.searcher = Searcher.open(opened_folder(self.path))
        if encoder is not None:
            _encoder_of.put(self, encoder)

    @classmethod
    def create(
        cls,
        path: storage.PathOrUrl,
        documents: Documents,
        encoder: str | EncoderConfig = EncoderConfig(),
        config: IndexConfig | None = None,
        *,
        lexical: bool = False,
    ) -> "Index":
        """Encode documents, build an index of them and open it.

        Args:
            path: Folder for the index, or a URL such as s3://bucket/folder.
            documents: Texts, or dicts with `text` and optionally `_id`, `title` and metadata; or the path of a corpus (JSONL, Parquet, or
                a BEIR folder). Documents without an id are numbered from 0.
            encoder: Name or folder of a checkpoint, or its configuration.
            config: Number of shards, bits per dimension and clustering; None for the defaults.
            lexical: Also index the words of the documents, for the engines bm25 and hybrid; the same as `IndexConfig(lexical=True)`.
        Returns:
            The open index.
        Raises:
            ConfigError: A document is not usable, or `path` holds something else. Nothing is written then.
            Conflict: Another process built a different index in `path` meanwhile.
            FormatError: A file of the corpus is damaged.
        Example:
            >>> documents = [{"_id": "zinc", "title": "Zinc", "text": "Zinc fingers bind DNA.", "metadata": {"year": 2019}}]
            >>> ray_lir.Index.create("zinc-index", documents).get("zinc")["metadata"]
            {'year': 2019}
        """
        from ray_lir.encoder.corpus_encoder import encode_corpus  # loads torch

        settings = encoder if isinstance(encoder, EncoderConfig) else EncoderConfig(checkpoint=encoder)
        with tempfile.TemporaryDirectory(prefix="ray_lir-") as scratch:
            corpus = _corpus(documents, Path(scratch), map(str, count()))
            encoded = encode_corpus(corpus, f"{scratch}/embeddings", settings)
            _check_all_used(documents, encoded.manifest, f"{scratch}/embeddings")
            if lexical:
                config = (config or IndexConfig()).model_copy(update={"lexical": True})
            build_index(f"{scratch}/embeddings", path, config)
        return cls(path)

    @classmethod
    def open(cls, path: storage.PathOrUrl) -> "Index":
        """Open the latest version of an index.

        Args:
            path: Folder of the index; or its URL, such as s3://bucket/folder or hf://datasets/OWNER/NAME on the Hugging Face hub. Of a URL
                a copy is opened, in ray_lir/indexes in the user's cache folder.
        Returns:
            The open index. Its encoder is loaded by the first search.
        Raises:
            FormatError: There is no index, or it is damaged.
        Example:
            >>> len(ray_lir.Index.open("my-index"))
            2
        """
        return cls(path)

    @property
    def encoder(self) -> "Encoder":
        """The encoder of the index's documents and queries, loaded at first use."""
        return _encoder_of(self)

    @property
    def checkpoint(self) -> str:
        """The checkpoint of the encoder: the folder `encoder` of the index if there is one, or else the name that the contract records."""
        own = storage.join(self.path, ENCODER)
        return own if storage.exists(own) else self.manifest.contract.checkpoint

    @property
    def manifest(self) -> IndexManifest:
        """The manifest of the open version: counts, codec, encoder contract and files."""
        return self.searcher.manifest

    @overload
    def search(  # type: ignore[overload-overlap]  # a str is a Sequence[str] too
        self,
        query: str,
        k: int = 10,
        *,
        where: Where = None,
        engine: str | EngineConfig = "auto",
        quality: str = "balanced",
        matches: bool = True,
    ) -> Hits: ...
    @overload
    def search(
        self,
        query: Sequence[str],
        k: int = 10,
        *,
        where: Where = None,
        engine: str | EngineConfig = "auto",
        quality: str = "balanced",
        matches: bool = True,
    ) -> list[Hits]: ...
    def search(
        self,
        query: str | Sequence[str],
        k: int = 10,
        *,
        where: Where = None,
        engine: str | EngineConfig = "auto",
        quality: str = "balanced",
        matches: bool = True,
    ) -> Hits | list[Hits]:
        """Return the k best documents for each query.

        Args:
            query: One text, or a list of texts.
            k: Documents to return per query; fewer come back if fewer pass the filter.
            where: A filter such as `"year >= 2020, tags ~ news"` or `{"year": {">=": 2020}}`; None for all documents.
            engine: `auto`, the name of an engine, or its parameters, such as `ScanParams(ncandidates=100)`. `bm25` and `hybrid` need an
                index that was created with `lexical=True`.
            quality: `fast`, `balanced` or `exact`; used by engine `auto`.
            matches: Also find the best match of each query token, the highlights and the best passage.
        Returns:
            `Hits` for one text, a list of `Hits` for a list. Scores descend; equal scores are ordered by document number.
        Raises:
            ConfigError: `k`, `where`, `engine` or `quality` is not possible.
            IncompatibleError: The checkpoint is not the one that the index was made with.
        Example:
            >>> for hit in index.search("which metal binds to DNA?", k=1):
            ...     print(hit.text)
            Zinc fingers bind DNA.
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

    def explain(self, query: str, doc_id: str, k: int = 10, *, where: Where = None, engine: str | EngineConfig = "auto") -> Trace:
        """Run a search again and follow one document through its stages.

        Args:
            query: Text of the query.
            doc_id: Id of the document.
            k: Documents that the search returns.
            where: Filter of the search; None for all documents.
            engine: Engine of the search, by name or by its parameters.
        Returns:
            The document's score and the cut of each stage, its rank, and the reason why it was found or not.
        Raises:
            ConfigError: The index holds no such document, or an argument is not possible.
        Example:
            >>> index.explain("which metal binds to DNA?", "1", k=1).reason
            'found at rank 1 of 1'
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
        """Return a dict with `doc_id`, `title`, `text` and `metadata` of a document; None if the index does not hold it."""
        numbers = self.searcher.find([doc_id])
        return self.searcher.whole_document(numbers[doc_id]) if numbers else None

    def add(self, documents: Documents) -> Update:
        """Encode documents, add them to the index and open the new version.

        Args:
            documents: As in `create`. A document with the id of another replaces it. One without an id gets an unused number as its id.
        Returns:
            The new version, its manifest, and the counts of added and replaced documents.
        Raises:
            ConfigError: A document is not usable; nothing has changed then.
            Conflict: Another process published a change meanwhile; this call changed nothing.
        Example:
            >>> index.add([{"_id": "sun", "text": "The sun shines."}]).change.num_added
            1
        """
        from ray_lir.encoder.corpus_encoder import encode_corpus  # loads torch

        self._check_changeable()
        with tempfile.TemporaryDirectory(prefix="ray_lir-") as scratch:
            corpus = _corpus(documents, Path(scratch), self._unused_ids())
            contract = self.manifest.contract
            settings = EncoderConfig(checkpoint=self.checkpoint)
            encoded = encode_corpus(corpus, f"{scratch}/embeddings", settings, contract=contract, kept="last")
            _check_all_used(documents, encoded.manifest, f"{scratch}/embeddings")
            update = update_index(self.path, f"{scratch}/embeddings")
        self.refresh()
        return update

    def delete(self, doc_ids: Iterable[str]) -> Update:
        """Delete documents by id and open the new version.

        Args:
            doc_ids: Ids to delete. Ids that the index does not hold are counted in the result.
        Returns:
            The new version, its manifest, and the counts of deleted documents and unknown ids.
        Raises:
            ConfigError: `doc_ids` is not a list of ids.
            Conflict: Another process published a change meanwhile; this call changed nothing.
        Example:
            >>> index.delete(["1", "moon"]).change.num_unknown
            1
        """
        self._check_changeable()
        update = update_index(self.path, delete=doc_ids)
        self.refresh()
        return update

    def compact(self, num_shards: int | None = None, *, lexical: bool = False) -> Compaction:
        """Write a version without deleted documents and delta shards, and open it.

        Args:
            num_shards: Shards of the new version; None for as many as the index was built with.
            lexical: Add the words of the documents to an index that was created without, for the engines bm25 and hybrid.
        Returns:
            The new version and its manifest; `changed` is False if there was nothing to compact.
        Raises:
            Conflict: Another process published a change meanwhile; this call changed nothing.
        Example:
            >>> update = index.delete(["1"])
            >>> index.compact().changed
            True
        """
        self._check_changeable()
        compaction = compact_index(self.path, num_shards, lexical=lexical)
        self.refresh()
        return compaction

    def refresh(self) -> None:
        """Open the latest version of the index."""
        self.searcher = Searcher.open(opened_folder(self.path))

    def push_to_hub(
        self,
        repo: str | None = None,
        *,
        folder: storage.PathOrUrl | None = None,
        facts: CardFacts = CardFacts(),
        private: bool = False,
        token: str | None = None,
    ) -> str:
        """Upload the open version with an index card to the Hugging Face hub, or write both to a local folder.

        `Index.open("hf://datasets/OWNER/NAME")` opens it. If the encoder's checkpoint is a local folder, it is uploaded too, below
        `encoder/`. The texts of the documents are part of the index.

        Args:
            repo: Name of the repository of type dataset, OWNER/NAME. None: write to `folder`.
            folder: A new local folder.
            facts: Description, evaluations, licence and provenance for the card.
            private: Whether a new repository is private.
            token: Token of the hub. None: the one that `hf auth login` or HF_TOKEN has stored.

        Returns:
            The address of the repository, or the path of the folder.

        Raises:
            ConfigError: The index is not on a local disk, or the hub refuses the upload.
        """
        if not storage.is_local(self.path):
            raise ConfigError(f"{self.path} is not on a local disk; push a local copy")
        content: dict[str, hub.Content] = dict(index_content(self.path))
        checkpoint = self.checkpoint
        if storage.is_local(checkpoint) and (saved := storage.local_path(checkpoint)).is_dir():
            content |= {f"{ENCODER}/{name}": file for name, file in hub.folder_content(saved).items()}
        name = repo or storage.base_name(folder or self.path)
        content["README.md"] = index_card(self.manifest, self.version, name, facts).encode()
        return hub.publish_files(content, repo, folder, "dataset", private, token, "Upload index with ray_lir")

    def _check_changeable(self) -> None:
        if self.path.startswith("hf://"):
            raise ConfigError(f"{self.path} cannot be changed here; change a local index and push it with push_to_hub")

    def __len__(self) -> int:
        return self.manifest.num_documents

    def __contains__(self, doc_id: object) -> bool:
        return isinstance(doc_id, str) and bool(self.searcher.find([doc_id]))

    def __repr__(self) -> str:
        return f"Index({self.path!r}, {len(self)} documents, version {self.version})"

    @property
    def version(self) -> int:
        """The number of the open version."""
        return self.manifest.change.parent + 1 if self.manifest.change else 1

    def _unused_ids(self) -> Iterator[str]:
        """Yield unused ids: whole numbers, ascending."""
        return (doc_id for doc_id in map(str, count(self.manifest.num_numbers)) if doc_id not in self)

    def _hits(self, query: str, embedded: TokenEmbeddings | None, answer: TopK) -> Hits:
        """Return the hits of one query, with their matches if its token embeddings are given."""
        documents = self.searcher.documents(answer.documents)
        for row, (number, score, document) in enumerate(zip(answer.documents.tolist(), answer.scores.tolist(), documents, strict=True)):
            document |= {"number": number, "score": score, "sides": answer.sides.of_hit(row) if answer.sides else None}
        if embedded is None:
            return Hits(_hit(document, passage=_passage(document)) for document in documents)
        found = match_hits(self.searcher, self.encoder.tokenizer, query, embedded, documents)
        return Hits(
            _hit(
                document,
                tuple(Match(piece, **match.model_dump()) for piece, match in zip(each.pieces, each.matches, strict=False)),
                tuple(each.highlights),
                each.snippet,
                passage=each.passage,
            )
            for document, each in zip(documents, found, strict=True)
        )


def _passage(document: Mapping[str, Any]) -> Passage | None:
    return Passage(**document["passage"]) if "passage" in document else None


def _hit(document: Mapping[str, Any], *found: Any, passage: Passage | None = None) -> Hit:
    hit = Hit(*(document[name] for name in ("doc_id", "score", "title", "text", "metadata")), *found)
    return replace(hit, sides=document["sides"], passage=passage)


def _corpus(documents: Documents, folder: Path, free_ids: Iterator[str]) -> str:
    """Return the path of the corpus. Documents in memory are written as JSON lines; those without an id get the next of `free_ids`.

    Raises:
        ConfigError: A document is neither text nor dict, or its id was given to an earlier document that had none.
    """
    if isinstance(documents, (str, os.PathLike)):
        return storage.absolute(documents)
    if isinstance(documents, Mapping) or not isinstance(documents, Iterable):
        raise ConfigError(f"documents must be texts, dicts or the path of a corpus, not {type(documents).__name__}; put one into a list")
    path, generated, taken = folder / "documents.jsonl", set(), set()
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
                generated.add(own)
                fields = {"_id": own, **fields}
            elif str(own) in generated:
                raise ConfigError(
                    f"document {position} has the id {own!r}, which was generated for an earlier document without an id; give ids to all"
                )
            taken.add(str(own))
            try:
                file.write(json.dumps(fields) + "\n")
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"document {position} holds a value that JSON cannot represent ({error}); use texts, numbers, lists and dicts"
                ) from None
    return str(path)


def _check_all_used(documents: Documents, manifest: EmbeddingsManifest, folder: str) -> None:
    """Raise ConfigError if a document in memory was refused. Refused rows of a file are counted and kept as dead letters."""
    if not manifest.num_dead or isinstance(documents, (str, os.PathLike)):
        return
    lines = (line for entry in manifest.dead_letters for line in storage.read_bytes(storage.join(folder, entry.name)).splitlines())
    letters = [json.loads(line) for line in islice(lines, 3)]
    reasons = "; ".join(f"document {letter['line'] - 1}: {letter['reason']}" for letter in letters)
    raise ConfigError(f"{manifest.num_dead} documents are not usable ({reasons}); correct them or leave them out")


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
def _encoder_of(index: Index) -> "Encoder":
    from ray_lir.encoder.encoder import Encoder

    return Encoder.for_contract(index.manifest.contract, EncoderConfig(checkpoint=index.checkpoint))
