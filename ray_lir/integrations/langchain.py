"""LangChain: a retriever over an index or a service."""

from collections.abc import Mapping
from typing import Any

from pydantic import ConfigDict, Field, PrivateAttr, SecretStr

from ray_lir.base.errors import ConfigError
from ray_lir.base.extras import importing
from ray_lir.index.filters import Filters
from ray_lir.integrations.source import FoundDocument, SearchSettings, Source

with importing("langchain_core", "the retriever for LangChain"):
    from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
    from langchain_core.documents import Document
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.runnables.config import run_in_executor
    from langchain_core.structured_query import Comparator, Comparison, FilterDirective, Operation, Operator

Where = Filters | FilterDirective | Mapping[str, Any] | str | None
"""A filter of ray_lir, or a `FilterDirective` or a dict with operators such as `$gte`, as LangChain's vector stores take them."""

_SIGNS = {
    Comparator.EQ: "=",
    Comparator.NE: "!=",
    Comparator.GT: ">",
    Comparator.GTE: ">=",
    Comparator.LT: "<",
    Comparator.LTE: "<=",
    Comparator.CONTAIN: "contains",
    Comparator.IN: "in",
    Comparator.NIN: "not in",
}


class RayLirRetriever(BaseRetriever):
    """Retrieves documents from an index or a service.

    `page_content` is the text of the document. `metadata` has the document's own metadata, `doc_id`, `title` and `score`; with `highlight`
    also `highlights` (matched words with their positions) and `snippet` (the best passage).

    Example:
        >>> retriever = RayLirRetriever(source="my-index", k=3, where="year >= 2020")
        >>> retriever.invoke("where does energy come from?")[0].page_content
        'The mitochondrion makes ATP.'
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    source: Any
    """An open `Index` or `Client`, the folder of an index, or the address of a service."""
    token: SecretStr | None = None
    """Bearer token for an address. None: send no token."""
    k: int = Field(10, ge=1)
    """Documents to retrieve, at most."""
    where: Any = None
    """A filter: text (`year >= 2020`), a dict, `Filters` or a `FilterDirective`. None: no conditions."""
    engine: str = "auto"
    """auto, or the name of an engine."""
    params: dict[str, Any] = {}
    """Parameters of the engine, such as {"nprobe": 4}."""
    quality: str = "balanced"
    """For the engine auto: fast, balanced or exact."""
    highlight: bool = True
    """Find the matched words and the best passage of each document."""

    _source: Source = PrivateAttr()
    _settings: SearchSettings = PrivateAttr()

    def model_post_init(self, _: Any, /) -> None:
        """Open the source and check the settings."""
        self._source = Source.of(self.source, self.token.get_secret_value() if self.token else None)
        names = ("k", "engine", "params", "quality", "highlight")
        self._settings = SearchSettings.of(where=filters_of(self.where), **{name: getattr(self, name) for name in names})

    def _get_relevant_documents(
        self,
        query: str,
        *,
        run_manager: CallbackManagerForRetrieverRun,
        k: int | None = None,
        where: Where = None,
        filter: Where = None,
    ) -> list[Document]:
        settings = self._settings.changed(k=k, where=filters_of(filter if where is None else where))
        [found] = self._source.search([query], settings)
        return [_document(each) for each in found]

    async def _aget_relevant_documents(
        self,
        query: str,
        *,
        run_manager: AsyncCallbackManagerForRetrieverRun,
        k: int | None = None,
        where: Where = None,
        filter: Where = None,
    ) -> list[Document]:
        retrieve = self._get_relevant_documents
        return await run_in_executor(None, retrieve, query, run_manager=run_manager.get_sync(), k=k, where=where, filter=filter)


def _document(found: FoundDocument) -> Document:
    return Document(id=found.doc_id, page_content=found.text, metadata=found.merged_metadata())


def filters_of(where: Where) -> Filters | None:
    """Return a filter of LangChain as one of ray_lir.

    Raises:
        ConfigError: The filter has an operator that ray_lir does not have.
    """
    if where is None:
        return None
    if isinstance(where, FilterDirective):
        return Filters.of(_tree(where))
    if isinstance(where, Mapping):
        return Filters.of(_without_dollars(where))
    return Filters.of(where)


def _tree(directive: FilterDirective) -> dict[str, Any]:
    match directive:
        case Operation(operator=Operator.NOT, arguments=arguments):
            return {"not": {"or": [_tree(each) for each in arguments]}}
        case Operation(operator=operator, arguments=arguments):
            return {operator.value: [_tree(each) for each in arguments]}
        case Comparison(comparator=Comparator.LIKE, attribute=field, value=str(pattern)):
            return {field: _like(pattern)}
        case Comparison(comparator=comparator, attribute=field, value=value) if comparator in _SIGNS:
            if isinstance(value, Mapping) and "date" in value:  # how LangChain's query constructor writes a date
                value = value["date"]
            return {field: {_SIGNS[comparator]: value}}
    raise ConfigError(f"a filter of LangChain has no counterpart: {directive!r:.100}; use another comparator")


def _like(pattern: str) -> dict[str, str]:
    """Return the condition of a LIKE pattern: `abc%` is a prefix, and `%abc%` or `abc` a text that contains it."""
    core = pattern.strip("%")
    if "%" in core or "_" in core or (pattern.startswith("%") and not pattern.endswith("%")):
        raise ConfigError(f"the pattern {pattern!r:.60} is not supported; write text%, %text% or text, without other wildcards")
    return {"^=" if pattern.endswith("%") and not pattern.startswith("%") else "contains": core}


def _without_dollars(where: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dict with operators such as `$gte` and `$and` as a short dict of ray_lir. Dicts of ray_lir stay as they are."""
    converted: dict[str, Any] = {}
    for name, value in where.items():
        bare = str(name).removeprefix("$")
        if bare in ("and", "or") and isinstance(value, list | tuple):
            value = [_without_dollars(each) if isinstance(each, Mapping) else each for each in value]
        elif bare == "not" and isinstance(value, Mapping):
            value = _without_dollars(value)
        elif isinstance(value, Mapping):
            value = {"not in" if sign == "$nin" else str(sign).removeprefix("$"): operand for sign, operand in value.items()}
        converted[bare] = value
    return converted
