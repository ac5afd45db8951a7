"""Late-interaction (ColBERT-family) retrieval: encode, index, search and train; on one machine, or on a Ray cluster.

The names below are imported when they are first used, so that `import ray_lir` costs nothing and the index half of the
library (build_index, Searcher) never imports torch or Ray.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ray_lir import moved

if TYPE_CHECKING:
    from ray_lir.base.config import EncoderConfig, IndexConfig
    from ray_lir.building.build import build_index
    from ray_lir.embeddings.token_embeddings import TokenEmbeddings
    from ray_lir.encoder.encoder import Encoder
    from ray_lir.search.searcher import Searcher

__version__ = "0.2.0"
__all__ = ["Encoder", "EncoderConfig", "IndexConfig", "Searcher", "TokenEmbeddings", "build_index"]

_HOMES = {
    "Encoder": "ray_lir.encoder.encoder",
    "EncoderConfig": "ray_lir.base.config",
    "IndexConfig": "ray_lir.base.config",
    "Searcher": "ray_lir.search.searcher",
    "TokenEmbeddings": "ray_lir.embeddings.token_embeddings",
    "build_index": "ray_lir.building.build",
}

moved.install()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'ray_lir' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
