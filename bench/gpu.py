"""Everything that needs a GPU, checked and timed by one command, in under 8 minutes and with no network.

    python -m bench.gpu [--num-tokens 10000000] [--small] [--interpret] [--output bench/results/gpu.json]

--small runs everything at small sizes. --interpret runs only the checks, on a CPU, under Triton's interpreter, and
writes nothing; with --pipelines also xtr, a service, a training step of each scorer and MaxSim of other packages
(bench/gpu_pipelines.py). Times on the device are medians between CUDA events, reported beside two floors: the bytes
over the card's copy bandwidth, and the products over its float16 matrix rate, both measured first. The report is written
after every part. If a part fails, the report has the reason and the exit code is 1.
"""

import argparse
import importlib
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench import gpu_pipelines
from bench.kernels.made_up import DIM, QUERY_TOKENS, documents_near_topics, made_up, made_up_queries
from bench.machine import machine
from ray_lir.base.errors import KernelUnavailable
from ray_lir.index.codec import ResidualCodec
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import VARIABLE, Kernels, select
from ray_lir.kernels.reference import REFERENCE

NBITS = 4
K = 10
PEERS = {"fast-plaid": "fast_plaid.search", "xtr-warp-rs": "xtr_warp.search"}
WORDS = "the index of every token keeps residual vectors near their centroids so that a query finds documents by late interaction".split()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-tokens", type=int, default=10_000_000, help="of the shard that is searched")
    parser.add_argument("--small", action="store_true", help="little of everything")
    parser.add_argument("--interpret", action="store_true", help="the checks alone, on a CPU")
    parser.add_argument("--pipelines", action="store_true", help="with --interpret: the pipelines too, on tiny sizes")
    parser.add_argument("--output", type=Path, default=Path("bench/results/gpu.json"))
    options = parser.parse_args()
    if options.interpret:
        os.environ |= {"TRITON_INTERPRET": "1", "RAY_LIR_LOGICAL_GPUS": "1"}
    try:
        kernels = select("cuda")
    except KernelUnavailable as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.interpret:
        print(json.dumps(check(kernels, num_docs=4)))
        return run_parts(tiny_pipelines(), {}, None) if options.pipelines else 0
    import torch

    share = 0.02 if options.small else 1
    report: dict[str, Any] = {"machine": machine() | {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}}
    limits: dict[str, float] = {}
    parts: dict[str, Callable[[], Any]] = {
        "check": partial(check, kernels, num_docs=2000),
        "limits": lambda: limits.update(card_limits()) or limits,
        "search": lambda: _search(kernels, int(options.num_tokens * share), limits),
        "build": lambda: build(int(2_000_000 * share)),
        "encode": lambda: encode(int(4000 * share)),
        "xtr": lambda: gpu_pipelines.xtr(int(1_000_000 * share)),
        "peers": lambda: peers(int(1_000_000 * share)),
        "other maxsim": lambda: gpu_pipelines.other_maxsim(int(20_000 * share), "cuda"),
        "training": lambda: gpu_pipelines.training(32, 5, ("float16", "bfloat16"), "cuda"),
        "service": lambda: gpu_pipelines.service(int(20_000 * share), 500),
    }
    return run_parts(parts, report, options.output)


def tiny_pipelines() -> dict[str, Callable[[], Any]]:
    """Return the pipelines, small enough for a CPU and Triton's interpreter."""
    return {
        "xtr": lambda: gpu_pipelines.xtr(10_000, 1),
        "other maxsim": lambda: gpu_pipelines.other_maxsim(8, "cpu"),
        "training": lambda: gpu_pipelines.training(4, 2, ("bfloat16",), "cpu"),
        "service": lambda: gpu_pipelines.service(20, 8),
    }


def run_parts(parts: dict[str, Callable[[], Any]], report: dict[str, Any], output: Path | None) -> int:
    """Run all parts, and print the report.

    Args:
        parts: Function of each part, by name.
        report: Facts known before; results are added.
        output: File for the report, written after each part. None: no file.

    Returns:
        Exit code: 1 if a part failed.
    """
    for name, part in parts.items():
        started = time.perf_counter()
        try:
            report[name] = part()
        except Exception as error:  # the other parts run although one fails
            report[name] = {"failed": f"{type(error).__name__}: {error}"[:500]}
        print(f"{name}: {time.perf_counter() - started:.0f} s {json.dumps(report[name])}", file=sys.stderr, flush=True)
        if output:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    return int(any(isinstance(found, dict) and "failed" in found for found in report.values()))


def check(kernels: Kernels, num_docs: int) -> dict[str, float]:
    """The largest difference from the reference's scores, divided by the query tokens of a score."""
    worst = {}
    for nbits in (1, 2, 4, 8):
        shard, codec = made_up(num_docs, 40, 300, nbits)
        for number in (1, 9):
            queries, weights = made_up_queries(number)
            expected = REFERENCE.residual_maxsim(queries, weights, [], shard, codec)
            worst[f"{nbits} bits, {number} queries"] = _difference(kernels.residual_maxsim(queries, weights, [], shard, codec), expected)
    table = kernels.centroid_scores(queries[0], codec)
    worst["centroids"] = _difference(
        kernels.scan_codes(kernels.scan_table(table), weights[0], shard), REFERENCE.scan_codes(table, weights[0], shard)
    )
    wrong = {name: value for name, value in worst.items() if not value < 1e-3}
    if wrong:
        raise ValueError(f"scores differ from the reference's by more than .001 a token: {wrong}")
    return worst


