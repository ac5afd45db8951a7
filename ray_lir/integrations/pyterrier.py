"""PyTerrier: an index as an artifact, with transformers that retrieve, rerank and expand queries, and an indexer."""

import json
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ray_lir import storage
from ray_lir.base.config import EncoderConfig, IndexConfig
from ray_lir.base.errors import ConfigError
from ray_lir.base.extras import importing
from ray_lir.engines.choice import engine_params
from ray_lir.engines.registry import ENGINES
from ray_lir.integrations.source import LocalIndex, SearchSettings, Source
from ray_lir.search.feedback import expand_query
from ray_lir.text_index import Index

with importing("pyterrier", "the transformers for PyTerrier"):
    import pandas as pd
    import pyterrier as pt

QUERIES_AT_ONCE = 64


class RayLirIndex(pt.Artifact):
    """An index as a PyTerrier artifact. `pt.Artifact.load(path)` returns it, and its methods return transformers.

    Args:
        path: Folder of the index. It need not exist before `indexer().index(...)`.

    Example:
        >>> index = RayLirIndex("my-index")
        >>> pipeline = bm25 % 100 >> index.reranker()
    """

    ARTIFACT_TYPE = "late_interaction_index"
    ARTIFACT_FORMAT = "ray_lir"
    ARTIFACT_PACKAGE_HINT = "ray_lir"

    def __init__(self, path: storage.PathOrUrl):
        super().__init__(storage.path_text(path))
        self._index: Index | None = None

    @property
    def index(self) -> Index:
        """The opened index.

        Raises:
            FormatError: The folder holds no index.
        """
        if self._index is None:
            self._index = Index.open(str(self.path))
        return self._index

    def retriever(self, num_results: int = 1000, include_fields: bool = False, **settings: Any) -> "RayLirRetriever":
        """Return a transformer that searches the index.

        Args: as in `RayLirRetriever`.
        """
        return RayLirRetriever(self.index, num_results, include_fields, **settings)

    def reranker(self) -> "RayLirReranker":
        """Return a transformer that scores the documents of its input exactly."""
        return RayLirReranker(self.index)

    def prf(
        self, fb_docs: int = 3, fb_embs: int = 10, num_clusters: int = 24, beta: float = 1.0, num_results: int = 1000, **settings: Any
    ) -> "RayLirPrf":
        """Return a transformer for pseudo-relevance feedback.

        Args: as in `RayLirPrf`.
        """
        return RayLirPrf(self.index, fb_docs, fb_embs, num_clusters, beta, num_results, **settings)

    def indexer(self, encoder: str | EncoderConfig = EncoderConfig(), config: IndexConfig | None = None) -> "RayLirIndexer":
        """Return an indexer that makes this index.

        Args:
            encoder: Name or folder of a checkpoint, or its configuration.
            config: Number of shards, bits a dimension and clustering. None: the defaults.
        """
        return RayLirIndexer(self, encoder, config)


class RayLirIndexer(pt.Indexer):
    """Makes an index of documents: dicts with `docno`, `text`, and optionally `title`; other fields become metadata.

    Args:
        artifact: The artifact of the index, or its folder.
        encoder: Name or folder of a checkpoint, or its configuration.
        config: Number of shards, bits a dimension and clustering. None: the defaults.
    """

    def __init__(
        self,
        artifact: RayLirIndex | storage.PathOrUrl,
        encoder: str | EncoderConfig = EncoderConfig(),
        config: IndexConfig | None = None,
    ):
        super().__init__()
        self.artifact = artifact if isinstance(artifact, RayLirIndex) else RayLirIndex(artifact)
        self.encoder = encoder
        self.config = config

    def index_inputs(self) -> list[list[str]]:
        """Return the columns that `index` needs."""
        return [["docno", "text"]]

    def index(self, iter: Iterable[Mapping[str, Any]], **_: Any) -> RayLirIndex:
        """Index the documents and return the artifact. Rows without usable text are left out and counted in the log.

        Raises:
            ConfigError: A document has no `docno`, or the folder holds something else.
        """
        with tempfile.TemporaryDirectory(prefix="ray_lir-") as scratch:
            rows = Path(scratch, "corpus.jsonl")
            with rows.open("w", encoding="utf-8") as file:
                for number, document in enumerate(iter):
                    fields = dict(document)
                    if "docno" not in fields:
                        raise ConfigError(f"document {number} has no docno; PyTerrier's documents are dicts with docno and text")
                    file.write(json.dumps({"_id": str(fields.pop("docno")), **fields}) + "\n")
            self.artifact._index = Index.create(str(self.artifact.path), rows, self.encoder, self.config)
        metadata = {
            "type": RayLirIndex.ARTIFACT_TYPE,
            "format": RayLirIndex.ARTIFACT_FORMAT,
            "package_hint": RayLirIndex.ARTIFACT_PACKAGE_HINT,
        }
        storage.write_bytes(storage.join(str(self.artifact.path), "pt_meta.json"), json.dumps(metadata).encode())
        return self.artifact


