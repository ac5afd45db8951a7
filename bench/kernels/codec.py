"""Codecs: recall of exhaustive search from compressed tokens, against bytes a token, and time; JSON and a table.

    python -m bench.kernels.codec [WORK ...] [--dataset FOLDER] [--num-queries 100] [--only REGEX] [--times]
        [--output bench/results/codec.json]

WORK is a work folder of bench.compare, one for each collection (default: runs/bench); --dataset makes its collection on first use. Recall
is that of the exact answers (MaxSim in float32). All codecs of a collection have the same centroids, so only residuals and scales differ.
Times are CPU time on one thread: `compress` a token, and `search` a token and query. Rows that the output has already from the same
machine are kept. --times measures no recall: it times the rows in interleaved rounds over the first documents of the first collection.
"""

import argparse
import json
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench.comparison.collection import Collection, open_collection
from bench.comparison.report import quality
from bench.machine import machine
from bench.peers import inputs
from bench.peers.inputs import Texts
from ray_lir.base.config import CodecConfig, IndexConfig
from ray_lir.base.parallel import one_blas_thread
from ray_lir.building import clustering
from ray_lir.building.clustering import Assigner
from ray_lir.building.codec_training import fit_codec
from ray_lir.embeddings.pooling import pool_tokens
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.index.codec import TRELLIS_MEMORY, ResidualCodec, fit_trellis, random_rotation
from ray_lir.index.residuals import normalize, residual_values
from ray_lir.index.shard import IndexShard
from ray_lir.kernels import Kernels, select

SAMPLE = 50_000
"""Token vectors that buckets are fitted to."""
BLOCK = 20_000
DEPTH = 100
TIMED_TOKENS, TIMED_QUERIES, ROUNDS = 60_000, 6, 5
Rescale = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""Returns scales [T, 2] for vectors, centroids and decoded residuals [T, D]."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.kernels.codec", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("works", nargs="*", type=Path, default=[Path("runs/bench")])
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--num-queries", type=int, default=100)
    parser.add_argument("--only", default="", help="measure the rows whose name matches this regular expression")
    parser.add_argument("--times", action="store_true", help="time rows that the output has already, in interleaved rounds")
    parser.add_argument("--output", type=Path, default=Path("bench/results/codec.json"))
    options = parser.parse_args()
    report: dict[str, Any] = {"machine": machine(), "queries": options.num_queries, "rows": []}
    if options.output.exists():
        before = json.loads(options.output.read_text())
        if all(before.get(name) == report[name] for name in ("machine", "queries")):
            report = before
    if options.times:
        _add_times(open_collection(options.dataset, "small", options.works[0]), report, options.only)
        options.output.write_text(json.dumps(report, indent=1) + "\n")
    for work in [] if options.times else options.works:
        done = {(row["bits"], row["codec"]) for row in report["rows"] if row["collection"] == work.name}
        for row in _measure(open_collection(options.dataset, "small", work), options.num_queries, done, options.only):
            print(row, flush=True)
            report["rows"].append({"collection": work.name, **row})
            options.output.write_text(json.dumps(report, indent=1) + "\n")
            options.output.with_suffix(".md").write_text(markdown(report["rows"]))
    options.output.with_suffix(".md").write_text(markdown(report["rows"]))
    print(markdown(report["rows"]))


@one_blas_thread()
def _add_times(collection: Collection, report: dict[str, Any], only: str) -> None:
    """Replace the times of the collection's rows by medians of interleaved rounds over its first `TIMED_TOKENS` tokens."""
    documents, queries = (inputs.load(collection.folder, name) for name in ("documents", "queries"))
    offsets = documents.offsets[: np.searchsorted(documents.offsets, TIMED_TOKENS)]
    first = Texts(np.asarray(documents.values[: offsets[-1]]), offsets)
    run = Run(collection, first, [queries[number].astype(np.float32) for number in range(TIMED_QUERIES)])
    rows = {(row["bits"], row["codec"]): row for row in report["rows"] if row["collection"] == collection.folder.parent.name}
    timed, compress_s, search_s = [], [], []
    for bits, name, of, settings in _rows(lambda: run):
        if (bits, name) in rows and of() is run and "rescale" not in settings and re.search(only, name):
            timed.append((rows[bits, name], run.codec(settings["config"], settings.get("memory", TRELLIS_MEMORY))))
    for _ in range(ROUNDS):
        for _, codec in timed:
            began = time.thread_time()
            packed, scales = run.compress(codec, None)
            compress_s.append(time.thread_time() - began)
            search_s.append(run.search(run.shard(codec, packed, scales), codec)[1])
    for (row, _), compress, search in zip(timed, _medians(compress_s), _medians(search_s), strict=True):
        row["compress_us"] = round(1e6 * compress / first.num_tokens, 2)
        row["search_ns"] = round(1e9 * search / first.num_tokens / TIMED_QUERIES, 1)


