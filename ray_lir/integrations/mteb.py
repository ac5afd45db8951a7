"""MTEB: ray_lir's engines as search models, and local folders as tasks."""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ray_lir import __version__, storage
from ray_lir.base.config import EncoderConfig, IndexConfig, digest
from ray_lir.base.errors import ConfigError
from ray_lir.base.extras import importing
from ray_lir.corpus.datasets import Dataset as JudgedQueries
from ray_lir.corpus.datasets import has_queries_as_documents, load_dataset
from ray_lir.corpus.records import read_documents
from ray_lir.engines.choice import engine_params
from ray_lir.engines.registry import ENGINES
from ray_lir.text_index import Index

with importing("mteb", "the search model for MTEB"):
    import datasets
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models.model_meta import ModelMeta


class RayLirSearch:
    """A search model for `mteb.evaluate`: it indexes the corpus of a task with ray_lir and answers the queries with one of its engines.

    It implements MTEB's `SearchProtocol`, so every text retrieval and reranking task runs on it. Reranking tasks score the listed documents
    exactly.

    Args:
        encoder: Name or folder of a checkpoint, or its configuration.
        engine: auto, or the name of an engine.
        params: Parameters of the engine, such as {"nprobe": 4}. None: the defaults.
        quality: For the engine auto: fast, balanced or exact.
        index_config: Number of shards, bits a dimension and clustering. None: the defaults.
        folder: Folder for the indexes, which are then kept. None: a temporary folder; only the index of the last task is kept.

    Raises:
        ConfigError: The engine or a parameter does not exist.

    Example:
        >>> mteb.evaluate(RayLirSearch("all-MiniLM-L6-v2", engine="plaid"), mteb.get_tasks(tasks=["SciFact"]))
    """

    def __init__(
        self,
        encoder: str | EncoderConfig = EncoderConfig(),
        engine: str = "auto",
        params: Mapping[str, Any] | None = None,
        quality: str = "balanced",
        index_config: IndexConfig | None = None,
        folder: storage.PathOrUrl | None = None,
    ):
        self.encoder = encoder if isinstance(encoder, EncoderConfig) else EncoderConfig(checkpoint=encoder)
        self.engine = engine_params(engine, params or {}, tuple(ENGINES))
        self.quality = quality
        self.index_config = index_config
        self._scratch = tempfile.TemporaryDirectory(prefix="ray_lir-") if folder is None else None
        self.folder = Path(self._scratch.name) if self._scratch else storage.local_path(storage.path_text(folder or ""))
        self.opened: Index | None = None

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """The metadata of the model. Its revision is a digest of the settings, so MTEB's cache keeps engines apart."""
        engine = self.engine if isinstance(self.engine, str) else self.engine.model_dump(mode="json")
        index_config = self.index_config and self.index_config.model_dump(mode="json")
        settings = {"encoder": self.encoder.model_dump(mode="json"), "engine": engine, "quality": self.quality, "index": index_config}
        name = engine if isinstance(engine, str) else engine["engine"]
        facts = {
            "name": f"ray_lir/{storage.base_name(self.encoder.checkpoint)}-{name}",
            "revision": f"{__version__}-{digest(settings)[:12]}",
            "framework": ["PyTorch"],
            "model_type": ["late-interaction"],
            "similarity_fn_name": "MaxSim",
        }
        return ModelMeta.create_empty(overwrites=facts)

    def index(self, corpus: Any, *, task_metadata: Any, hf_split: str, hf_subset: str, **_: Any) -> None:
        """Index the corpus of a task. Documents without usable text are left out and counted in the log.

        Args:
            corpus: Dataset with id, text and optionally title.
            task_metadata: Metadata of the task; its name becomes part of the index's name.
            hf_split: Split of the task.
            hf_subset: Subset of the task.
        """
        if "text" not in corpus.column_names:
            raise ConfigError(f"the corpus of {task_metadata.name} has no text; ray_lir searches text tasks")
        folder = self.folder / f"{task_metadata.name}-{hf_subset}-{hf_split}"
        if self._scratch:
            storage.remove_tree(folder)
        storage.make_folder(folder)
        rows = folder / "corpus.jsonl"
        with rows.open("w", encoding="utf-8") as file:
            for row in corpus:
                fields = {"_id": row["id"], "title": row.get("title") or "", "text": row["text"]}
                file.write(json.dumps(fields) + "\n")
        self.opened = Index.create(folder / "index", rows, self.encoder, self.index_config)

    def search(
        self, queries: Any, *, top_k: int, top_ranked: Mapping[str, list[str]] | None = None, **_: Any
    ) -> dict[str, dict[str, float]]:
        """Return the scores of the best documents by id, by query id.

        Args:
            queries: Dataset with id and text; text may be a conversation, and there may be an instruction.
            top_k: Documents to return for each query.
            top_ranked: For reranking tasks: the documents to score, by query id. None: all documents.

        Raises:
            ConfigError: `index` was not called before.
        """
        if self.opened is None:
            raise ConfigError("search was called before index; let mteb.evaluate call both")
        searcher = self.opened.searcher
        texts = dict(_query_texts(queries))
        embedded = self.opened.encoder.encode_queries(list(texts.values()))
        if top_ranked is None:
            answers = searcher.search(embedded, top_k, self.engine, self.quality)
        else:
            numbers = searcher.find({doc_id for query_id in texts for doc_id in top_ranked.get(query_id, ())})
            listed = [[numbers[each] for each in dict.fromkeys(top_ranked.get(query_id, ())) if each in numbers] for query_id in texts]
            answers = [
                searcher.search(embedded.slice(row, row + 1), max(1, len(only)), "exact", only=only)[0] for row, only in enumerate(listed)
            ]
        return {
            query_id: dict(zip(searcher.doc_ids(answer.documents), answer.scores.tolist(), strict=True))
            for query_id, answer in zip(texts, answers, strict=True)
        }


