"""Model Context Protocol: a server that lets assistants search an index or a service."""

import inspect
import threading
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Annotated, Any, TypeVar

from pydantic import Field

from ray_lir import __version__, storage
from ray_lir.api.search import DocId, Quality, QueryText
from ray_lir.base.config import Config
from ray_lir.base.errors import ConfigError, NotFound, RayLirError
from ray_lir.base.extras import importing
from ray_lir.integrations.source import DocumentTrace, LocalIndex, SearchSettings, Source, SourceFacts

with importing("mcp", "the MCP server"):
    from mcp.server import MCPServer
    from mcp.server.mcpserver.exceptions import ToolError
    from mcp.types import ToolAnnotations

MAX_RESULTS = 100
MAX_DOCUMENTS = 100
INSTRUCTIONS = (
    "Searches documents with a late-interaction retriever: describe what you look for in a short sentence or a few words. "
    "Call search first; get_document returns the whole text of a result; explain says why a document was found or not."
)
READS = ToolAnnotations(read_only_hint=True, destructive_hint=False, idempotent_hint=True, open_world_hint=False)
WRITES = ToolAnnotations(read_only_hint=False, destructive_hint=True, idempotent_hint=True, open_world_hint=False)

Function = TypeVar("Function", bound=Callable[..., Any])
Where = Annotated[
    str | None,
    Field(
        description="Conditions on the documents' metadata, such as `year >= 2020 and (tags ~ news or lang in [en, de])`. "
        "Signs: = != < <= > >= ~ (contains) ^= (starts with). None: all documents."
    ),
]
Query = Annotated[QueryText, Field(description="What to look for, in words.")]
Id = Annotated[DocId, Field(description="Id of the document: `doc_id` of a result.")]
IndexName = Annotated[str | None, Field(description="Name of the index, as list_indexes gives it. None: the only one, or the first.")]
Engine = Annotated[str, Field(description="auto, or the name of an engine: exact, scan, plaid or warp.")]


class Word(Config):
    """A word of a result that the query matched."""

    word: str
    field: str
    """title or text."""
    start: int
    """Its first character in the field."""
    end: int
    strength: float
    """Part of the score that comes from it."""


class Result(Config):
    """A document that the search found."""

    doc_id: str
    score: float
    title: str
    snippet: str
    """The best passage of the text; get_document returns all of it."""
    metadata: dict[str, Any]
    words: list[Word]
    """The words that the query matched."""


class SearchResults(Config):
    """The results of a search, best first."""

    index: str
    results: list[Result]


class WholeDocument(Config):
    """A document of the index."""

    doc_id: str
    title: str
    text: str
    metadata: dict[str, Any]


class IndexEntry(SourceFacts):
    """An index that the tools search."""

    index: str
    """Name for the argument `index` of the other tools."""


class IndexEntries(Config):
    """The indexes of this server."""

    indexes: list[IndexEntry]


class NewDocument(Config):
    """A document to add. It replaces a document with the same id."""

    doc_id: str = Field(min_length=1, max_length=512)
    text: str = Field(min_length=1)
    title: str = ""
    metadata: dict[str, Any] = {}


class Changed(Config):
    """The result of a change."""

    version: int
    """Version of the index after the change."""
    num_docs: int
    num_added: int
    num_replaced: int
    num_deleted: int
    num_unknown: int
    """Ids to delete that the index did not hold."""


def make_server(sources: Sequence[Source], allow_writes: bool = False) -> MCPServer[Any]:
    """Return an MCP server with the tools search, explain, get_document and list_indexes.

    Args:
        sources: The indexes to search; the first is the default.
        allow_writes: Also offer the tools add_documents and delete_documents, for indexes on this machine.

    Raises:
        ConfigError: There is no source, or `allow_writes` is set and a source is a service.
    """
    if not sources:
        raise ConfigError("the MCP server needs an index or a service to search; give --index or --service")
    if allow_writes and not all(isinstance(source, LocalIndex) for source in sources):
        raise ConfigError("allow_writes is for indexes on this machine; a service is changed over its own API")
    server: MCPServer[Any] = MCPServer("ray_lir", version=__version__, instructions=INSTRUCTIONS, log_level="WARNING")
    tools = _Tools(sources)
    for tool in (tools.search, tools.explain, tools.get_document, tools.list_indexes):
        server.add_tool(_reporting_errors(tool), annotations=READS)
    if allow_writes:
        for change in (tools.add_documents, tools.delete_documents):
            server.add_tool(_reporting_errors(change), annotations=WRITES)
    return server