def _medians(seconds: list[float]) -> list[float]:
    """Return the medians over rounds."""
    return np.median(np.reshape(seconds, (ROUNDS, -1)), axis=0).tolist()


@one_blas_thread()
def _measure(collection: Collection, num_queries: int, done: set[tuple[float, str]], only: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of a collection that are not done, if their name matches `only`."""
    documents, queries = (inputs.load(collection.folder, name) for name in ("documents", "queries"))
    whole = lazy(lambda: Run(collection, documents, [queries[number].astype(np.float32) for number in range(num_queries)]))
    for nbits, name, run, settings in _rows(whole):
        if (nbits, name) not in done and re.search(only, name):
            yield run().row(name, **settings)


def lazy(make: Callable[[], "Run"]) -> Callable[[], "Run"]:
    """Return a function that makes a run at its first call, because clustering takes a while."""
    made: list[Run] = []

    def get() -> Run:
        if not made:
            made.append(make())
        return made[0]

    return get


def _rows(whole: Callable[[], "Run"]) -> Iterator[tuple[float, str, Callable[[], "Run"], dict[str, Any]]]:
    """Yield bits and name of every row, its run and the arguments of `Run.row`."""
    for nbits in (1, 2):
        default, trellis = CodecConfig(nbits=nbits), CodecConfig(nbits=nbits, buckets="trellis")
        yield nbits, "quantile buckets (the papers')", whole, {"config": CodecConfig(nbits=nbits, buckets="quantile")}
        yield nbits, "Lloyd-Max buckets", whole, {"config": CodecConfig(nbits=nbits, rotation=False, token_scale=False)}
        for name, rescale in RESCALES.items():
            yield nbits, f"rotation, scale a token: {name}", whole, {"config": default, "rescale": rescale}
        yield nbits, "rotation, scale a token: length of the residual (default)", whole, {"config": default}
        yield nbits, "trellis of 1 state (product codebook)", whole, {"config": trellis, "memory": 0}
        yield nbits, "trellis of 8 states", whole, {"config": trellis}
    yield 4, "rotation, scale a token: length of the residual (default)", whole, {"config": CodecConfig(nbits=4)}
    for residual_bytes in (16, 17, 19, 35, 37):
        config = CodecConfig(buckets="trellis", residual_bytes=residual_bytes)
        yield config_bits(residual_bytes), f"trellis, residual_bytes {residual_bytes}", whole, {"config": config}
    for dim, nbits in ((96, 2), (96, 4), (64, 2), (64, 4)):
        nested = lazy(lambda dim=dim: whole().nested(dim))  # type: ignore[misc]
        yield nbits, f"the first {dim} dimensions, of PCA", nested, {"config": CodecConfig(nbits=nbits)}
    for fraction in (0.9, 0.75, 0.5):
        pruned = lazy(lambda fraction=fraction: whole().kept(similar_pruned(whole().documents, fraction)))  # type: ignore[misc]
        yield (
            2,
            f"{fraction:.0%} of the tokens: without the most similar to another of their document",
            pruned,
            {"config": CodecConfig(nbits=2)},
        )
    for fraction in (0.9, 0.75, 0.5):
        pruned = lazy(lambda fraction=fraction: whole().kept(frequent_pruned(whole(), fraction)))  # type: ignore[misc]
        yield 2, f"{fraction:.0%} of the tokens: without those in the most documents", pruned, {"config": CodecConfig(nbits=2)}
    pooled = lazy(lambda: whole().pooled(2))
    yield 2, "50% of the tokens: pooled by factor 2", pooled, {"config": CodecConfig(nbits=2)}
    for residual_bytes in (37, 40):
        config = CodecConfig(buckets="trellis", residual_bytes=residual_bytes)
        yield (
            config_bits(residual_bytes),
            f"50% of the tokens: pooled by factor 2; trellis, residual_bytes {residual_bytes}",
            pooled,
            {"config": config},
        )


def config_bits(residual_bytes: int) -> float:
    """Return the bits a dimension of a residual of 128 dimensions."""
    return round(8 * residual_bytes / 128, 2)


def similar_pruned(documents: Texts, fraction: float) -> np.ndarray:
    """Return the tokens to keep, [T] bool: without the tokens most similar to another token of their document."""
    kept = np.ones(documents.num_tokens, bool)
    for number in range(len(documents)):
        vectors = documents[number].astype(np.float32)
        similarities = vectors @ vectors.T
        np.fill_diagonal(similarities, -1)
        for _ in range(int((1 - fraction) * len(vectors))):
            token = int(similarities.max(axis=1).argmax())
            similarities[token], similarities[:, token] = -2, -2
            kept[documents.offsets[number] + token] = False
    return kept


def frequent_pruned(run: "Run", fraction: float) -> np.ndarray:
    """Return the tokens to keep, [T] bool: without those of a document with a vocabulary id that is in the most documents (stop words and
    punctuation first)."""
    documents, token_ids = run.documents, np.load(run.collection.folder / inputs.TOKEN_IDS)
    kept, counts = np.ones(documents.num_tokens, bool), np.zeros(token_ids.max() + 1, np.int64)
    parts = [slice(*documents.offsets[number : number + 2]) for number in range(len(documents))]
    for part in parts:
        counts[np.unique(token_ids[part])] += 1
    for part in parts:
        order = np.argsort(-counts[token_ids[part]], kind="stable")
        kept[part.start + order[: int((1 - fraction) * len(order))]] = False
    return kept


class Run:
    """One collection with centroids, for many codecs.

    Args:
        collection: The collection, for the exact answers.
        documents: Token embeddings of its documents.
        queries: Token embeddings of the queries to search for, [n, D] float32 each.
        num_tokens: Tokens to divide bytes by; None: those of the documents.
        centroids: Centroids [C, D] float16 of another run; None: found by k-means.
    """

    def __init__(
        self,
        collection: Collection,
        documents: Texts,
        queries: list[np.ndarray],
        num_tokens: int | None = None,
        centroids: np.ndarray | None = None,
    ) -> None:
        self.collection, self.documents, self.queries = collection, documents, queries
        self.num_tokens = num_tokens or documents.num_tokens
        self.kernels: Kernels = select("native", 1)
        rng = np.random.default_rng(0)
        config = IndexConfig().clustering
        if centroids is None:
            num_centroids = int(8 * np.sqrt(documents.num_tokens)) // 16 * 16
            size = min(documents.num_tokens, config.points_per_centroid * num_centroids)
            sample = documents.values[np.sort(rng.choice(documents.num_tokens, size, replace=False))].astype(np.float32)
            sample = sample[rng.permutation(len(sample))]
            means = sample[:num_centroids]
            for _ in range(config.num_iterations):
                assigner = Assigner.over(means, config.assign_nprobe, config.seed)
                means = clustering.step(means, assigner, [["all"]], lambda _: (sample, None), lambda call, items: map(call, items))
            centroids = normalize(means).astype(np.float16)
        self.centroids = centroids
        assigner = Assigner.over(self.centroids.astype(np.float32), config.assign_nprobe, config.seed)
        self.codes = np.concatenate([assigner(documents.values[start : start + BLOCK]) for start in range(0, documents.num_tokens, BLOCK)])
        self.sample = rng.choice(documents.num_tokens, min(SAMPLE, documents.num_tokens), replace=False)

    def row(self, name: str, config: CodecConfig, rescale: Rescale | None = None, memory: int = TRELLIS_MEMORY) -> dict[str, Any]:
        """Return recall, bytes and times of one codec.

        Args:
            name: Name of the codec.
            config: Settings of the codec.
            rescale: Computes the scales of tokens; None: those of the codec.
            memory: Bits that a trellis remembers.
        """
        codec = self.codec(config, memory)
        began = time.process_time()
        packed, scales = self.compress(codec, rescale)
        compress_s = time.process_time() - began
        best, search_s = self.search(self.shard(codec, packed, scales), codec)
        bytes_a_token = codec.code_dtype.itemsize + packed.shape[1] + scales.nbytes / len(scales)
        return {
            "bits": config_bits(config.residual_bytes) if config.residual_bytes else config.nbits,
            "codec": name,
            **quality(best, self.collection),
            "bytes_per_token": round(bytes_a_token * self.documents.num_tokens / self.num_tokens, 2),
            "compress_us": None if rescale else round(1e6 * compress_s / self.documents.num_tokens, 2),
            "search_ns": round(1e9 * search_s / self.documents.num_tokens / len(self.queries), 1),
        }

    def shard(self, codec: ResidualCodec, packed_TP: np.ndarray, stored_scales: np.ndarray) -> IndexShard:
        """Return the shard of compressed documents.

        Args:
            codec: The codec of the documents.
            packed_TP: [T, P] uint8, packed residuals.
            stored_scales: [T, 2] float16, or [T] uint8, the numbers of pairs.
        """
        codes = self.codes.astype(codec.code_dtype)
        return IndexShard(0, self.documents.offsets, codes, packed_TP, stored_scales, pa.table({}), codec.num_centroids)

    def search(self, shard: IndexShard, codec: ResidualCodec) -> tuple[np.ndarray, float]:
        """Return the best documents of every query [Q, DEPTH or all], and the CPU seconds."""
        best, began = [], time.process_time()
        for query in self.queries:
            rotated = codec.rotate(query, self.kernels)
            table = self.kernels.centroid_scores(rotated, codec)
            scores = self.kernels.residual_maxsim([rotated], [np.ones(len(query), np.float32)], [table], shard, codec)[0]
            best.append(self.kernels.top_k(scores, np.arange(len(scores)), DEPTH)[1])
        return np.stack(best), time.process_time() - began

    def codec(self, config: CodecConfig, memory: int) -> ResidualCodec:
        """Return the codec of a configuration over the centroids of this collection."""
        rotation = random_rotation(self.documents.dim, 0) if config.rotation else None
        centroids = self.centroids
        if rotation is not None:
            centroids = normalize(self.kernels.rotate(centroids.astype(np.float32), rotation)).astype(np.float16)
        vectors, codes = np.ascontiguousarray(self.documents.values[self.sample]), self.codes[self.sample]
        vectors = vectors if rotation is None else self.kernels.rotate(vectors, rotation)
        if memory == TRELLIS_MEMORY:
            return fit_codec(vectors, codes, centroids, rotation, None, config, self.kernels)
        codec = ResidualCodec(centroids, np.zeros(1, np.float32), np.zeros(2, np.float32), rotation, bool(config.token_scale))
        residuals = vectors - codec.centroids_f32[codes]
        return replace(codec, cutoffs=np.zeros(0, np.float32), weights=fit_trellis(residuals, config.nbits, self.kernels, memory))

    def compress(self, codec: ResidualCodec, rescale: Rescale | None) -> tuple[np.ndarray, np.ndarray]:
        """Return packed residuals [T, P] and stored scales of all tokens."""
        packed, scales = [], []
        for start in range(0, self.documents.num_tokens, BLOCK):
            vectors = codec.rotate(self.documents.values[start : start + BLOCK], self.kernels)
            codes = self.codes[start : start + BLOCK]
            bytes_TP, scales_T2, _ = self.kernels.compress(vectors, codes, codec)
            if rescale is not None:
                scales_T2 = rescale(vectors, codec.centroids_f32[codes], residual_values(bytes_TP, codec.weights))
            packed.append(bytes_TP)
            scales.append(codec.stored_scales(scales_T2))
        return np.concatenate(packed), np.concatenate(scales)

    def nested(self, dim: int) -> "Run":
        """Return the run over the first dimensions of documents and queries, which are in the order of PCA."""
        values = normalize(self.documents.values[:, :dim].astype(np.float32)).astype(np.float16)
        queries = [normalize(query[:, :dim]) for query in self.queries]
        return Run(self.collection, Texts(values, self.documents.offsets), queries)

    def kept(self, kept_T: np.ndarray) -> "Run":
        """Return the run with the same centroids over some of the tokens, [T] bool."""
        offsets = np.concatenate([[0], np.cumsum(kept_T)])[self.documents.offsets]
        return self._same_centroids(Texts(self.documents.values[kept_T], offsets))

    def pooled(self, factor: int) -> "Run":
        """Return the run with the same centroids over the pooled tokens."""
        names = [str(number) for number in range(len(self.documents))]
        pooled = pool_tokens(TokenEmbeddings(np.asarray(self.documents.values), self.documents.offsets, names), factor)
        return self._same_centroids(Texts(pooled.values, pooled.offsets))

    def _same_centroids(self, documents: Texts) -> "Run":
        return Run(self.collection, documents, self.queries, self.documents.num_tokens, self.centroids)


def _dot(first_TD: np.ndarray, second_TD: np.ndarray) -> np.ndarray:
    return np.einsum("td,td->t", first_TD, second_TD)


def _scales(factors_T: np.ndarray, centroids_TD: np.ndarray, decoded_TD: np.ndarray, unit: bool = True) -> np.ndarray:
    """Return scales [T, 2] that multiply decoded residuals by a factor, and normalise the token unless `unit` is False."""
    vectors_TD = centroids_TD + factors_T[:, None] * decoded_TD
    inverse_T = 1 / np.sqrt(_dot(vectors_TD, vectors_TD)) if unit else np.ones(len(factors_T))
    return np.stack([inverse_T, inverse_T * factors_T], axis=1)


def _least_squares(vectors_TD: np.ndarray, centroids_TD: np.ndarray, decoded_TD: np.ndarray) -> np.ndarray:
    return _dot(vectors_TD - centroids_TD, decoded_TD) / np.maximum(_dot(decoded_TD, decoded_TD), 1e-12)


def _unbiased(vectors_TD: np.ndarray, centroids_TD: np.ndarray, decoded_TD: np.ndarray) -> np.ndarray:
    residuals_TD = vectors_TD - centroids_TD
    return _dot(residuals_TD, residuals_TD) / np.maximum(_dot(residuals_TD, decoded_TD), 1e-12)


def _as_long(vectors_TD: np.ndarray, centroids_TD: np.ndarray, decoded_TD: np.ndarray) -> np.ndarray:
    residuals_TD = vectors_TD - centroids_TD
    return np.sqrt(_dot(residuals_TD, residuals_TD) / np.maximum(_dot(decoded_TD, decoded_TD), 1e-12))


RESCALES: dict[str, Rescale] = {
    "least squares, then length one (0.2)": lambda v, c, d: _scales(_least_squares(v, c, d), c, d),
    "unbiased (RaBitQ), then length one": lambda v, c, d: _scales(_unbiased(v, c, d), c, d),
    "length of the residual, not normalised": lambda v, c, d: _scales(_as_long(v, c, d), c, d, unit=False),
}


def _recall_text(row: dict[str, Any] | None, k: int) -> str:
    return "" if row is None else f"{row[f'recall@{k}']:.3f}" + (" *" if row.get("earlier") else "")


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the report as Markdown. Figures of an earlier run have a star."""
    collections = list(dict.fromkeys(row["collection"] for row in rows))
    columns = ["bits", "codec", "bytes a token", *(f"{name} R@{k}" for name in collections for k in (10, 100)), "compress us", "search ns"]
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    for bits, codec in dict.fromkeys((row["bits"], row["codec"]) for row in rows):
        same = {row["collection"]: row for row in rows if (row["bits"], row["codec"]) == (bits, codec)}
        first = next(iter(same.values()))
        recalls = [_recall_text(same.get(name), k) for name in collections for k in (10, 100)]
        cells = [bits, codec, first["bytes_per_token"], *recalls, first["compress_us"] or "", first["search_ns"] or ""]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
