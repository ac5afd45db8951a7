"""Training the codec of an index: a sample of token vectors, k-means over it, buckets for what k-means leaves over."""

from functools import partial
from typing import Any

import numpy as np

from ray_lir.base.config import ClusteringConfig
from ray_lir.base.errors import ConfigError
from ray_lir.base.logs import phase
from ray_lir.base.parallel import Map, one_blas_thread, watched
from ray_lir.building import clustering, token_clustering
from ray_lir.building.clustering import Assigner, Piece
from ray_lir.building.token_clustering import TokenAssigner
from ray_lir.building.workspace import Build, Work
from ray_lir.embeddings.parquet import read_blocks
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.index.codec import ResidualCodec, fit_buckets, random_rotation
from ray_lir.index.norms import directions, kept_norms, without_zero_rows
from ray_lir.index.residuals import normalize
from ray_lir.kernels import select

HELD_OUT_SHARE = 0.05
HELD_OUT_VECTORS = 50_000
"""Vectors that buckets are fitted to and k-means does not see, at most (docs/algorithms.md#22-residual-codec)."""


def train_codec(build: Build, map: Map, records: list[dict[str, Any]]) -> tuple[ResidualCodec, Assigner | TokenAssigner]:
    """The codec of the whole index, and what finds a vector's centroid in it, the same for every step and process of the build.

    They depend on the embeddings and the configuration, not on the shards.
    """
    config = build.config
    rotation = random_rotation(build.dim, config.clustering.seed) if config.codec.rotation else None
    parts = range(len(build.parts))
    with phase("sample", records) as record:
        counts = np.array(list(watched(map, "sample")(partial(_sample_part, build, rotation), parts)))
        num_train, num_held_out = counts.sum(axis=0).tolist()
        record.update(vectors=num_train, held_out=num_held_out)
    if not num_train:
        raise ConfigError(f"{build.embeddings} holds nothing but rows of zeros, so there is nothing to index")
    token_offsets = _token_offsets(build) if config.clustering.method == "token_aware" else None
    centroids = normalize(_k_means(build, counts[:, 0], token_offsets, map, records)).astype(np.float16)
    with phase("buckets", records) as record:
        assigner = assigner_over(centroids.astype(np.float32), token_offsets, config.clustering)
        residuals = _residuals(build, assigner, "held-out" if num_held_out else "train")
        cutoffs, weights = fit_buckets(residuals, config.codec)
        record.update(values=residuals.size, nbits=config.codec.nbits)
    return ResidualCodec(centroids, cutoffs, weights, rotation, config.codec.token_scale, token_offsets), assigner


def assigner_over(
    centroids: np.ndarray, token_offsets: np.ndarray | None, config: ClusteringConfig, training: bool = False
) -> Assigner | TokenAssigner:
    """What finds a vector's centroid among those of a codec: the same whenever and wherever it is made.

    While training every token's vocabulary id is in the sample, so that no token-aware assignment asks for others.
    """
    if token_offsets is None:
        return Assigner.over(centroids, config.assign_nprobe, config.seed)
    others = None if training else Assigner.over(centroids, config.assign_nprobe, config.seed)
    return TokenAssigner(centroids, token_offsets, others)


def _name(kind: str, part: int) -> str:
    return f"sample/{kind}-{part:05d}"


def _load(work: Work, name: str) -> Piece:
    """A piece of the sample."""
    return work.load(f"{name}.npy"), work.load(f"{name}-ids.npy") if work.has(f"{name}-ids.npy") else None