class _Tools:
    """The tools. Their signatures and docstrings are what an assistant sees."""

    def __init__(self, sources: Sequence[Source]):
        self._sources = dict(zip(_names(sources), sources, strict=True))
        self._writing = threading.Lock()

    def search(
        self,
        query: Query,
        k: Annotated[int, Field(ge=1, le=MAX_RESULTS, description="Results to return, at most.")] = 5,
        where: Where = None,
        engine: Engine = "auto",
        quality: Annotated[Quality, Field(description="For the engine auto: fast, balanced or exact.")] = "balanced",
        index: IndexName = None,
    ) -> SearchResults:
        """Search the documents of an index. Returns the best ones with a score, a title, the best passage and their metadata."""
        name, source = self._source(index)
        [found] = source.search([query], SearchSettings.of(k=k, where=where, engine=engine, quality=quality))
        results = []
        for each in found:
            merged = each.merged_metadata()
            words = [Word(**mark) for mark in merged.get("highlights", [])]
            snippet = merged.get("snippet", each.text)
            fields = {"doc_id": each.doc_id, "score": each.score, "title": each.title, "metadata": each.metadata}
            results.append(Result(**fields, snippet=snippet, words=words))
        return SearchResults(index=name, results=results)

    def explain(
        self,
        query: Query,
        doc_id: Id,
        k: Annotated[int, Field(ge=1, le=MAX_RESULTS, description="Results that the search returns.")] = 5,
        where: Where = None,
        engine: Engine = "auto",
        index: IndexName = None,
    ) -> DocumentTrace:
        """Say why a search finds a document, or which stage or filter drops it."""
        return self._source(index)[1].explain(query, doc_id, SearchSettings.of(k=k, where=where, engine=engine))

    def get_document(self, doc_id: Id, index: IndexName = None) -> WholeDocument:
        """Return the title, the whole text and the metadata of a document."""
        found = self._source(index)[1].get(doc_id)
        if found is None:
            raise NotFound(f"there is no document {doc_id!r}; use a doc_id that search returned")
        return WholeDocument(**vars(found))

    def list_indexes(self) -> IndexEntries:
        """List the indexes that the other tools search, with their sizes."""
        return IndexEntries(indexes=[IndexEntry(index=name, **dict(source.facts())) for name, source in self._sources.items()])

    def add_documents(
        self,
        documents: Annotated[list[NewDocument], Field(min_length=1, max_length=MAX_DOCUMENTS)],
        index: IndexName = None,
    ) -> Changed:
        """Add documents to an index, or replace those with the same ids. The next search finds them."""
        fields = [{"_id": each.doc_id, "title": each.title, "text": each.text, "metadata": each.metadata} for each in documents]
        return self._change(index, lambda opened: opened.add(fields))

    def delete_documents(self, doc_ids: Annotated[list[DocId], Field(min_length=1, max_length=1000)], index: IndexName = None) -> Changed:
        """Delete documents of an index by id."""
        return self._change(index, lambda opened: opened.delete(doc_ids))

    def _change(self, index: str | None, change: Callable[[Any], Any]) -> Changed:
        opened = self._source(index)[1].index  # type: ignore[attr-defined]  # make_server checks that it is a LocalIndex
        with self._writing:
            made = change(opened).change
            counts = {name: getattr(made, name) for name in ("num_added", "num_replaced", "num_deleted", "num_unknown")}
            return Changed(version=opened.version, num_docs=len(opened), **counts)

    def _source(self, index: str | None) -> tuple[str, Source]:
        if index is None:
            return next(iter(self._sources.items()))
        if index not in self._sources:
            raise NotFound(f"there is no index {index!r}; the indexes are {', '.join(self._sources)}")
        return index, self._sources[index]


def _names(sources: Sequence[Source]) -> list[str]:
    """Return a name for each source: the last component of its folder or address, with a number if it is not the first of that name."""
    names: list[str] = []
    for source in sources:
        base = storage.base_name(source.name)
        names.append(base if base not in names else f"{base}-{len(names) + 1}")
    return names


def _reporting_errors(tool: Function) -> Function:
    """Return the tool with an error of ray_lir as an error that the assistant sees: one line that says what to do."""

    @wraps(tool)
    def reporting(*args: Any, **kwargs: Any) -> Any:
        try:
            return tool(*args, **kwargs)
        except RayLirError as error:
            raise ToolError(str(error)) from None

    reporting.__signature__ = inspect.signature(tool)  # type: ignore[attr-defined]
    return reporting  # type: ignore[return-value]
