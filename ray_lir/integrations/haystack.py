"""Haystack: a retriever component over an index or a service. It needs no document store."""

import asyncio
from collections.abc import Mapping
from typing import Any

from ray_lir.base.errors import ConfigError
from ray_lir.base.extras import importing
from ray_lir.index.filters import Filters
from ray_lir.integrations.source import FoundDocument, SearchSettings, Source

with importing("haystack", "the retriever for Haystack"):
    from haystack import Document, component, default_from_dict, default_to_dict
    from haystack.utils import Secret

_FIELDS = {"content": "text", "id": "doc_id"}
"""Haystack's names of a document's own fields, and those of ray_lir."""
_SIGNS = {"==": "=", "!=": "!=", ">": ">", ">=": ">=", "<": "<", "<=": "<=", "in": "in", "not in": "not in"}


@component
class RayLirRetriever:
    """Retrieves documents from an index or a service.

    `content` is the text of the document, `id` its id and `score` its score. `meta` has the document's own metadata, `doc_id`, `title` and
    `score`; with `highlight` also `highlights` (matched words with their positions) and `snippet` (the best passage).

    Args:
        source: The folder of an index, or the address of a service; or an open `Index` or `Client`.
        top_k: Documents to retrieve, at most.
        filters: Haystack's filters, or a filter of ray_lir such as `year >= 2020`. None: no conditions.
        token: Bearer token for an address. None: send no token.
        engine: auto, or the name of an engine.
        params: Parameters of the engine, such as {"nprobe": 4}. None: the defaults.
        quality: For the engine auto: fast, balanced or exact.
        highlight: Find the matched words and the best passage of each document.

    Raises:
        ConfigError: A setting or a filter is not possible.

    Example:
        >>> retriever = RayLirRetriever("my-index", top_k=3)
        >>> retriever.run("where does energy come from?")["documents"][0].content
        'The mitochondrion makes ATP.'
    """

    def __init__(
        self,
        source: Any,
        top_k: int = 10,
        filters: dict[str, Any] | str | None = None,
        token: Secret | None = None,
        engine: str = "auto",
        params: dict[str, Any] | None = None,
        quality: str = "balanced",
        highlight: bool = True,
    ):
        self.source = source
        self.top_k = top_k
        self.filters = filters
        self.token = token
        self.engine = engine
        self.params = params
        self.quality = quality
        self.highlight = highlight
        self._opened: Source | None = None
        options = {"engine": engine, "params": params or {}, "quality": quality, "highlight": highlight}
        self._settings = SearchSettings.of(k=top_k, where=filters_of(filters), **options)

    def warm_up(self) -> None:
        """Open the source. A pipeline calls this before its first run.

        Raises:
            FormatError: The folder holds no index.
        """
        if self._opened is None:
            self._opened = Source.of(self.source, self.token.resolve_value() if self.token else None)

    @component.output_types(documents=list[Document])
    def run(self, query: str, filters: dict[str, Any] | str | None = None, top_k: int | None = None) -> dict[str, list[Document]]:
        """Return the best documents for a query.

        Args:
            query: Text of the query.
            filters: Filters of this query, in place of those of the component. None: those of the component.
            top_k: Documents to retrieve, at most. None: as many as the component says.

        Returns:
            A dict with `documents`, best first.

        Raises:
            ConfigError: A filter or `top_k` is not possible.
        """
        self.warm_up()
        assert self._opened is not None
        [found] = self._opened.search([query], self._settings.changed(k=top_k, where=filters_of(filters)))
        return {"documents": [_document(each) for each in found]}

    @component.output_types(documents=list[Document])
    async def run_async(
        self, query: str, filters: dict[str, Any] | str | None = None, top_k: int | None = None
    ) -> dict[str, list[Document]]:
        """Return the best documents for a query, searched in a thread.

        Args: as in `RayLirRetriever.run`.
        """
        return await asyncio.to_thread(self.run, query, filters, top_k)

    def to_dict(self) -> dict[str, Any]:
        """Return the component as a dict, for pipelines that are saved as YAML.

        Raises:
            ConfigError: The source is an open object and not a folder or an address.
        """
        if not isinstance(self.source, str):
            raise ConfigError("only a retriever over a folder or an address can be saved; pass the path or the address as source")
        names = ("source", "top_k", "filters", "engine", "params", "quality", "highlight")
        return default_to_dict(self, token=self.token, **{name: getattr(self, name) for name in names})

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "RayLirRetriever":
        """Return the component that `to_dict` described."""
        return default_from_dict(cls, data)


def _document(found: FoundDocument) -> Document:
    return Document(id=found.doc_id, content=found.text, meta=found.merged_metadata(), score=found.score)


def filters_of(filters: Mapping[str, Any] | str | Filters | None) -> Filters | None:
    """Return a filter of Haystack as one of ray_lir.

    Raises:
        ConfigError: The filter has an operator that ray_lir does not have, or is not complete.
    """
    if not filters:
        return None
    if isinstance(filters, Mapping) and "operator" in filters:
        return Filters.of(_tree(filters))
    return Filters.of(filters)


def _tree(filters: Mapping[str, Any]) -> dict[str, Any]:
    operator, parts = filters.get("operator"), filters.get("conditions")
    if operator in ("AND", "OR", "NOT") and isinstance(parts, list) and parts:
        trees = [_tree(each) for each in parts]
        return {"not": {"and": trees}} if operator == "NOT" else {operator.lower(): trees}
    field = filters.get("field")
    if operator not in _SIGNS or not isinstance(field, str) or "value" not in filters:
        raise ConfigError(
            f"not a filter of Haystack: {dict(filters)!r:.100}; a condition has field, operator ({', '.join(_SIGNS)}) and value, "
            "and a group has operator (AND, OR, NOT) and conditions"
        )
    field = _FIELDS.get(field, field.removeprefix("meta."))
    if filters["value"] is None and operator in ("==", "!="):
        return {field: {"exists": operator == "!="}}
    return {field: {_SIGNS[operator]: filters["value"]}}