@one_blas_thread()
def _sample_part(build: Build, rotation: np.ndarray | None, number: int) -> tuple[int, int]:
    """Saves a uniform sample of one part's token vectors, shuffled: most for k-means, some held out. Returns their numbers."""
    done = f"sample/counts-{number:05d}.json"
    if not build.work.has(done):
        part, config = build.parts[number], build.config.clustering
        rng = np.random.default_rng([config.seed, number])
        num_docs = min(part.num_docs, -(-clustering.sample_size(build.num_docs) * part.num_docs // build.num_docs))
        vectors, token_ids = _tokens_of(build, number, np.sort(rng.choice(part.num_docs, num_docs, replace=False)))
        order = rng.permutation(len(vectors))
        vectors = vectors[order]
        vectors = directions(vectors, kept_norms(vectors))
        vectors = (vectors if rotation is None else select().rotate(vectors, rotation)).astype(np.float16, copy=False)
        share = part.num_tokens / build.num_tokens
        num_held_out = int(min(HELD_OUT_SHARE * len(vectors), HELD_OUT_VECTORS * share))
        num_train = min(len(vectors) - num_held_out, int(np.ceil(config.points_per_centroid * build.num_centroids * share)))
        for kind, rows in (("held-out", slice(num_held_out)), ("train", slice(num_held_out, num_held_out + num_train))):
            build.work.save(f"{_name(kind, number)}.npy", vectors[rows])
            if config.method == "token_aware":
                build.work.save(f"{_name(kind, number)}-ids.npy", token_ids[order[rows]])
        build.work.save_record(done, (num_train, num_held_out))
    return tuple(build.work.load_record(done))


def _tokens_of(build: Build, number: int, chosen: np.ndarray) -> Piece:
    """The token vectors of some documents of a part, and their vocabulary ids if the clustering needs them."""
    vectors, token_ids, first = [], [], 0
    for block in read_blocks(build.part_url(number)):
        embeddings = without_zero_rows(block.embeddings)
        mine = chosen[(chosen >= first) & (chosen < first + len(embeddings))] - first
        vectors += [embeddings[i] for i in mine]
        if build.config.clustering.method == "token_aware":
            ids, offsets = token_ids_of(build, embeddings), embeddings.offsets
            token_ids += [ids[offsets[i] : offsets[i + 1]] for i in mine]
        first += len(embeddings)
    return np.concatenate(vectors), np.concatenate(token_ids) if token_ids else None


def token_ids_of(build: Build, embeddings: TokenEmbeddings) -> np.ndarray | None:
    """[T]: the tokens' vocabulary ids, or None if the clustering does not look at them.

    Raises:
        ConfigError: if it does, and the embeddings have none.
    """
    if build.config.clustering.method == "k_means":
        return None
    if embeddings.token_ids is None:
        raise ConfigError(
            f"{build.embeddings} holds no token ids (pooled vectors have none); encode with jobs.encode, or use --clustering.method k_means"
        )
    return embeddings.token_ids


def _token_offsets(build: Build) -> np.ndarray:
    """[V + 1] int64: where the centroids of every vocabulary id will begin, from the sample."""
    counts_V = np.zeros(0, np.int64)
    for part in range(len(build.parts)):
        counts = np.bincount(_load(build.work, _name("train", part))[1])
        width = max(len(counts), len(counts_V))
        counts_V = np.pad(counts_V, (0, width - len(counts_V))) + np.pad(counts, (0, width - len(counts)))
    return np.concatenate([[0], np.cumsum(token_clustering.budgets(counts_V, build.num_centroids))])


def _k_means(build: Build, num_train: np.ndarray, token_offsets: np.ndarray | None, map: Map, records: list[dict[str, Any]]) -> np.ndarray:
    """[C, D] float32, after the last iteration; each is kept in the work folder."""
    read = partial(_load, build.work)
    if token_offsets is None:
        centroids = _first_centroids(build, num_train)
    else:
        pieces = (read(_name("train", part)) for part in range(len(num_train)))
        centroids = token_clustering.first_centroids(pieces, np.diff(token_offsets))
    groups = _groups(num_train, len(centroids))
    config = build.config.clustering
    for iteration in range(1, config.num_iterations + 1):
        name = f"centroids-{iteration}.npy"
        if not build.work.has(name):
            with phase("k-means", records) as record:
                spread = watched(map, f"k-means {iteration}/{config.num_iterations}")
                assigner = assigner_over(centroids, token_offsets, config, training=True)
                build.work.save(name, clustering.step(centroids, assigner, groups, read, spread))
                record.update(iteration=iteration, centroids=len(centroids))
        centroids = build.work.load(name)
    return centroids


def _first_centroids(build: Build, num_train: np.ndarray) -> np.ndarray:
    """[C, D] float32: the first vectors of every piece, in proportion to its size. C is at most the size of the sample."""
    num_centroids = min(build.num_centroids, int(num_train.sum()))
    ends = np.cumsum(num_train) * num_centroids // num_train.sum()
    shares = np.diff(ends, prepend=0)
    rows = [_load(build.work, _name("train", part))[0][:count] for part, count in enumerate(shares) if count]
    return np.concatenate(rows).astype(np.float32)


def _groups(num_train: np.ndarray, num_centroids: int) -> list[list[str]]:
    """Pieces that are summed in one call: at least one vector a centroid, so that sums never outweigh what they sum."""
    begins = np.concatenate([[0], np.cumsum(num_train)[:-1]]) // num_centroids
    groups: dict[int, list[str]] = {}
    for part, group in enumerate(begins.tolist()):
        groups.setdefault(group, []).append(_name("train", part))
    return list(groups.values())


@one_blas_thread()
def _residuals(build: Build, assigner: Assigner | TokenAssigner, kind: str) -> np.ndarray:
    """[T, D] float32: what the centroids leave over of the held-out (or, in a tiny corpus, the training) vectors."""
    residuals = []
    for part in range(len(build.parts)):
        vectors, token_ids = _load(build.work, _name(kind, part))
        residuals.append(vectors.astype(np.float32) - assigner.centroids_of(assigner(vectors, token_ids)))
    return np.concatenate(residuals)