def _difference(scores: np.ndarray, expected: np.ndarray) -> float:
    np.testing.assert_array_equal(np.isneginf(scores), np.isneginf(expected))
    there = np.isfinite(expected)
    return float(np.abs(scores[there] - expected[there]).max() / QUERY_TOKENS)


def device_ms(call: Callable[[], Any], runs: int = 20) -> float:
    """Return the median milliseconds between events before and after a call, after three warm-up calls."""
    import torch

    for _ in range(3):
        call()
    times = []
    for _ in range(runs):
        before, after = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        before.record()
        call()
        after.record()
        after.synchronize()
        times.append(before.elapsed_time(after))
    return statistics.median(times)


def wall_ms(call: Callable[[], Any], runs: int = 10) -> float:
    """Return the median milliseconds of a call until its result is in host memory, after two warm-up calls."""
    times = []
    for _ in range(runs + 2):
        started = time.perf_counter()
        call()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times[2:])


def card_limits() -> dict[str, float]:
    """Return the card's copy bandwidth (bytes read and written) and float16 matrix rate (float32 sums), on random numbers."""
    import torch

    source = torch.randint(0, 255, (1 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    a, b = (torch.randn(8192, 8192, dtype=torch.float16, device="cuda") for _ in range(2))
    return {
        "copy_gb_per_s": 2 * len(source) / device_ms(lambda: target.copy_(source)) / 1e6,
        "matrix_tflop_per_s": 2 * 8192**3 / device_ms(lambda: a @ b) / 1e9,
    }


def _search(kernels: Kernels, num_tokens: int, limits: dict[str, float]) -> dict[str, Any]:
    """Measure exhaustive exact search and the scan of centroid scores, over one resident shard."""
    from ray_lir.kernels.cuda import memory, scoring, tiles

    shard, codec = made_up(num_tokens // 120, 120, 32768)
    num_tokens = len(shard.codes)
    token_bytes = shard.codes.itemsize + shard.residuals.shape[1] + 2 * shard.scales.itemsize
    placed, codec_on_device = memory.shard_memory(shard), memory.codec_memory(codec)
    rows: list[dict[str, Any]] = []
    for batch in (1, 8, 64):
        queries, weights = made_up_queries(batch)
        ms = device_ms(partial(scoring.device_maxsim, queries, weights, shard, codec))
        floors = {
            "bytes_ms": num_tokens * token_bytes / limits["copy_gb_per_s"] / 1e6,
            "products_ms": 2 * num_tokens * batch * QUERY_TOKENS * DIM / limits["matrix_tflop_per_s"] / 1e9,
        }
        rows.append({"batch": batch, "ms": ms, "queries_per_s": 1000 * batch / ms, **floors, "times_floor": ms / max(floors.values())})
        rows[-1]["with_top_k_ms"] = wall_ms(partial(_answer, kernels, queries, weights, shard, codec))
        rows[-1]["scan_ms"] = wall_ms(partial(_scan, kernels, queries, weights, shard, codec))
        blocks = scoring.QueryBlocks.of(queries, weights, DIM)
        for size in (16, 32, 64):
            cut = tiles.split_into_tiles(placed.doc_offsets[:-1], placed.doc_offsets[1:], size)
            for warps in (4, 8):
                program = partial(scoring.run_residual_programs, blocks, codec_on_device, shard, cut, warps)
                rows[-1][f"tile {size}, {warps} warps, ms"] = device_ms(program, 5)
    some = np.arange(0, shard.num_docs, max(1, shard.num_docs // 200))
    expected = REFERENCE.residual_maxsim(queries, weights, [], shard, codec, some)
    worst = _difference(kernels.residual_maxsim(queries, weights, [], shard, codec)[:, some], expected)
    table = kernels.centroid_scores(queries[0], codec)
    scan_ms = wall_ms(partial(kernels.scan_codes, kernels.scan_table(table), weights[0], shard))
    return {
        "documents": shard.num_docs,
        "tokens": num_tokens,
        "bytes_a_token": token_bytes,
        "exact": rows,
        "worst": worst,
        "scan_ms": scan_ms,
    }


def _answer(
    kernels: Kernels, queries: list[np.ndarray], weights: list[np.ndarray], shard: IndexShard, codec: ResidualCodec
) -> list[np.ndarray]:
    """Return the best K documents of every query, on the host."""
    numbers = np.arange(shard.num_docs)
    return [kernels.top_k(row, numbers, K)[1] for row in kernels.residual_maxsim(queries, weights, [], shard, codec)]


def _scan(
    kernels: Kernels, queries: list[np.ndarray], weights: list[np.ndarray], shard: IndexShard, codec: ResidualCodec
) -> list[np.ndarray]:
    """Return the centroid scores of all documents for every query, tables included."""
    tables = (kernels.scan_table(kernels.centroid_scores(query, codec)) for query in queries)
    return [kernels.scan_codes(table, each, shard) for table, each in zip(tables, weights, strict=True)]


def build(num_tokens: int) -> dict[str, float]:
    """Measure tokens a second of the kernels that build an index, and of a whole build with k-means over every centroid."""
    from ray_lir.base.config import ClusteringConfig, IndexConfig
    from ray_lir.building.build import build_index
    from ray_lir.building.clustering import default_num_centroids
    from ray_lir.embeddings.token_embeddings import TokenEmbeddings

    kernels = select("cuda")
    documents, _ = documents_near_topics(num_tokens)
    vectors = np.concatenate(documents)
    centroids = vectors[: default_num_centroids(len(vectors))].astype(np.float32)
    weights = np.linspace(-2.7, 2.7, 2**NBITS).astype(np.float32)
    codec = ResidualCodec(centroids.astype(np.float16), (weights[1:] + weights[:-1]) / 2, weights, token_scale=True)
    codes, _ = kernels.assign(vectors, centroids)
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, DIM)))[0].astype(np.float32)
    steps: dict[str, Callable[[], Any]] = {
        "assign": partial(kernels.assign, vectors, centroids),
        "rotate": partial(kernels.rotate, vectors, rotation),
        "compress": partial(kernels.compress, vectors, codes, codec),
    }
    speeds = {f"{name}_tokens_per_s": 1000 * len(vectors) / wall_ms(step, 3) for name, step in steps.items()}
    os.environ[VARIABLE] = "cuda"
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        config = IndexConfig(clustering=ClusteringConfig(assign_nprobe=0))
        build_index(TokenEmbeddings.of(documents, [str(i) for i in range(len(documents))]), f"{folder}/index", config)
        seconds = time.perf_counter() - started
    return {"tokens": len(vectors), "centroids": len(centroids), **speeds, "build_s": seconds, "build_tokens_per_s": len(vectors) / seconds}


def encode(num_docs: int) -> dict[str, Any]:
    """Measure tokens a second of the default encoder in float16, with tokenising and the copy to the host."""
    from ray_lir.base.config import EncoderConfig
    from ray_lir.encoder.encoder import Encoder

    encoder = Encoder.load(EncoderConfig(device="cuda", precision="float16"))
    rng = np.random.default_rng(3)
    texts = [" ".join(rng.choice(WORDS, rng.integers(20, 220))) for _ in range(num_docs)]
    num_tokens = encoder.encode_documents(texts).num_tokens
    return {
        "documents": num_docs,
        "tokens": num_tokens,
        "tokens_per_s": 1000 * num_tokens / wall_ms(lambda: encoder.encode_documents(texts), 3),
    }


def peers(num_tokens: int) -> dict[str, Any]:
    """Measure queries a second and recall of exact search and of installed peers."""
    from ray_lir.building.build import build_index
    from ray_lir.embeddings.token_embeddings import TokenEmbeddings
    from ray_lir.search.searcher import Searcher

    documents, queries = documents_near_topics(num_tokens)
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        embeddings = TokenEmbeddings.of(documents, [str(i) for i in range(len(documents))])
        build_index(embeddings, f"{folder}/ray_lir")
        weights = [np.ones(len(query), np.float32) for query in queries]
        scores = select("cuda").maxsim(queries, weights, embeddings.values, embeddings.offsets)
        exact = [set(np.argsort(-row, kind="stable")[:K].tolist()) for row in scores]

        def measured(search: Callable[[], list[list[int]]]) -> dict[str, float]:
            recall = np.mean([len(best & set(answer)) / K for best, answer in zip(exact, search(), strict=True)])
            return {"recall@10": float(recall), "queries_per_s": 1000 * len(queries) / wall_ms(search, 3)}

        searcher, embedded = Searcher.open(f"{folder}/ray_lir", kernels="cuda"), TokenEmbeddings.of(queries)
        found["ray_lir exact"] = measured(lambda: [top.documents.tolist() for top in searcher.search(embedded, K, "exact")])
        for name, module in PEERS.items():
            try:
                library = importlib.import_module(module)
            except ImportError as error:
                found[name] = f"not installed: {error}"
                continue
            found[name] = measured(_peer_search(name, library, f"{folder}/{name}", documents, queries))
    return found


def _peer_search(
    name: str, library: Any, index: str, documents: list[np.ndarray], queries: list[np.ndarray]
) -> Callable[[], list[list[int]]]:
    """A peer's index on the card, at its default settings."""
    import torch

    tensors, embedded = [torch.from_numpy(rows) for rows in documents], [torch.from_numpy(rows) for rows in queries]
    if name == "fast-plaid":
        opened = library.FastPlaid(index, device="cuda")
        opened.create(tensors)
    else:
        library.XTRWarp(index).create(tensors, device="cuda", show_progress=False)
        opened = library.XTRWarp(index).load(device="cuda")
    return lambda: [[number for number, _ in answer] for answer in opened.search(embedded, top_k=K, show_progress=False)]


if __name__ == "__main__":
    sys.exit(main())
