"""Late-interaction (ColBERT-family) retrieval: encode, index, search and train, on one machine or on a Ray cluster.

Every name is imported when it is first used. `import ray_lir` therefore loads neither NumPy nor torch, the client needs only pydantic and
httpx, and the index layer (build_index, Searcher) needs neither torch nor Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ray_lir import moved

if TYPE_CHECKING:
    from ray_lir.api.client import AsyncClient, Client
    from ray_lir.api.search import Highlight, Snippet
    from ray_lir.api.writes import WriteResponse
    from ray_lir.base.config import ClusteringConfig, CodecConfig, EncoderConfig, IndexConfig
    from ray_lir.base.errors import (
        ConfigError,
        Conflict,
        Forbidden,
        FormatError,
        IncompatibleError,
        InvalidDocument,
        KernelUnavailable,
        NotFound,
        Overloaded,
        RayLirError,
        ServiceUnavailable,
        ShardUnavailable,
        Unauthenticated,
        UnsupportedVersion,
        WritesUnavailable,
    )
    from ray_lir.building.build import build_index
    from ray_lir.building.compact import Compaction, compact_index
    from ray_lir.building.update import Update, update_index
    from ray_lir.embeddings.folder import save_embeddings
    from ray_lir.embeddings.token_embeddings import TokenEmbeddings
    from ray_lir.encoder.corpus_encoder import EncodeResult, encode_corpus
    from ray_lir.encoder.encoder import Encoder
    from ray_lir.engines.bm25 import Bm25Params
    from ray_lir.engines.exact import ExactParams
    from ray_lir.engines.hybrid import HybridParams
    from ray_lir.engines.plaid import PlaidParams
    from ray_lir.engines.plan import TopK
    from ray_lir.engines.scan import ScanParams
    from ray_lir.engines.warp import WarpParams
    from ray_lir.engines.xtr import XtrParams
    from ray_lir.index.filters import Filters
    from ray_lir.search.explain import StageTrace, TokenMatches, Trace, explain
    from ray_lir.search.searcher import Searcher
    from ray_lir.text_index import Hit, Hits, Index, Match

__version__ = "0.2.0"
__all__ = [
    "AsyncClient",
    "Bm25Params",
    "Client",
    "ClusteringConfig",
    "CodecConfig",
    "Compaction",
    "ConfigError",
    "Conflict",
    "EncodeResult",
    "Encoder",
    "EncoderConfig",
    "ExactParams",
    "Filters",
    "Forbidden",
    "FormatError",
    "Highlight",
    "Hit",
    "Hits",
    "HybridParams",
    "IncompatibleError",
    "Index",
    "IndexConfig",
    "InvalidDocument",
    "KernelUnavailable",
    "Match",
    "NotFound",
    "Overloaded",
    "PlaidParams",
    "RayLirError",
    "ScanParams",
    "Searcher",
    "ServiceUnavailable",
    "ShardUnavailable",
    "Snippet",
    "StageTrace",
    "TokenEmbeddings",
    "TokenMatches",
    "TopK",
    "Trace",
    "Unauthenticated",
    "UnsupportedVersion",
    "Update",
    "WarpParams",
    "WriteResponse",
    "WritesUnavailable",
    "XtrParams",
    "build_index",
    "compact_index",
    "encode_corpus",
    "explain",
    "save_embeddings",
    "update_index",
]

_HOMES = {
    "ray_lir.api.client": ["AsyncClient", "Client"],
    "ray_lir.api.search": ["Highlight", "Snippet"],
    "ray_lir.base.config": ["ClusteringConfig", "CodecConfig", "EncoderConfig", "IndexConfig"],
    "ray_lir.engines.bm25": ["Bm25Params"],
    "ray_lir.engines.exact": ["ExactParams"],
    "ray_lir.engines.hybrid": ["HybridParams"],
    "ray_lir.engines.plaid": ["PlaidParams"],
    "ray_lir.engines.scan": ["ScanParams"],
    "ray_lir.engines.warp": ["WarpParams"],
    "ray_lir.engines.xtr": ["XtrParams"],
    "ray_lir.base.errors": [
        "ConfigError",
        "Conflict",
        "Forbidden",
        "FormatError",
        "IncompatibleError",
        "InvalidDocument",
        "KernelUnavailable",
        "NotFound",
        "Overloaded",
        "RayLirError",
        "ServiceUnavailable",
        "ShardUnavailable",
        "Unauthenticated",
        "UnsupportedVersion",
        "WritesUnavailable",
    ],
    "ray_lir.api.writes": ["WriteResponse"],
    "ray_lir.building.build": ["build_index"],
    "ray_lir.building.compact": ["Compaction", "compact_index"],
    "ray_lir.building.update": ["Update", "update_index"],
    "ray_lir.embeddings.folder": ["save_embeddings"],
    "ray_lir.embeddings.token_embeddings": ["TokenEmbeddings"],
    "ray_lir.encoder.corpus_encoder": ["EncodeResult", "encode_corpus"],
    "ray_lir.encoder.encoder": ["Encoder"],
    "ray_lir.engines.plan": ["TopK"],
    "ray_lir.index.filters": ["Filters"],
    "ray_lir.search.explain": ["StageTrace", "TokenMatches", "Trace", "explain"],
    "ray_lir.search.searcher": ["Searcher"],
    "ray_lir.text_index": ["Hit", "Hits", "Index", "Match"],
}
"""Modules, and the public names that each defines."""
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
moved.install()


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'ray_lir' has no attribute {name!r}")
    found = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = found  # so that the next use finds it directly
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
