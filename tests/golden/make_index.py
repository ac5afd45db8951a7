"""Make the golden index of this format version. Run it once when a format version is released, and never again.

    python -m tests.golden.make_index

Its indexes must always open and give the same answers (tests/conformance/test_golden_index.py).
"""

import json
from pathlib import Path

import numpy as np

from ray_lir.base.config import ClusteringConfig, IndexConfig
from ray_lir.building.build import build_index
from ray_lir.engines import VECTOR_ENGINES
from ray_lir.engines.xtr import XtrParams
from ray_lir.search.searcher import Searcher
from ray_lir.storage.manifest import FORMAT_VERSION
from tests.support.synthetic import collection, queries_about

FOLDER = Path(__file__).parent / f"index_v{FORMAT_VERSION}"
PARAMETERS = [XtrParams(k_prime=40, imputation=imputation) for imputation in ("min", "mean", "p10", "power_law", "zero")]
"""Searched besides every engine's defaults, with which xtr retrieves every token of this small index."""


def main() -> None:
    documents = collection(40, dim=16, topics=12, max_tokens=12)
    queries = queries_about(documents, [3, 17, 29])
    config = IndexConfig(num_shards=2, clustering=ClusteringConfig(num_centroids=16))
    build_index(documents, str(FOLDER / "index"), config, texts=[f"text of {doc_id}" for doc_id in documents.doc_ids])
    (FOLDER / "index" / "versions" / "1" / "provenance.json").unlink()
    searcher = Searcher.open(str(FOLDER / "index"), kernels="reference")
    searches = dict.fromkeys(VECTOR_ENGINES) | {params.model_dump_json(exclude_none=True): params for params in PARAMETERS}
    answers = {name: [answer(top, searcher) for top in searcher.search(queries, 5, params or name)] for name, params in searches.items()}
    (FOLDER / "answers.json").write_text(json.dumps(answers, indent=1))
    np.savez(FOLDER / "queries.npz", values=queries.values, offsets=queries.offsets)


def answer(top, searcher: Searcher) -> list[list]:
    return [[doc_id, float(score)] for doc_id, score in zip(searcher.doc_ids(top.documents), top.scores, strict=True)]


if __name__ == "__main__":
    main()
