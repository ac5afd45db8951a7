"""This project: every engine, through build_index and Searcher."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers.harness import Search, main
from ray_lir.base.config import IndexConfig
from ray_lir.building.build import build_index
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.engines import ENGINES
from ray_lir.search.searcher import Searcher


def _build(input: Path, index: Path, threads: int, **options: Any) -> Callable[[], object]:
    config = IndexConfig.model_validate(options)
    return lambda: build_index(str(input / "embeddings"), str(index), config)


def _open_index(input: Path, index: Path, threads: int, engine: str = "auto", kernels: str = "auto", **options: Any) -> Search:
    searcher = Searcher.open(str(index), kernels=kernels)
    params = ENGINES[engine].params(**options) if options else engine

    def search(queries: Sequence[np.ndarray], k: int) -> list[np.ndarray]:
        return [top.documents for top in searcher.search(TokenEmbeddings.of(queries), k, params)]

    return search


if __name__ == "__main__":
    main(_build, _open_index)
