"""LlamaIndex: a retriever, and a vector store that only reads, over an index or a service."""

import asyncio
from collections.abc import Sequence
from typing import Any

from pydantic import PrivateAttr

from ray_lir import storage
from ray_lir.api.client import Client
from ray_lir.base.errors import ConfigError
from ray_lir.base.extras import importing
from ray_lir.index.filters import Filters
from ray_lir.integrations.source import SearchSettings, Source, StoredDocument

with importing("llama_index", "the retriever for LlamaIndex"):
    from llama_index.core.base.base_retriever import BaseRetriever
    from llama_index.core.callbacks.base import CallbackManager
    from llama_index.core.schema import BaseNode, NodeWithScore, QueryBundle, TextNode
    from llama_index.core.vector_stores.types import (
        BasePydanticVectorStore,
        FilterCondition,
        FilterOperator,
        MetadataFilter,
        MetadataFilters,
        VectorStoreQuery,
        VectorStoreQueryResult,
    )

Where = Filters | MetadataFilters | dict[str, Any] | str | None
"""A filter of ray_lir, or LlamaIndex's `MetadataFilters`."""
NOT_EMBEDDED = ["doc_id", "score", "highlights", "snippet"]
"""Metadata that nodes do not show to embedding models and language models."""

_SIGNS = {
    FilterOperator.EQ: "=",
    FilterOperator.NE: "!=",
    FilterOperator.GT: ">",
    FilterOperator.GTE: ">=",
    FilterOperator.LT: "<",
    FilterOperator.LTE: "<=",
    FilterOperator.IN: "in",
    FilterOperator.NIN: "not in",
    FilterOperator.CONTAINS: "contains",
    FilterOperator.TEXT_MATCH: "contains",
}


class RayLirRetriever(BaseRetriever):
    """Retrieves nodes from an index or a service.

    A node has the id and the text of a document. Its metadata is the document's own with `doc_id`, `title` and `score`; with `highlight`
    also `highlights` (matched words with their positions) and `snippet` (the best passage).

    Args:
        source: An open `Index` or `Client`, the folder of an index, or the address of a service.
        similarity_top_k: Nodes to retrieve, at most.
        filters: `MetadataFilters`, or a filter of ray_lir such as `year >= 2020`. None: no conditions.
        token: Bearer token for an address. None: send no token.
        callback_manager: LlamaIndex's callbacks. None: no callbacks.
        settings: The other fields of `SearchSettings`: engine, params, quality and highlight.

    Raises:
        ConfigError: A setting or a filter is not possible.
        FormatError: The folder holds no index.

    Example:
        >>> retriever = RayLirRetriever("my-index", similarity_top_k=3, filters="year >= 2020")
        >>> retriever.retrieve("where does energy come from?")[0].text
        'The mitochondrion makes ATP.'
    """

    def __init__(
        self,
        source: Source | Client | storage.PathOrUrl | Any,
        similarity_top_k: int = 10,
        filters: Where = None,
        token: str | None = None,
        callback_manager: CallbackManager | None = None,
        **settings: Any,
    ):
        super().__init__(callback_manager=callback_manager)
        self._source = Source.of(source, token)
        self._settings = SearchSettings.of(k=similarity_top_k, where=filters_of(filters), **settings)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        [found] = self._source.search([query_bundle.query_str], self._settings)
        return [NodeWithScore(node=_node(each), score=each.score) for each in found]

    async def _aretrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return await asyncio.to_thread(self._retrieve, query_bundle)


