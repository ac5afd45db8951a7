"""Training the codec of an index: sample token vectors, run k-means, fit buckets to the residuals."""

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from ray_lir.base.config import ClusteringConfig, CodecConfig
from ray_lir.base.errors import ConfigError
from ray_lir.base.logs import phase
from ray_lir.base.parallel import Map, one_blas_thread, watched
from ray_lir.building import clustering, token_clustering
from ray_lir.building.clustering import Assigner, SamplePart
from ray_lir.building.token_clustering import TokenAssigner
from ray_lir.building.workspace import Build, Workspace
from ray_lir.embeddings.parquet import read_blocks, read_lengths
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.index.codec import NUM_PAIRS, PAIR_VECTORS, ResidualCodec, fit_buckets, fit_scale_pairs, fit_trellis, random_rotation
from ray_lir.index.norms import directions, kept_norms, without_zero_rows
from ray_lir.index.residuals import normalize
from ray_lir.kernels import Kernels, select

HELD_OUT_FRACTION = 0.05
HELD_OUT_VECTORS = 50_000
"""Largest number of vectors to fit buckets to; k-means does not see them (docs/algorithms.md#22-residual-codec)."""


def train_codec(build: Build, map: Map, records: list[dict[str, Any]]) -> tuple[ResidualCodec, Assigner | TokenAssigner]:
    """Train the codec of an index.

    The result depends on the embeddings and the configuration, not on the number of shards.

    Args:
        build: Inputs and settings of the build.
        map: Where the steps run, one call a part.
        records: Phases of the job; these phases are appended.
    Returns:
        The codec, and the assigner that finds a vector's centroid in it.
    Raises:
        ConfigError: The embeddings hold only rows of zeros.
    """
    config = build.config
    rotation = random_rotation(build.dim, config.clustering.seed) if config.codec.rotation else None
    parts = range(len(build.parts))
    with phase("sample", records) as record:
        counts = np.array(list(watched(map, "sample")(partial(_sample_part, build, rotation), parts)))
        num_train, num_held_out = counts.sum(axis=0).tolist()
        record.update(vectors=num_train, held_out=num_held_out)
    if not num_train:
        raise ConfigError(f"{build.embeddings} holds only rows of zeros, so there is nothing to index")
    token_offsets = _token_offsets(build) if config.clustering.method == "token_aware" else None
    centroids = normalize(_k_means(build, counts[:, 0], token_offsets, map, records)).astype(np.float16)
    with phase("buckets", records) as record:
        assigner = assigner_over(centroids.astype(np.float32), token_offsets, config.clustering)
        vectors, codes = _held_out(build, assigner, "held-out" if num_held_out else "train")
        codec = fit_codec(vectors, codes, centroids, rotation, token_offsets, config.codec, select())
        record.update(values=vectors.size, nbits=codec.nbits)
    return codec, assigner


def fit_codec(
    vectors_TD: np.ndarray,
    codes_T: np.ndarray,
    centroids_CD: np.ndarray,
    rotation_DD: np.ndarray | None,
    token_offsets: np.ndarray | None,
    config: CodecConfig,
    kernels: Kernels,
) -> ResidualCodec:
    """Return the codec of centroids, with buckets or a trellis that are fitted to the residuals of sampled vectors.

    Args:
        vectors_TD: [T, D] float16 or float32, rotated.
        codes_T: [T], the centroid of each vector.
        centroids_CD: [C, D] float16, rotated.
        rotation_DD: [D, D] float32; None without rotation.
        token_offsets: [V + 1] int64, the first centroid of each vocabulary id; None without token-aware clustering.
        config: Settings of the codec.
        kernels: The kernels to compress the sample with.
    Source:
        docs/algorithms.md#22-residual-codec
    """
    num_bytes, scaled = config.residual_bytes, bool(config.token_scale)
    vectors_TD, centroids_TD = vectors_TD.astype(np.float32), centroids_CD.astype(np.float32)[codes_T]
    if num_bytes is None:
        residuals_TD = vectors_TD - centroids_TD
        trellis = config.buckets == "trellis"
        cutoffs, weights = (
            (np.zeros(0, np.float32), fit_trellis(residuals_TD, config.nbits, kernels)) if trellis else fit_buckets(residuals_TD, config)
        )
        return ResidualCodec(centroids_CD, cutoffs, weights, rotation_DD, scaled, token_offsets)
    vectors_TD, centroids_TD, codes_T = vectors_TD[:PAIR_VECTORS], centroids_TD[:PAIR_VECTORS], codes_T[:PAIR_VECTORS]
    multiples_T = np.einsum("td,td->t", vectors_TD, centroids_TD) / np.einsum("td,td->t", centroids_TD, centroids_TD)
    weights = fit_trellis(vectors_TD - multiples_T[:, None] * centroids_TD, config.nbits, kernels, residual_bytes=num_bytes)
    codec = ResidualCodec(
        centroids_CD,
        np.zeros(0, np.float32),
        weights,
        rotation_DD,
        scaled,
        token_offsets,
        residual_bytes=num_bytes,
        scale_pairs=np.zeros((NUM_PAIRS, 2), np.float32),
    )
    _, scales_T2, _ = kernels.compress(vectors_TD, codes_T, codec)
    return replace(codec, scale_pairs=fit_scale_pairs(scales_T2, codec.dim))


