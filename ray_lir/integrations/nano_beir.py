"""Evaluation of an encoder on several small collections, such as the 13 of NanoBEIR or local folders. It needs no further package."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ray_lir import storage
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.corpus.datasets import has_queries_as_documents, load_dataset
from ray_lir.corpus.records import document_text, read_documents
from ray_lir.encoder.encoder import Encoder
from ray_lir.training.dev_set import DevSet, ndcg_at_10

NANO_BEIR = (
    "NanoArguAna",
    "NanoClimateFEVER",
    "NanoDBPedia",
    "NanoFEVER",
    "NanoFiQA2018",
    "NanoHotpotQA",
    "NanoMSMARCO",
    "NanoNFCorpus",
    "NanoNQ",
    "NanoQuoraRetrieval",
    "NanoSCIDOCS",
    "NanoSciFact",
    "NanoTouche2020",
)
"""The collections of NanoBEIR: 50 queries each, at most 50, and some thousand documents."""
OWNER = "zeta-alpha-ai"
"""Owner of their repositories on the Hugging Face hub."""


class NanoBeirEvaluator:
    """Measures an encoder by the nDCG@10 of an exact search in memory, on several small collections.

    The collections are read once, so that an evaluator can be called after every epoch.

    Args:
        collections: Names in `NANO_BEIR`, which are downloaded from the Hugging Face hub, and folders in the BEIR layout.
        split: The judgements of folders to use: qrels/SPLIT.tsv.

    Raises:
        ConfigError: A folder does not exist, or a download fails.
        FormatError: A file is damaged.

    Example:
        >>> NanoBeirEvaluator(["examples/data"])(Encoder.load("all-MiniLM-L6-v2"))
        {'data': 0.97, 'mean': 0.97}
    """

    def __init__(self, collections: Sequence[storage.PathOrUrl] = NANO_BEIR, split: str = "test"):
        if isinstance(collections, str) or not collections:
            raise ConfigError("collections is a list of names and folders; give at least one")
        self.collections = dict(_collection(each, split) for each in collections)

    def __call__(self, encoder: Encoder) -> dict[str, float]:
        """Return the nDCG@10 of each collection by its name, and their mean as `mean`."""
        values = {name: ndcg_at_10(encoder, collection) for name, collection in self.collections.items()}
        return {**values, "mean": sum(values.values()) / len(values)}


def _collection(place: storage.PathOrUrl, split: str) -> tuple[str, DevSet]:
    name = storage.path_text(place)
    if name in NANO_BEIR and not storage.is_folder(name):
        return name, read_nano_beir(_download(name), ignore_identical_ids=has_queries_as_documents(name.removeprefix("Nano")))
    judged = load_dataset(name, split)
    documents = {each.doc_id: document_text(each.title, each.text) for each in read_documents(judged.corpus)}
    return judged.name, DevSet(judged.queries, documents, judged.qrels, has_queries_as_documents(judged.name))


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(f"{OWNER}/{name}", repo_type="dataset", allow_patterns=["*.parquet"]))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ConfigError(
            f"the collection {name} cannot be downloaded from the Hugging Face hub ({type(error).__name__}); "
            "check the network, or give folders in the BEIR layout"
        ) from None


def read_nano_beir(folder: Path, ignore_identical_ids: bool = False) -> DevSet:
    """Return a collection from Parquet files in the folders corpus, queries and qrels, as NanoBEIR's repositories hold them.

    Args:
        folder: The folder.
        ignore_identical_ids: Whether a document with the query's own id is left out of its ranking.

    Raises:
        FormatError: A file or a column is missing.
    """
    documents = {row["_id"]: document_text(row.get("title") or "", row["text"]) for row in _rows(folder / "corpus", "_id", "text")}
    texts = {row["_id"]: row["text"] for row in _rows(folder / "queries", "_id", "text")}
    qrels: dict[str, dict[str, int]] = {}
    for row in _rows(folder / "qrels", "query-id", "corpus-id"):
        qrels.setdefault(row["query-id"], {})[row["corpus-id"]] = int(row.get("score", 1))
    return DevSet({query_id: texts[query_id] for query_id in qrels if query_id in texts}, documents, qrels, ignore_identical_ids)


def _rows(folder: Path, *columns: str) -> Iterator[dict[str, Any]]:
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise FormatError(str(folder), "Parquet files", "none", "download the collection again")
    for file in files:
        table = pq.read_table(file)
        if missing := set(columns) - set(table.column_names):
            raise FormatError(str(file), f"a column {sorted(missing)[0]}", f"columns {table.column_names}")
        yield from table.to_pylist()