class RayLirVectorStore(BasePydanticVectorStore):
    """A vector store over an index or a service. It answers queries by their text, and does not change the index.

    `VectorStoreIndex.from_vector_store(RayLirVectorStore(source="my-index"))` gives query engines, routers and agents their usual index. It
    needs no embedding model: pass `embed_model=MockEmbedding(1)` where LlamaIndex asks for one.
    """

    stores_text: bool = True
    is_embedding_query: bool = False
    source: Any
    """An open `Index` or `Client`, the folder of an index, or the address of a service."""
    token: str | None = None
    """Bearer token for an address. None: send no token."""
    settings: SearchSettings = SearchSettings()
    """Settings of every search; a query sets `k` and the filters."""

    _source: Source = PrivateAttr()

    def model_post_init(self, _: Any, /) -> None:
        """Open the source."""
        self._source = Source.of(self.source, self.token)

    @classmethod
    def class_name(cls) -> str:
        """Return the name of the class for LlamaIndex's serialization."""
        return "RayLirVectorStore"

    @property
    def client(self) -> Source:
        """The source that answers the queries."""
        return self._source

    def query(self, query: VectorStoreQuery, **_: Any) -> VectorStoreQueryResult:
        """Return the best nodes for `query.query_str`, with `similarity_top_k`, `filters`, `node_ids` and `doc_ids` applied.

        Raises:
            ConfigError: The query has no text, or a filter has no counterpart.
        """
        if not query.query_str:
            raise ConfigError("a late-interaction index is searched by the text of the query, not by one vector; set query_str")
        settings = self.settings.changed(k=query.similarity_top_k, where=_with_ids(query))
        [found] = self._source.search([query.query_str], settings)
        nodes = [_node(each) for each in found]
        return VectorStoreQueryResult(nodes=nodes, similarities=[each.score for each in found], ids=[each.doc_id for each in found])

    async def aquery(self, query: VectorStoreQuery, **_: Any) -> VectorStoreQueryResult:
        """Return the nodes of `query`, searched in a thread."""
        return await asyncio.to_thread(self.query, query)

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """Return the nodes with these ids; ids that the index does not hold are left out.

        Raises:
            ConfigError: There are no ids, or there are filters: an index lists its documents only by id.
        """
        if node_ids is None or filters is not None:
            raise ConfigError("get_nodes needs node_ids, without filters; search with filters instead")
        return [_node(document) for document in map(self._source.get, node_ids) if document is not None]

    def add(self, nodes: Sequence[BaseNode], **_: Any) -> list[str]:
        """Refuse to change the index.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("this vector store only reads; add documents with ray_lir.Index.add or `ray-lir update`")

    def delete(self, ref_doc_id: str, **_: Any) -> None:
        """Refuse to change the index.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError("this vector store only reads; delete documents with ray_lir.Index.delete or `ray-lir update`")


def _node(document: StoredDocument) -> TextNode:
    metadata = document.merged_metadata()
    hidden = [name for name in NOT_EMBEDDED if name in metadata]
    return TextNode(
        id_=document.doc_id,
        text=document.text,
        metadata=metadata,
        excluded_embed_metadata_keys=hidden,
        excluded_llm_metadata_keys=hidden,
    )


def _with_ids(query: VectorStoreQuery) -> Filters | None:
    """Return the filters of a query, with its ids as the only documents that it may return. LlamaIndex writes no ids as []."""
    filters = filters_of(query.filters)
    chosen = [set(ids) for ids in (query.node_ids, query.doc_ids) if ids]
    if not chosen:
        return filters
    return Filters.of({"where": filters and filters.where, "ids": {"include": sorted(set.intersection(*chosen))}})


def filters_of(filters: Where) -> Filters | None:
    """Return a filter of LlamaIndex as one of ray_lir.

    Raises:
        ConfigError: The filter has an operator that ray_lir does not have.
    """
    if filters is None:
        return None
    if isinstance(filters, MetadataFilters):
        return Filters.of(_tree(filters)) if filters.filters else None
    return Filters.of(filters)


def _tree(filters: MetadataFilters) -> dict[str, Any]:
    parts = [_tree(each) if isinstance(each, MetadataFilters) else _condition(each) for each in filters.filters]
    if filters.condition == FilterCondition.NOT:
        return {"not": {"or": parts}}
    return {"or" if filters.condition == FilterCondition.OR else "and": parts}


def _condition(each: MetadataFilter) -> dict[str, Any]:
    values = each.value if isinstance(each.value, list) else [each.value]
    match each.operator:
        case FilterOperator.ANY:
            return {"or": [{each.key: {"contains": value}} for value in values]}
        case FilterOperator.ALL:
            return {"and": [{each.key: {"contains": value}} for value in values]}
        case FilterOperator.IS_EMPTY:
            return {each.key: {"exists": False}}
        case operator if operator in _SIGNS:
            return {each.key: {_SIGNS[operator]: each.value}}
    raise ConfigError(f"LlamaIndex's filter operator {each.operator.value} has no counterpart; use another operator")