def assigner_over(
    centroids: np.ndarray, token_offsets: np.ndarray | None, config: ClusteringConfig, training: bool = False
) -> Assigner | TokenAssigner:
    """Return the assigner over the centroids of a codec. It is deterministic.

    Args:
        centroids: [C, D] float32.
        token_offsets: [V + 1] int64, the codec's; None without token-aware clustering.
        config: Clustering settings.
        training: Whether every vocabulary id is in the sample, so that token-aware clustering needs no fallback.
    """
    if token_offsets is None:
        return Assigner.over(centroids, config.assign_nprobe, config.seed)
    fallback = None if training else Assigner.over(centroids, config.assign_nprobe, config.seed)
    return TokenAssigner(centroids, token_offsets, fallback)


def _name(kind: str, part: int) -> str:
    return f"sample/{kind}-{part:05d}"


def _load(workspace: Workspace, name: str) -> SamplePart:
    return workspace.load(f"{name}.npy"), workspace.load(f"{name}-ids.npy") if workspace.has(f"{name}-ids.npy") else None


@one_blas_thread()
def _sample_part(build: Build, rotation: np.ndarray | None, number: int) -> tuple[int, int]:
    """Save a shuffled, uniform sample of one part's token vectors. Return how many are for k-means, and how many are held out."""
    done = f"sample/counts-{number:05d}.json"
    if not build.workspace.has(done):
        part, config = build.parts[number], build.config.clustering
        rng = np.random.default_rng([config.seed, number])
        num_docs = min(part.num_docs, -(-clustering.sample_size(build.num_docs) * part.num_docs // build.num_docs))
        fraction = part.num_tokens / build.num_tokens
        largest = int(np.ceil((config.points_per_centroid * build.num_centroids + HELD_OUT_VECTORS) * fraction))
        vectors, token_ids = _tokens_of(build, number, np.sort(rng.choice(part.num_docs, num_docs, replace=False)), largest)
        order = rng.permutation(len(vectors))
        vectors = vectors[order]
        vectors = directions(vectors, kept_norms(vectors))
        vectors = (vectors if rotation is None else select().rotate(vectors, rotation)).astype(np.float16, copy=False)
        num_held_out = int(min(HELD_OUT_FRACTION * len(vectors), HELD_OUT_VECTORS * fraction))
        num_train = min(len(vectors) - num_held_out, int(np.ceil(config.points_per_centroid * build.num_centroids * fraction)))
        for kind, rows in (("held-out", slice(num_held_out)), ("train", slice(num_held_out, num_held_out + num_train))):
            build.workspace.save(f"{_name(kind, number)}.npy", vectors[rows])
            if token_ids is not None:
                build.workspace.save(f"{_name(kind, number)}-ids.npy", token_ids[order[rows]])
        build.workspace.save_record(done, (num_train, num_held_out))
    num_train, num_held_out = build.workspace.load_record(done)
    return num_train, num_held_out


def _tokens_of(build: Build, number: int, chosen: np.ndarray, largest: int) -> SamplePart:
    """Return the token vectors of some documents of a part, and their vocabulary ids if the clustering needs them.

    Documents in windows can be very long: if the chosen documents have more than twice `largest` tokens, every second, third ... token is
    returned, and at least `largest` tokens.
    """
    lengths = read_lengths(build.part_url(number))[chosen]
    vectors: list[np.ndarray] = []
    token_ids: list[np.ndarray] = []
    first = 0
    for block in read_blocks(build.part_url(number)):
        embeddings = without_zero_rows(block.embeddings)
        first -= block.continues
        step = 1 if block.windows is None else max(1, int(lengths.sum()) // largest)
        numbers = chosen[(chosen >= first) & (chosen < first + len(embeddings))] - first
        vectors += [embeddings[i][::step].copy() if step > 1 else embeddings[i] for i in numbers]
        ids, offsets = token_ids_of(build, embeddings), embeddings.offsets
        if ids is not None:
            token_ids += [ids[offsets[i] : offsets[i + 1]][::step] for i in numbers]
        first += len(embeddings)
    return np.concatenate(vectors), np.concatenate(token_ids) if token_ids else None


def token_ids_of(build: Build, embeddings: TokenEmbeddings) -> np.ndarray | None:
    """Return the tokens' vocabulary ids [T]; None if the clustering does not use them.

    Raises:
        ConfigError: The clustering uses them, and the embeddings have none.
    """
    if build.config.clustering.method == "k_means":
        return None
    if embeddings.token_ids is None:
        raise ConfigError(
            f"{build.embeddings} holds no token ids (pooled vectors have none); encode with jobs.encode, or use --clustering.method k_means"
        )
    return embeddings.token_ids


def _token_offsets(build: Build) -> np.ndarray:
    """Return the first centroid of every vocabulary id, [V + 1] int64, from counts of the sample."""
    counts_V = np.zeros(0, np.int64)
    for part in range(len(build.parts)):
        token_ids = _load(build.workspace, _name("train", part))[1]
        assert token_ids is not None
        counts = np.bincount(token_ids)
        width = max(len(counts), len(counts_V))
        counts_V = np.pad(counts_V, (0, width - len(counts_V))) + np.pad(counts, (0, width - len(counts)))
    return np.concatenate([[0], np.cumsum(token_clustering.centroids_per_id(counts_V, build.num_centroids))])


def _k_means(build: Build, num_train: np.ndarray, token_offsets: np.ndarray | None, map: Map, records: list[dict[str, Any]]) -> np.ndarray:
    """Return the centroids [C, D] float32 after the last iteration. Each iteration is saved in the workspace."""
    read = partial(_load, build.workspace)
    if token_offsets is None:
        centroids = _first_centroids(build, num_train)
    else:
        sample = (read(_name("train", part)) for part in range(len(num_train)))
        centroids = token_clustering.first_centroids(sample, np.diff(token_offsets))
    groups = _groups(num_train, len(centroids))
    config = build.config.clustering
    for iteration in range(1, config.num_iterations + 1):
        name = f"centroids-{iteration}.npy"
        if not build.workspace.has(name):
            with phase("k-means", records) as record:
                spread = watched(map, f"k-means {iteration}/{config.num_iterations}")
                assigner = assigner_over(centroids, token_offsets, config, training=True)
                build.workspace.save(name, clustering.step(centroids, assigner, groups, read, spread))
                record.update(iteration=iteration, centroids=len(centroids))
        centroids = build.workspace.load(name)
    return centroids


def _first_centroids(build: Build, num_train: np.ndarray) -> np.ndarray:
    """Return the first vectors of every sample part, in proportion to its size, [C, D] float32. C is at most the size of the sample."""
    num_centroids = min(build.num_centroids, int(num_train.sum()))
    ends = np.cumsum(num_train) * num_centroids // num_train.sum()
    counts = np.diff(ends, prepend=0)
    rows = [_load(build.workspace, _name("train", part))[0][:count] for part, count in enumerate(counts) if count]
    return np.concatenate(rows).astype(np.float32)


def _groups(num_train: np.ndarray, num_centroids: int) -> list[list[str]]:
    """Group sample parts for one call each, with at least one vector a centroid, so that tables of sums stay smaller than the sample."""
    begins = np.concatenate([[0], np.cumsum(num_train)[:-1]]) // num_centroids
    groups: dict[int, list[str]] = {}
    for part, group in enumerate(begins.tolist()):
        groups.setdefault(group, []).append(_name("train", part))
    return list(groups.values())


@one_blas_thread()
def _held_out(build: Build, assigner: Assigner | TokenAssigner, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the held-out vectors (in a tiny corpus: the training vectors) [T, D] float16, and their centroids [T]."""
    vectors, codes = [], []
    for part in range(len(build.parts)):
        rows, token_ids = _load(build.workspace, _name(kind, part))
        vectors.append(rows)
        codes.append(assigner(rows, token_ids))
    return np.concatenate(vectors), np.concatenate(codes)
