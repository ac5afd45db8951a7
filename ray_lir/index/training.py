"""Training the codec of an index: a sample of token vectors, k-means over it, buckets for what k-means leaves over."""

from functools import partial
from typing import Any

import numpy as np

from ray_lir.formats.parquet import read_blocks
from ray_lir.index import clustering
from ray_lir.index.codec import ResidualCodec, fit_buckets, random_rotation
from ray_lir.index.work import Build
from ray_lir.kernels import select
from ray_lir.kernels.reference import normalize
from ray_lir.logs import stage
from ray_lir.parallel import Map, watched

HELD_OUT_SHARE = 0.05
HELD_OUT_VECTORS = 50_000
"""Vectors that buckets are fitted to and k-means does not see, at most (ALGORITHMS 2.2)."""


def train_codec(build: Build, map: Map, records: list[dict[str, Any]]) -> tuple[ResidualCodec, clustering.Assigner]:
    """The codec of the whole index, and what finds a vector's centroid in it, the same for every step and process of the build.

    They depend on the embeddings and the configuration, not on the shards.
    """
    config = build.config
    rotation = random_rotation(build.dim, config.clustering.seed) if config.codec.rotation else None
    parts = range(len(build.parts))
    with stage("sample", records) as record:
        counts = np.array(list(watched(map, "sample")(partial(_sample_part, build, rotation), parts)))
        num_train, num_held_out = counts.sum(axis=0).tolist()
        record.update(vectors=num_train, held_out=num_held_out)
    centroids = normalize(_k_means(build, counts[:, 0], map, records)).astype(np.float16)
    with stage("buckets", records) as record:
        assigner = clustering.Assigner.over(centroids.astype(np.float32), config.clustering.assign_nprobe, config.clustering.seed)
        residuals = _residuals(build, assigner, "held-out" if num_held_out else "train")
        cutoffs, weights = fit_buckets(residuals, config.codec)
        record.update(values=residuals.size, nbits=config.codec.nbits)
    return ResidualCodec(centroids, cutoffs, weights, rotation, config.codec.token_scale), assigner


def _name(kind: str, part: int) -> str:
    return f"sample/{kind}-{part:05d}.npy"


def _sample_part(build: Build, rotation: np.ndarray | None, number: int) -> tuple[int, int]:
    """Saves a uniform sample of one part's token vectors, shuffled: most for k-means, some held out. Returns their numbers."""
    done = f"sample/counts-{number:05d}.json"
    if not build.work.has(done):
        part, config = build.parts[number], build.config.clustering
        rng = np.random.default_rng([config.seed, number])
        num_docs = min(part.num_docs, -(-clustering.sample_size(build.num_docs) * part.num_docs // build.num_docs))
        chosen = np.sort(rng.choice(part.num_docs, num_docs, replace=False))
        sample = rng.permutation(_vectors_of(build, number, chosen))
        if rotation is not None:
            sample = select().rotate(sample, rotation).astype(np.float16)
        share = part.num_tokens / build.num_tokens
        num_held_out = int(min(HELD_OUT_SHARE * len(sample), HELD_OUT_VECTORS * share))
        num_train = min(len(sample) - num_held_out, int(np.ceil(config.points_per_centroid * build.num_centroids * share)))
        build.work.save(_name("held-out", number), sample[:num_held_out])
        build.work.save(_name("train", number), sample[num_held_out : num_held_out + num_train])
        build.work.save_record(done, (num_train, num_held_out))
    return tuple(build.work.load_record(done))


def _vectors_of(build: Build, number: int, chosen: np.ndarray) -> np.ndarray:
    """[T, D] float16: the token vectors of some documents of a part."""
    vectors, first = [], 0
    for block in read_blocks(build.part_url(number)):
        mine = chosen[(chosen >= first) & (chosen < first + len(block.embeddings))] - first
        vectors += [block.embeddings[i] for i in mine]
        first += len(block.embeddings)
    return np.concatenate(vectors)


def _k_means(build: Build, num_train: np.ndarray, map: Map, records: list[dict[str, Any]]) -> np.ndarray:
    """[C, D] float32, after the last iteration; each is kept in the work folder."""
    centroids = _first_centroids(build, num_train)
    groups = _groups(num_train, len(centroids))
    config = build.config.clustering
    for iteration in range(1, config.num_iterations + 1):
        name = f"centroids-{iteration}.npy"
        if not build.work.has(name):
            with stage("k-means", records) as record:
                spread = watched(map, f"k-means {iteration}/{config.num_iterations}")
                build.work.save(name, clustering.step(centroids, groups, config, build.work.load, spread))
                record.update(iteration=iteration, centroids=len(centroids))
        centroids = build.work.load(name)
    return centroids


def _first_centroids(build: Build, num_train: np.ndarray) -> np.ndarray:
    """[C, D] float32: the first vectors of every piece, in proportion to its size. C is at most the size of the sample."""
    num_centroids = min(build.num_centroids, int(num_train.sum()))
    ends = np.cumsum(num_train) * num_centroids // num_train.sum()
    shares = np.diff(ends, prepend=0)
    rows = [build.work.load(_name("train", part))[:count] for part, count in enumerate(shares) if count]
    return np.concatenate(rows).astype(np.float32)


def _groups(num_train: np.ndarray, num_centroids: int) -> list[list[str]]:
    """Pieces that are summed in one call: at least one vector a centroid, so that sums never outweigh what they sum."""
    begins = np.concatenate([[0], np.cumsum(num_train)[:-1]]) // num_centroids
    groups: dict[int, list[str]] = {}
    for part, group in enumerate(begins.tolist()):
        groups.setdefault(group, []).append(_name("train", part))
    return list(groups.values())


def _residuals(build: Build, assigner: clustering.Assigner, kind: str) -> np.ndarray:
    """[T, D] float32: what the centroids leave over of the held-out (or, in a tiny corpus, the training) vectors."""
    pieces = [build.work.load(_name(kind, part)) for part in range(len(build.parts))]
    vectors = np.concatenate([piece for piece in pieces if len(piece)]).astype(np.float32)
    return vectors - assigner.centroids_of(assigner(vectors))
