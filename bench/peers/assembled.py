"""Build indexes of xtr-warp-rs and fast-plaid with this project's k-means and assignment of tokens to centroids.

    python -m bench.peers.assembled xtr_warp|fast_plaid INPUT INDEX RESULT.json [--threads N]

The peers' builds compare every token with every centroid, which takes hours for ten million tokens. Here the centroids and the code of
each token come from INPUT/clustered: an index of this project with the peers' number of centroids, built on first use. Everything else
follows the peer's rules and file formats. With a peer's own centroids, codes and sample, the bytes equal those of its own build
(bench/README.md, "Peers side by side").

T tokens, N documents, C centroids, D dimensions.
"""

import argparse
import json
import math
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bench.peers import harness, inputs
from bench.peers.inputs import Texts
from ray_lir.base.config import ClusteringConfig, IndexConfig
from ray_lir.building.build import build_index
from ray_lir.building.clustering import sample_size
from ray_lir.index.codec import load_codec
from ray_lir.index.versions import latest_version, read_version

BY = "k-means and assignment by ray_lir"
NBITS = 4
"""Bits a dimension, the default of both peers; two dimensions fill a byte."""
BLOCK_TOKENS = 65536
HELD_OUT_SHARE, HELD_OUT_TOKENS = 0.05, 50_000
XTR_SAMPLE_TOKENS, XTR_CHUNK_DOCS, XTR_BATCH_TOKENS = 1_000_000, 256, 32_768
FAST_PLAID_CHUNK_DOCS = 25_000
TENSOR_HEADER, MERGED_HEADER = 16, 192
"""The lengths of .npy headers are multiples of this, in files of the peers' Rust code and in fast-plaid's merged files."""


@dataclass(frozen=True)
class Clustered:
    """Documents with a centroid number for each token: centroids [C, D] float16, codes [T] int64."""

    documents: Texts
    centroids: np.ndarray
    codes: np.ndarray

    def residuals(self, rows: slice | np.ndarray) -> np.ndarray:
        """Return residuals, [rows, D] float16, rounded like the peers'."""
        return self.documents.values[rows] - self.centroids[self.codes[rows]]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Return the tokens of each document, [N]."""
        return np.diff(self.documents.offsets)

    @cached_property
    def document_of(self) -> np.ndarray:
        """Return the document of each token, [T]."""
        return np.repeat(np.arange(len(self.documents)), self.lengths)

    @cached_property
    def mean_length(self) -> float:
        return self.documents.num_tokens / len(self.documents)

    def chunks(self, size: int) -> list[tuple[int, int]]:
        """Yield first document and end of every `size` documents."""
        return [(first, min(first + size, len(self.documents))) for first in range(0, len(self.documents), size)]


@dataclass(frozen=True)
class Buckets:
    """The meaning of a residual's bits, fitted to held-out residuals.

    Attributes:
        cutoffs: [2^NBITS - 1] float32; value v is in bucket b if cutoffs[b-1] < v <= cutoffs[b].
        weights: [2^NBITS] float32.
        mean: [D] float32, means of absolute values.
        norms: [held out] float32, norms of the residuals.
    """

    cutoffs: np.ndarray
    weights: np.ndarray
    mean: np.ndarray
    norms: np.ndarray

    @classmethod
    def fit(cls, residuals: np.ndarray) -> "Buckets":
        """Return buckets of equal counts, each with its median."""
        values, count = residuals.astype(np.float32), 2**NBITS
        levels = np.arange(1, 2 * count) / (2 * count)
        quantiles = np.quantile(values, levels).astype(np.float32)
        mean = np.abs(values).mean(axis=0, dtype=np.float64).astype(np.float32)
        return cls(quantiles[1::2], quantiles[::2], mean, np.linalg.norm(values, axis=1))


def clustered_index(input: Path, num_tokens: int) -> Path:
    """Return an index with the peers' number of centroids, 2^floor(log2(16 sqrt(T)))."""
    config = ClusteringConfig(num_centroids=2 ** math.floor(math.log2(16 * math.sqrt(num_tokens))))
    build_index(str(input / "embeddings"), str(input / "clustered"), IndexConfig(clustering=config))
    return input / "clustered"


def read_clustered(index: Path, documents: Texts) -> Clustered:
    """Return centroids and codes of this project's index for its documents; centroids are rotated back."""
    manifest = read_version(str(index), latest_version(str(index)))
    codec = load_codec(str(index / manifest.codec.name))
    centroids = codec.centroids_f32 if codec.rotation is None else codec.centroids_f32 @ codec.rotation.T
    centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    codes = [np.load(index / shard.name / "codes.npy") for shard in manifest.shards]
    return Clustered(documents, centroids.astype(np.float16), np.concatenate(codes).astype(np.int64))


