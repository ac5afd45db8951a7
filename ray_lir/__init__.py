"""Late-interaction (ColBERT-family) retrieval: encode, index, search and train; on one machine, or on a Ray cluster.

The names below are imported when they are first used, so that `import ray_lir` costs nothing and the index half of the
library (build_index, Searcher) never imports torch or Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ray_lir import moved

if TYPE_CHECKING:
    from ray_lir.api.client import AsyncClient, Client
    from ray_lir.base.config import EncoderConfig, IndexConfig
    from ray_lir.base.errors import ConfigError, Conflict, FormatError, IncompatibleError, RayLirError
    from ray_lir.building.build import build_index
    from ray_lir.building.compact import compact_index
    from ray_lir.building.update import update_index
    from ray_lir.embeddings.folder import save_embeddings
    from ray_lir.embeddings.token_embeddings import TokenEmbeddings
    from ray_lir.encoder.corpus_encoder import encode_corpus
    from ray_lir.encoder.encoder import Encoder
    from ray_lir.index.filters import Filters
    from ray_lir.search.explain import explain
    from ray_lir.search.searcher import Searcher
    from ray_lir.text_index import Hit, Hits, Index

__version__ = "0.2.0"
__all__ = [
    "AsyncClient",
    "Client",
    "ConfigError",
    "Conflict",
    "Encoder",
    "EncoderConfig",
    "Filters",
    "FormatError",
    "Hit",
    "Hits",
    "IncompatibleError",
    "Index",
    "IndexConfig",
    "RayLirError",
    "Searcher",
    "TokenEmbeddings",
    "build_index",
    "compact_index",
    "encode_corpus",
    "explain",
    "save_embeddings",
    "update_index",
]

_HOMES = {
    "Client": "ray_lir.api.client",
    "AsyncClient": "ray_lir.api.client",
    "ConfigError": "ray_lir.base.errors",
    "Conflict": "ray_lir.base.errors",
    "Encoder": "ray_lir.encoder.encoder",
    "EncoderConfig": "ray_lir.base.config",
    "Filters": "ray_lir.index.filters",
    "FormatError": "ray_lir.base.errors",
    "Hit": "ray_lir.text_index",
    "Hits": "ray_lir.text_index",
    "IncompatibleError": "ray_lir.base.errors",
    "Index": "ray_lir.text_index",
    "IndexConfig": "ray_lir.base.config",
    "RayLirError": "ray_lir.base.errors",
    "Searcher": "ray_lir.search.searcher",
    "TokenEmbeddings": "ray_lir.embeddings.token_embeddings",
    "build_index": "ray_lir.building.build",
    "compact_index": "ray_lir.building.compact",
    "encode_corpus": "ray_lir.encoder.corpus_encoder",
    "explain": "ray_lir.search.explain",
    "save_embeddings": "ray_lir.embeddings.folder",
    "update_index": "ray_lir.building.update",
}
moved.install()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ray_lir' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