class RayLirRetriever(pt.Transformer):
    """Searches an index or a service: from queries to results.

    Args:
        source: An open `Index` or `Client`, the folder of an index, or the address of a service.
        num_results: Documents for each query, at most.
        include_fields: Whether the results have the columns title and text.
        settings: The other fields of `SearchSettings`: where, engine, params and quality.

    Raises:
        ConfigError: A setting is not possible.
    """

    def __init__(self, source: Any, num_results: int = 1000, include_fields: bool = False, **settings: Any):
        super().__init__()
        self.source = Source.of(source)
        self.include_fields = include_fields
        self.settings = SearchSettings.of(k=num_results, highlight=False, **settings)

    def transform(self, queries: pd.DataFrame) -> pd.DataFrame:
        """Return the results of queries with the columns qid and query: also docno, score and rank."""
        pt.validate.query_frame(queries, extra_columns=["query"])
        texts = queries["query"].tolist()
        blocks = (texts[start : start + QUERIES_AT_ONCE] for start in range(0, len(texts), QUERIES_AT_ONCE))
        found = [hits for block in blocks for hits in self.source.search(block, self.settings)]
        columns = ["docno", "score", "rank", *(["title", "text"] if self.include_fields else [])]
        rows = [
            [position, each.doc_id, each.score, rank, *([each.title, each.text] if self.include_fields else [])]
            for position, hits in enumerate(found)
            for rank, each in enumerate(hits)
        ]
        return _joined(queries, rows, columns)


class RayLirReranker(pt.Transformer):
    """Scores the documents of its input exactly, by their `docno` in the index. Documents that the index does not hold are left out.

    Args:
        source: An open `Index` or `Client`, the folder of an index, or the address of a service.
    """

    def __init__(self, source: Any):
        super().__init__()
        self.source = Source.of(source)

    def transform(self, results: pd.DataFrame) -> pd.DataFrame:
        """Return the rows of `results` with new scores and ranks. It needs the columns qid, query and docno."""
        pt.validate.result_frame(results, extra_columns=["query"])
        parts = []
        for _, group in results.groupby("qid", sort=False):
            scores = self.source.scores(group["query"].iloc[0], group["docno"].astype(str).tolist())
            scored = group.drop(columns=["score", "rank"], errors="ignore").assign(score=group["docno"].astype(str).map(scores))
            parts.append(scored.dropna(subset=["score"]))
        return pt.model.add_ranks(pd.concat(parts)) if parts else results


class RayLirPrf(pt.Transformer):
    """ColBERT-PRF over PLAID or another engine: expands each query from its best documents and searches again.

    `retriever >> prf` is the method of Wang et al. (https://arxiv.org/abs/2106.11251), with its parameters and their defaults. Rarity is
    computed from the index's clusters (ray_lir/search/feedback.py).

    Args:
        source: An open `Index`, or the folder of one. A service cannot expand queries.
        fb_docs: Feedback documents: the best of the input.
        fb_embs: Expansion vectors.
        num_clusters: Clusters of the feedback vectors.
        beta: Weight of the expansion vectors relative to the query's own.
        num_results: Documents for each query, at most.
        engine: auto, or the name of an engine.
        params: Parameters of the engine. None: the defaults.
        rerank_only: Whether to rank only the documents of the input, with the expanded query, in place of searching again.

    Raises:
        ConfigError: The source is a service, or a setting is not possible.
    """

    def __init__(
        self,
        source: Any,
        fb_docs: int = 3,
        fb_embs: int = 10,
        num_clusters: int = 24,
        beta: float = 1.0,
        num_results: int = 1000,
        engine: str = "auto",
        params: Mapping[str, Any] | None = None,
        rerank_only: bool = False,
    ):
        super().__init__()
        opened = Source.of(source)
        if not isinstance(opened, LocalIndex):
            raise ConfigError("feedback needs an index on this machine; a service cannot expand queries")
        self.index = opened.index
        self.fb_docs, self.fb_embs, self.num_clusters, self.beta = fb_docs, fb_embs, num_clusters, beta
        self.num_results, self.rerank_only = num_results, rerank_only
        self.engine = engine_params(engine, params or {}, tuple(ENGINES))

    def transform(self, results: pd.DataFrame) -> pd.DataFrame:
        """Return new results. It needs the columns qid, query, docno and rank."""
        pt.validate.result_frame(results, extra_columns=["query", "rank"])
        searcher, rows = self.index.searcher, []
        queries = results.drop_duplicates("qid")[["qid", "query"]].reset_index(drop=True)
        groups = dict(iter(results.groupby("qid", sort=False)))
        embedded = self.index.encoder.encode_queries(queries["query"].tolist())
        for position, qid in enumerate(queries["qid"]):
            ranked = groups[qid].sort_values("rank")["docno"].astype(str).tolist()
            numbers = searcher.find(set(ranked))
            feedback = [numbers[doc_id] for doc_id in ranked[: self.fb_docs] if doc_id in numbers]
            one = embedded.slice(position, position + 1)
            expanded = expand_query(searcher, one, feedback, self.num_clusters, self.fb_embs, self.beta)
            only = list(numbers.values()) if self.rerank_only else None
            engine = "exact" if self.rerank_only else self.engine
            [answer] = searcher.search(expanded, self.num_results, engine, only=only)
            found = zip(searcher.doc_ids(answer.documents), answer.scores.tolist(), strict=True)
            rows += [[position, doc_id, score, rank] for rank, (doc_id, score) in enumerate(found)]
        return _joined(queries, rows, ["docno", "score", "rank"])


def _joined(queries: pd.DataFrame, rows: list[list[Any]], columns: list[str]) -> pd.DataFrame:
    """Return result rows, each with the columns of its query, which the first value of a row numbers."""
    found = pd.DataFrame(rows, columns=["_position", *columns])
    of_query = queries.drop(columns=[name for name in columns if name in queries.columns]).reset_index(drop=True)
    taken = of_query.iloc[found["_position"].astype(int)].reset_index(drop=True)
    return pd.concat([taken, found.drop(columns="_position")], axis=1)
