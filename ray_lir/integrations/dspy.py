"""DSPy: a retriever module over an index or a service."""

from types import SimpleNamespace
from typing import Any

from ray_lir.base.extras import importing
from ray_lir.integrations.source import SearchSettings, Source

with importing("dspy", "the retriever for DSPy"):
    import dspy


class RayLirRetriever(dspy.Retrieve):
    """Retrieves passages from an index or a service, as a module of a program.

    `dspy.configure(rm=retriever.rm)` gives it to `dspy.Retrieve`.

    Args:
        source: An open `Index` or `Client`, the folder of an index, or the address of a service.
        k: Passages to retrieve, at most.
        token: Bearer token for an address. None: send no token.
        settings: The other fields of `SearchSettings`: where, engine, params, quality and highlight.

    Raises:
        ConfigError: A setting is not possible.
        FormatError: The folder holds no index.

    Example:
        >>> RayLirRetriever("my-index", k=1)("where does energy come from?").passages
        ['The mitochondrion makes ATP.']
    """

    def __init__(self, source: Any, k: int = 3, token: str | None = None, **settings: Any):
        super().__init__(k=k)
        self._source = Source.of(source, token)
        self._settings = SearchSettings.of(k=k, **settings)

    def forward(self, query: str, k: int | None = None, where: Any = None, **_: Any) -> dspy.Prediction:
        """Return the best documents for a query.

        Args:
            query: Text of the query.
            k: Passages to retrieve, at most. None: as many as the module says.
            where: A filter of this query, in place of that of the module. None: that of the module.

        Returns:
            A prediction with `passages` (texts, each with its title before it), `doc_ids`, `scores`, and `metadata` (one dict a passage, as
            in the other integrations).

        Raises:
            ConfigError: `k` or `where` is not possible.
        """
        [found] = self._source.search([query], self._settings.changed(k=k, where=where))
        return dspy.Prediction(
            passages=[f"{each.title} | {each.text}" if each.title else each.text for each in found],
            doc_ids=[each.doc_id for each in found],
            scores=[each.score for each in found],
            metadata=[each.merged_metadata() for each in found],
        )

    def rm(self, query: str, k: int | None = None, **options: Any) -> list[SimpleNamespace]:
        """Return the passages of a query in the form that `dspy.Retrieve` takes from a retrieval model.

        Args:
            query: Text of the query.
            k: Passages to retrieve, at most. None: as many as the module says.
            options: As in `forward`.
        """
        return [SimpleNamespace(long_text=passage) for passage in self.forward(query, k, **options).passages]

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """Return the state of a saved program: `k`. The source is given again when the program is made."""
        return {"k": self.k}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over the state that `dump_state` returned."""
        self.k = state["k"]
        self._settings = self._settings.changed(k=self.k)