def held_out(documents: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Return the rows of the tokens for fitting buckets: the last sampled documents, in the order of the sample."""
    rows = np.concatenate([np.arange(offsets[number], offsets[number + 1]) for number in documents])
    return rows[-max(1, min(round(HELD_OUT_SHARE * len(rows)), HELD_OUT_TOKENS)) :]


def pack(clustered: Clustered, cutoffs: np.ndarray) -> np.ndarray:
    """Return the bucket of every residual, [T, D / 2] uint8, lowest bit first, the first of two dimensions in the upper half."""
    bits_of_half = reversed_bits(np.searchsorted(cutoffs, np.arange(1 << 16, dtype=np.uint16).view(np.float16).astype(np.float32)))
    packed = np.empty((len(clustered.codes), clustered.centroids.shape[1] // 2), np.uint8)
    for first in range(0, len(packed), BLOCK_TOKENS):
        rows = slice(first, first + BLOCK_TOKENS)
        bits = bits_of_half[clustered.residuals(rows).view(np.uint16)]
        packed[rows] = bits[:, 0::2] << NBITS | bits[:, 1::2]
    return packed


def reversed_bits(buckets: np.ndarray) -> np.ndarray:
    """Return uint8 numbers with their NBITS bits reversed."""
    return np.array([int(f"{bucket:0{NBITS}b}"[::-1], 2) for bucket in range(2**NBITS)], np.uint8)[buckets]


def write_xtr_warp(clustered: Clustered, index: Path, sample: np.ndarray) -> None:
    """Write an index of xtr-warp-rs: files for every 256 documents, and all tokens in the order of centroids for search.

    Args:
        clustered: Documents and their centroids.
        index: Folder of the new index.
        sample: Numbers of the documents that buckets are fitted to.
    """
    offsets, codes, num_docs = clustered.documents.offsets, clustered.codes, len(clustered.documents)
    buckets = Buckets.fit(clustered.residuals(held_out(sample, offsets)))
    packed = pack(clustered, buckets.cutoffs)
    _write_codec(clustered, buckets, index, np.quantile(buckets.norms, 0.75, method="higher"))
    save_tensor(index / "pids.npy", sample)

    chunks = clustered.chunks(XTR_CHUNK_DOCS)
    for number, (first, end) in enumerate(chunks):
        rows = slice(offsets[first], offsets[end])
        save_tensor(index / f"{number}.codes.npy", codes[rows])
        save_tensor(index / f"{number}.residuals.npy", packed[rows])
        save_tensor(index / f"{number}.passage_ids.npy", np.arange(first, end))
        save_tensor(index / f"doclens.{number}.npy", clustered.lengths[first:end])
        part = {"embedding_offset": int(rows.start), "num_embeddings": int(rows.stop - rows.start)}
        part |= {"num_passages": end - first, "passage_offset": first}
        (index / f"{number}.metadata.json").write_text(json.dumps(part, separators=(",", ":")))

    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes, minlength=len(clustered.centroids))
    np.save(index / "codes.compacted.npy", clustered.document_of[order])
    np.save(index / "residuals.compacted.npy", packed[order])
    save_tensor(index / "sizes.compacted.npy", sizes)
    save_tensor(index / "offsets.compacted.npy", np.concatenate([[0], np.cumsum(sizes)]))

    num_centroids, dim = clustered.centroids.shape
    plan = {"avg_doc_len": clustered.mean_length, "codec_sample_max_tokens": XTR_SAMPLE_TOKENS}
    plan |= {"compression_batch_size": XTR_BATCH_TOKENS, "embedding_dim": dim, "est_total_embs": num_centroids}
    plan |= {"indexing_chunk_size": XTR_CHUNK_DOCS, "n_docs": num_docs, "nbits": NBITS, "num_chunks": len(chunks)}
    _write_json(index / "plan.json", plan, end="\n")
    whole = {"num_chunks": len(chunks), "nbits": NBITS, "num_partitions": num_centroids, "num_embeddings": len(codes)}
    whole |= {"avg_doclen": clustered.mean_length, "num_passages": num_docs, "next_passage_id": num_docs}
    _write_json(index / "metadata.json", whole | {"num_centroids": num_centroids, "dim": dim, "created_at": datetime.now(UTC).isoformat()})


def xtr_warp_sample(lengths: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return random documents with at most a million tokens, in ascending order."""
    shuffled = random.permutation(len(lengths))
    return np.sort(shuffled[: np.searchsorted(np.cumsum(lengths[shuffled]), XTR_SAMPLE_TOKENS, side="right")])


def write_fast_plaid(clustered: Clustered, index: Path, sample: np.ndarray) -> None:
    """Write an index of fast-plaid: codes and residuals in document order, and the documents of every centroid.

    Args:
        clustered: Documents and their centroids.
        index: Folder of the new index.
        sample: Numbers of the documents that buckets are fitted to.
    """
    offsets, num_docs, num_centroids = clustered.documents.offsets, len(clustered.documents), len(clustered.centroids)
    buckets = Buckets.fit(clustered.residuals(held_out(sample, offsets)))
    _write_codec(clustered, buckets, index, np.quantile(buckets.norms, [0.75]))
    packed = pack(clustered, buckets.cutoffs)

    chunks = clustered.chunks(FAST_PLAID_CHUNK_DOCS)
    tokens = [int(offsets[end] - offsets[first]) for first, end in chunks]
    for number, (first, end) in enumerate(chunks):
        (index / f"doclens.{number}.json").write_text(json.dumps(clustered.lengths[first:end].tolist(), separators=(",", ":")))
        part = {"embedding_offset": int(offsets[first]), "num_documents": end - first, "num_embeddings": tokens[number]}
        _write_json(index / f"{number}.metadata.json", part)

    padding = int(clustered.lengths.max() - clustered.lengths[-1])  # padding lets the last document be read like the longest
    for name, rows in {"codes": clustered.codes, "residuals": packed}.items():
        _save_merged(index / f"merged_{name}.npy", rows, padding)
        parts = {f"{number}.{name}.npy": {"rows": rows, "merged": True, "mtime": None} for number, rows in enumerate(tokens)}
        (index / f"merged_{name}.manifest.json").write_text(json.dumps(parts))

    centroid_and_document = np.unique(clustered.codes * num_docs + clustered.document_of)
    save_tensor(index / "ivf.npy", centroid_and_document % num_docs)
    lengths = np.bincount(centroid_and_document // num_docs, minlength=num_centroids)
    save_tensor(index / "ivf_lengths.npy", lengths.astype(np.int32))

    _write_json(index / "plan.json", {"nbits": NBITS, "num_chunks": len(chunks)}, end="\n")
    whole = {"avg_doclen": clustered.mean_length, "compress_only": False, "nbits": NBITS, "num_chunks": len(chunks)}
    whole |= {"num_documents": num_docs, "num_embeddings": len(packed), "num_partitions": num_centroids}
    _write_json(index / "metadata.json", whole | {"frozen": True, "mutable": True})


def fast_plaid_sample(lengths: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Return random documents in random order."""
    return random.permutation(len(lengths))[: sample_size(len(lengths))]


def _write_codec(clustered: Clustered, buckets: Buckets, index: Path, threshold: np.ndarray) -> None:
    """Write the files of both peers; updates use the threshold to find tokens far from every centroid."""
    arrays = {"centroids": clustered.centroids, "bucket_cutoffs": buckets.cutoffs, "bucket_weights": buckets.weights}
    arrays |= {"avg_residual": buckets.mean, "cluster_threshold": threshold.astype(np.float32)}
    for name, array in arrays.items():
        save_tensor(index / f"{name}.npy", array)


def save_tensor(path: Path, array: np.ndarray) -> None:
    """Write a .npy file like the peers' Rust code."""
    shape = "".join(f"{size}," for size in array.shape)
    with path.open("wb") as file:
        file.write(_header(f"<{array.dtype.kind}{array.dtype.itemsize}", f"({shape})", TENSOR_HEADER))
        array.tofile(file)


def _save_merged(path: Path, array: np.ndarray, padding: int) -> None:
    """Write a .npy file like fast-plaid's merged files, with rows of zeros at its end."""
    with path.open("wb") as file:
        file.write(_header(array.dtype.str, str((len(array) + padding, *array.shape[1:])), MERGED_HEADER))
        array.tofile(file)
        np.zeros((padding, *array.shape[1:]), array.dtype).tofile(file)


def _header(dtype: str, shape: str, multiple: int) -> bytes:
    """The header of a .npy file, padded with spaces."""
    text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    size = math.ceil((10 + len(text) + 1) / multiple) * multiple
    return b"\x93NUMPY\x01\x00" + (size - 10).to_bytes(2, "little") + text.ljust(size - 11) + b"\n"


def _write_json(path: Path, values: dict[str, Any], end: str = "") -> None:
    path.write_text(json.dumps(values, indent=2) + end)


PEERS = {"xtr_warp": (xtr_warp_sample, write_xtr_warp), "fast_plaid": (fast_plaid_sample, write_fast_plaid)}
"""(Function that samples documents for buckets, function that writes the index), by script of the peer."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("input", type=Path)
    parser.add_argument("index", type=Path)
    parser.add_argument("result", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    harness.pin(options.threads)
    shutil.rmtree(options.index, ignore_errors=True)
    options.index.mkdir(parents=True)
    documents = inputs.load(options.input, "documents")
    clustered = read_clustered(clustered_index(options.input, documents.num_tokens), documents)
    sample, write = PEERS[options.peer]
    write(clustered, options.index, sample(clustered.lengths, np.random.default_rng(0)))
    options.result.write_text(json.dumps({"assembled": BY, "disk_bytes": harness.disk_bytes(options.index)}, indent=1) + "\n")


if __name__ == "__main__":
    main()
