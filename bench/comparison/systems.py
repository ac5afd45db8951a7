"""The systems of the comparison, their build options and search settings, as data."""

import re
from dataclasses import dataclass, field
from typing import Any

from bench.comparison.environments import THIS

Options = dict[str, Any]


@dataclass(frozen=True)
class System:
    """One row of the comparison.

    Attributes:
        module: Script in bench/peers.
        settings: Search options by name, with `k` if it differs from the run's. The first is the default; the others are points of
            the curve.
        index: Build options.
        environment: Name of its requirements in bench/peers/requirements. None: the environment that runs the comparison.
        base: Environment with packages that this one shares.
        assembled: Whether bench.peers.assembled can write its index.
    """

    module: str
    settings: dict[str, Options]
    index: Options = field(default_factory=dict)
    environment: str | None = None
    base: str | None = None
    assembled: bool = False


LOWER_BOUND = "lower-bound.json"
"""File for the interrupted own build of a system with an assembled index."""
TORCH = "torch-2.11.0"

SYSTEMS = {
    "ray_lir": System(
        module="ray_lir",
        settings={
            "auto": {},
            "auto, k 10": {"k": 10},
            "exact": {"engine": "exact"},
            "scan": {"engine": "scan"},
            "scan, 128": {"engine": "scan", "ncandidates": 128},
            "scan, 256": {"engine": "scan", "ncandidates": 256},
            "scan, 2048": {"engine": "scan", "ncandidates": 2048},
            "plaid": {"engine": "plaid"},
            "plaid, nprobe 2, 256": {"engine": "plaid", "nprobe": 2, "ncandidates": 1024},
            "plaid, nprobe 8, 1024": {"engine": "plaid", "nprobe": 8, "ncandidates": 4096},
            "warp": {"engine": "warp"},
            "warp, nprobe 8": {"engine": "warp", "nprobe": 8},
            "warp, nprobe 64, 1024": {"engine": "warp", "nprobe": 64, "rescore": 1024},
            "warp, not rescored": {"engine": "warp", "rescore": 0},
        },
    ),
    "fast-plaid": System(
        module="fast_plaid",
        settings={
            "default": {},
            "nprobe 4, 1024": {"n_ivf_probe": 4, "n_full_scores": 1024},
            "nprobe 2, 256": {"n_ivf_probe": 2, "n_full_scores": 256},
            "nprobe 1, 128": {"n_ivf_probe": 1, "n_full_scores": 128},
        },
        environment="fast-plaid",
        base=TORCH,
        assembled=True,
    ),
    "xtr-warp-rs": System(
        module="xtr_warp",
        settings={
            "default": {},
            "default, k 10": {"k": 10},
            "nprobe 32": {"nprobe": 32, "t_prime": 100_000},
            "nprobe 64, no threshold": {"nprobe": 64, "centroid_score_threshold": 0.0},
            "nprobe 128, no threshold": {"nprobe": 128, "centroid_score_threshold": 0.0},
        },
        environment="xtr-warp-rs",
        base=TORCH,
        assembled=True,
    ),
    "PyLate PLAID": System(
        module="pylate_plaid",
        settings={"default": {}, "nprobe 4, 1024": {"n_ivf_probe": 4, "n_full_scores": 1024}},
        environment="pylate",
        base=TORCH,
    ),
    "PyLate rerank": System(
        module="pylate_rerank",
        settings={"every document": {"chunk": 512}},
        environment="pylate",
        base=TORCH,
    ),
    "FAISS flat": System(
        module="faiss_flat",
        settings={"100 tokens": {"tokens": 100}, "20 tokens": {"tokens": 20}, "500 tokens": {"tokens": 500}},
        environment="faiss",
    ),
    "sentence-transformers": System(
        module="sentence_transformers",
        settings={"float32": {"dtype": "float32"}, "bfloat16": {"dtype": "bfloat16"}},
    ),
    "LateWeave": System(module="lateweave", settings={"every document": {}}, environment="lateweave", base=THIS),
    "TACHIOM": System(
        module="tachiom",
        index={"pq_sample_size": 100_000},
        settings={
            "default": {},
            "default, k 10": {"k": 10},
            "40 centroids, 1000": {"k_centroids": 40, "k_docs_to_score": 1000},
            "80 centroids, 2000": {"k_centroids": 80, "k_docs_to_score": 2000},
        },
        environment="tachiom",
        base=THIS,
    ),
    "colsearch": System(module="colsearch", settings={"default": {}}, environment="colsearch", base=THIS),
    "colsearch, float16": System(
        module="colsearch",
        settings={"default": {"compression": "fp16"}},
        index={"compression": "fp16"},
        environment="colsearch",
        base=THIS,
    ),
    "Qdrant Edge": System(module="qdrant_edge", settings={"every document": {}}, environment="qdrant-edge", base=THIS),
    "Qdrant Edge, HNSW": System(
        module="qdrant_edge", settings={"default": {}}, index={"graph": True}, environment="qdrant-edge", base=THIS
    ),
    "LanceDB": System(module="lancedb", settings={"every document": {}}, environment="lancedb", base=THIS),
    "LanceDB, IVF_PQ": System(
        module="lancedb",
        settings={"default": {}, "refine_factor 10": {"refine_factor": 10}},
        index={"index_type": "IVF_PQ"},
        environment="lancedb",
        base=THIS,
    ),
    "Milvus Lite": System(module="milvus_lite", settings={"default": {}}, environment="milvus-lite", base=THIS),
}


def slug(name: str) -> str:
    """Return a name as a file name."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", name)
