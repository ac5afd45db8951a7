"""Time the kernels of a query, for every kernel set that runs on this machine: the constants of ray_lir/engines/cost.py.

    python -m bench.kernels.cost [--output bench/results/cost.json]

The figure is processor time of one thread on random codes and residuals, the minimum of several runs. A second figure compares
exact scoring from 4 bits with a bare loop of 8-bit products over as many tokens: the floor of exact search without a matrix unit.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench.machine import machine
from ray_lir.engines.cost import DIM, QUERY_TOKENS
from ray_lir.engines.warp import NPROBE
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.residuals import normalize
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels, native, select

NUM_CENTROIDS = 8192
TOKENS_PER_DOCUMENT = 240


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.kernels.cost", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--num-tokens", type=int, default=960_000)
    parser.add_argument("--output", type=Path, default=Path("bench/results/cost.json"))
    options = parser.parse_args()
    shard, codec, query = made_up(options.num_tokens)
    small, _, _ = made_up(24_000)
    rows = {}
    for name in ("reference", *(f"native:{each}" for each in native.instruction_sets())):
        slow = name in ("reference", "native:portable")
        rows[name] = _measure(select(name), small if slow else shard, codec, query, runs=2 if slow else 7)
        print(name, rows[name], flush=True)
    options.output.write_text(json.dumps({"machine": machine(), "query_tokens": QUERY_TOKENS, "dim": DIM, "ns": rows}, indent=1) + "\n")


def made_up(num_tokens: int) -> tuple[IndexShard, ResidualCodec, np.ndarray]:
    """Return codes as skewed as those of text, random residuals, and a query of unit vectors."""
    rng = np.random.default_rng(0)
    offsets = np.arange(0, num_tokens + 1, TOKENS_PER_DOCUMENT)
    centroids = normalize(rng.normal(size=(NUM_CENTROIDS, DIM)).astype(np.float32))
    weights = np.linspace(-2.7, 2.7, 16).astype(np.float32)
    codec = ResidualCodec(centroids.astype(np.float16), (weights[1:] + weights[:-1]) / 2, weights, token_scale=True)
    shares = rng.permutation((1 + np.arange(NUM_CENTROIDS)) ** -0.5)
    codes = rng.choice(NUM_CENTROIDS, num_tokens, p=shares / shares.sum()).astype(np.uint16)
    residuals = rng.integers(0, 256, (num_tokens, DIM // 2)).astype(np.uint8)
    scales = np.full((num_tokens, 2), [0.9, 0.04], np.float16)
    shard = IndexShard(0, offsets, codes, residuals, scales, pa.table({}), NUM_CENTROIDS)
    return shard, codec, normalize(rng.normal(size=(QUERY_TOKENS, DIM)).astype(np.float32))


def _measure(kernels: Kernels, shard: IndexShard, codec: ResidualCodec, query: np.ndarray, runs: int) -> dict[str, Any]:
    ones = np.ones(len(query), np.float32)
    table = kernels.centroid_scores(query, codec)
    scan_table = kernels.scan_table(table)
    sizes = np.diff(shard.posting_offsets)
    cells, scores, imputed = kernels.probe(table, len(query), sizes, NPROBE, 8 * NPROBE, 1)
    pairs = int(sizes[cells].sum())
    documents = np.arange(shard.num_docs)
    seconds = {
        "token": least(lambda: kernels.residual_maxsim([query], [ones], [table], shard, codec), runs) / len(shard.codes),
        "centroid": least(lambda: kernels.centroid_scores(query, codec), runs) / NUM_CENTROIDS,
        "probe": least(lambda: kernels.probe(table, len(query), sizes, NPROBE, 8 * NPROBE, 1), runs) / NUM_CENTROIDS,
        "byte_table": least(lambda: kernels.scan_table(table), runs) / NUM_CENTROIDS,
        "code": least(lambda: kernels.scan_codes(scan_table, ones, shard), runs) / len(shard.codes),
        "nearest": least(lambda: kernels.nearest_maxsim(query, ones, scan_table, shard, codec, documents), runs) / len(shard.codes),
        "posting": least(lambda: kernels.posting_scores(query, ones, cells, scores, imputed, False, shard, codec), runs) / pairs,
    }
    row: dict[str, Any] = {name: round(1e9 * value, 2) for name, value in seconds.items()}
    if kernels.name.startswith("native:"):
        rows = np.random.default_rng(0).integers(0, 128, (len(shard.codes) // 32 * 32, DIM)).astype(np.uint8)
        bare = least(lambda: native.module().row_maxima(kernels.name.partition(":")[2], query, rows, 1), runs) / len(rows)
        row |= {"bare 8-bit product": round(1e9 * bare, 2), "exact over bare": round(seconds["token"] / bare, 3)}
    return row


def least(function: Callable[[], Any], runs: int) -> float:
    """Return the processor seconds of the fastest of several runs."""
    best = np.inf
    for _ in range(runs):
        start = time.process_time()
        function()
        best = min(best, time.process_time() - start)
    return best


if __name__ == "__main__":
    main()