def folder_task(folder_or_name: storage.PathOrUrl, split: str = "test") -> AbsTaskRetrieval:
    """Return an MTEB retrieval task over a folder in the BEIR layout.

    Args:
        folder_or_name: Folder, URL or BEIR name.
        split: The judgements to use: qrels/SPLIT.tsv.

    Raises:
        ConfigError: The folder or the split does not exist.
        FormatError: A file is missing or damaged.
    """
    judged = load_dataset(folder_or_name, split)
    return _task_type(judged)()


def _task_type(judged: JudgedQueries) -> type[AbsTaskRetrieval]:
    facts = TaskMetadata(
        name="".join(part.capitalize() for part in judged.name.replace("_", "-").split("-")),
        description=f"The local collection {judged.name}.",
        type="Retrieval",
        category="t2t",
        eval_splits=[judged.split],
        eval_langs=["eng-Latn"],
        main_score="ndcg_at_10",
        dataset={"path": judged.corpus, "revision": "local"},
    )

    class FolderTask(AbsTaskRetrieval):
        """A retrieval task over a folder in the BEIR layout."""

        metadata = facts
        data_loaded: bool = False
        ignore_identical_ids = has_queries_as_documents(judged.name)

        def load_data(self, *_: Any, **__: Any) -> None:
            """Read the corpus, the queries and the judgements of the folder."""
            if self.data_loaded:
                return
            queries = datasets.Dataset.from_list([{"id": query_id, "text": text} for query_id, text in judged.queries.items()])
            corpus = datasets.Dataset.from_generator(_corpus, gen_kwargs={"folder": judged.corpus})
            data: Any = {"corpus": corpus, "queries": queries, "relevant_docs": judged.qrels, "top_ranked": None}
            self.dataset = {"default": {judged.split: data}}
            self.data_loaded = True

    return FolderTask


def _corpus(folder: str) -> Iterator[dict[str, str]]:
    for document in read_documents(folder):
        yield {"id": document.doc_id, "title": document.title, "text": document.text}


def _query_texts(queries: Any) -> Iterator[tuple[str, str]]:
    for row in queries:
        text = row["text"]
        if isinstance(text, list):  # a conversation
            text = " ".join(turn if isinstance(turn, str) else turn.get("content", "") for turn in text)
        yield row["id"], f"{text} {row['instruction']}" if row.get("instruction") else text
