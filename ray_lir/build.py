"""Building an index from a folder of token embeddings: sample, k-means, codec, compressed pieces, shards, manifest.

Each step is a function of one part of the embeddings, or of one shard, applied through a map; what it makes goes to
the work folder, so a build that was killed continues, and to a published name only when it is whole. What the steps
compute does not depend on the number of shards, so an index answers the same however it is cut.
"""

import logging
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

import ray_lir.parallel
from ray_lir.config import IndexConfig, canonical_json, digest
from ray_lir.errors import ConfigError
from ray_lir.formats import storage
from ray_lir.formats.contract import EncoderContract
from ray_lir.formats.embeddings import save_embeddings
from ray_lir.formats.manifest import (
    MANIFEST,
    PROVENANCE,
    EmbeddingPart,
    EmbeddingsManifest,
    FileEntry,
    IndexManifest,
    ShardEntry,
    check_file,
    describe_file,
    manifest_digest,
    read_manifest,
    write_manifest,
)
from ray_lir.formats.parquet import read_blocks, read_lengths
from ray_lir.formats.token_embeddings import TokenEmbeddings
from ray_lir.index import clustering
from ray_lir.index.assemble import assemble_shard
from ray_lir.index.codec import ResidualCodec, check_dimensions, fit_buckets
from ray_lir.index.work import Work
from ray_lir.kernels import select
from ray_lir.kernels.reference import normalize
from ray_lir.logs import stage
from ray_lir.parallel import Map
from ray_lir.search import LATEST, read_version

logger = logging.getLogger(__name__)

TOKENS_PER_SHARD = 50_000_000
HELD_OUT_SHARE = 0.05
HELD_OUT_VECTORS = 50_000
WORK = "_work"
"""Vectors that buckets are fitted to and k-means does not see (ALGORITHMS 2.2)."""


@dataclass(frozen=True)
class Build:
    """What every step knows: where to read, where to write, and how."""

    embeddings: str
    parts: tuple[EmbeddingPart, ...]
    output: str
    config: IndexConfig
    num_docs: int
    num_tokens: int
    num_centroids: int
    work: Work


def build_index(
    embeddings: str | TokenEmbeddings,
    output: str,
    config: IndexConfig = IndexConfig(),
    *,
    contract: EncoderContract | None = None,
    texts: Sequence[str] | None = None,
    map: Map = ray_lir.parallel.threads,
) -> IndexManifest:
    """Builds version 1 of an index and publishes it in one step.

    Args:
        embeddings: folder that jobs.encode or save_embeddings wrote, or token embeddings held in memory.
        output: folder of the index, on a disk or an object store.
        config: shards, clustering and codec.
        contract: for embeddings held in memory, that of their encoder.
        texts: for embeddings held in memory, one a document.
        map: where the steps run: threads of this process, plain `map`, or distributed.ray_map. The bytes are the same.

    Returns:
        The manifest. If the index is there already with this configuration, it is left as it is.

    Raises:
        ConfigError: if the output holds something else, or the configuration does not fit the embeddings.
        FormatError: if the embeddings are not what their manifest says.
    """
    output = storage.absolute(output)
    if isinstance(embeddings, TokenEmbeddings):
        check_dimensions(embeddings.dim, config.codec.nbits)
        folder = storage.join(output, WORK, "embeddings")
        save_embeddings(folder, embeddings, contract, texts)
        manifest = build_index(folder, output, config, map=map)
        storage.remove_tree(storage.join(output, WORK))
        return manifest
    embeddings = storage.absolute(embeddings)
    source = read_manifest(storage.join(embeddings, MANIFEST), EmbeddingsManifest, "jobs.encode")
    identity = {"index": config.model_dump(mode="json"), "embeddings": manifest_digest(source)}
    existing = _existing(output, identity)
    if existing is not None:
        logger.info("%s is built already with this configuration; nothing to do", output)
        return existing
    build = _prepare(embeddings, source, output, config, digest(identity)[:16])
    records: list[dict[str, Any]] = []
    codec = _train_codec(build, map, records)
    cluster_sizes, mean_norm = _compress(build, codec, map, records)
    shards = _assemble(build, codec, map, records)
    manifest = _publish(build, source, codec, cluster_sizes, mean_norm, shards, identity, records)
    storage.remove_tree(storage.join(output, WORK))
    return manifest


def _existing(output: str, identity: dict[str, Any]) -> IndexManifest | None:
    names = set(storage.list_names(output))
    if LATEST in names:
        manifest = read_version(output)
        if manifest.config == identity:
            return manifest
        raise ConfigError(f"{output} holds an index built from other embeddings or with another configuration; choose another output, or remove it first")
    strange = sorted(name for name in names - {WORK, "codec", "shards", "versions"} if not name.startswith("."))
    if strange:
        raise ConfigError(f"{output} is not empty and no index ({strange[0]} is in it); choose another output")
    return None


def _prepare(embeddings: str, source: EmbeddingsManifest, output: str, config: IndexConfig, name: str) -> Build:
    check_dimensions(source.dim, config.codec.nbits)
    if source.num_tokens == 0:
        raise ConfigError(f"{embeddings} holds no tokens, so there is nothing to index")
    num_shards = config.num_shards or -(-source.num_tokens // TOKENS_PER_SHARD)
    if num_shards > source.num_docs:
        raise ConfigError(f"num_shards is {num_shards}, more than the {source.num_docs} documents; choose fewer")
    for part in source.parts:
        check_file(embeddings, part)
    return Build(
        embeddings=embeddings,
        parts=source.parts,
        output=output,
        config=config.model_copy(update={"num_shards": num_shards}),
        num_docs=source.num_docs,
        num_tokens=source.num_tokens,
        num_centroids=config.clustering.num_centroids or clustering.default_num_centroids(source.num_tokens),
        work=Work(storage.join(output, WORK, name)),
    )


def _spread(map: Map, label: str, function: Callable[[int], Any], numbers: Sequence[int]) -> Iterable[Any]:
    """The map's results, with a progress bar when somebody is watching."""
    return tqdm(map(function, numbers), desc=label, total=len(numbers), leave=False, disable=None)


# --- the codec: sample, k-means, buckets ---


def _train_codec(build: Build, map: Map, records: list[dict[str, Any]]) -> ResidualCodec:
    parts = range(len(build.parts))
    with stage("sample", records) as record:
        counts = np.array(list(_spread(map, "sample", partial(_sample_part, build), parts)))
        num_train, num_held = counts.sum(axis=0).tolist()
        record.update(vectors=num_train, held_out=num_held)
    centroids = _first_centroids(build, counts[:, 0])
    config = build.config.clustering
    for iteration in range(config.num_iterations):
        name = f"centroids-{iteration}.npy"
        if not build.work.has(name):
            with stage("k-means", records) as record:
                pieces = [_train_name(part) for part in parts]
                spread = partial(_spread, map, f"k-means {iteration + 1}/{config.num_iterations}")
                build.work.save(name, clustering.step(centroids, pieces, config, build.work.load, spread))
                record.update(iteration=iteration + 1, centroids=len(centroids))
        centroids = build.work.load(name)
    centroids = normalize(centroids).astype(np.float16)
    with stage("buckets", records) as record:
        residuals = _held_out_residuals(build, centroids)
        cutoffs, weights = fit_buckets(residuals, build.config.codec)
        record.update(values=residuals.size, nbits=build.config.codec.nbits)
    return ResidualCodec(centroids, cutoffs, weights)


def _train_name(part: int) -> str:
    return f"sample/train-{part:05d}.npy"


def _held_out_name(part: int) -> str:
    return f"sample/held-out-{part:05d}.npy"


def _sample_part(build: Build, number: int) -> tuple[int, int]:
    """Saves a uniform sample of one part's token vectors, shuffled: most for k-means, some held out. Returns their numbers."""
    done = f"sample/count-{number:05d}.json"
    if build.work.has(done):
        return tuple(build.work.load_record(done))
    part = build.parts[number]
    config = build.config.clustering
    rng = np.random.default_rng([config.seed, number])
    share = part.num_tokens / build.num_tokens
    num_docs = min(part.num_docs, -(-clustering.sample_size(build.num_docs) * part.num_docs // build.num_docs))
    chosen = np.sort(rng.choice(part.num_docs, num_docs, replace=False))
    vectors, first = [], 0
    for block in read_blocks(storage.join(build.embeddings, part.name)):
        texts = block.embeddings
        mine = chosen[(chosen >= first) & (chosen < first + len(texts))] - first
        vectors += [texts[i] for i in mine]
        first += len(texts)
    sample = rng.permutation(np.concatenate(vectors)) if vectors else np.zeros((0, 1), np.float16)
    num_held = int(min(HELD_OUT_SHARE * len(sample), HELD_OUT_VECTORS * share))
    num_train = min(len(sample) - num_held, int(np.ceil(config.points_per_centroid * build.num_centroids * share)))
    build.work.save(_held_out_name(number), sample[:num_held])
    build.work.save(_train_name(number), sample[num_held : num_held + num_train])
    build.work.save_record(done, (num_train, num_held))
    return num_train, num_held


def _first_centroids(build: Build, num_train: np.ndarray) -> np.ndarray:
    """[C, D] float32: the first vectors of every piece, in proportion to its size. C is at most the size of the sample."""
    total = int(num_train.sum())
    num_centroids = min(build.num_centroids, total)
    ends = np.cumsum(num_train) * num_centroids // total
    shares = np.diff(ends, prepend=0)
    rows = [build.work.load(_train_name(part))[:count] for part, count in enumerate(shares) if count]
    return np.concatenate(rows).astype(np.float32)


def _held_out_residuals(build: Build, centroids: np.ndarray) -> np.ndarray:
    """Residual values of the held-out vectors; of the training vectors where the corpus is too small to hold any out."""
    names = [_held_out_name(part) for part in range(len(build.parts))]
    held = [array for array in map(build.work.load, names) if len(array)]
    if not held:
        held = [build.work.load(_train_name(part)) for part in range(len(build.parts))]
        held = [array for array in held if len(array)]
    vectors = np.concatenate(held).astype(np.float32)
    return vectors - centroids.astype(np.float32)[_assigner(build, centroids)(vectors)]


def _assigner(build: Build, centroids: np.ndarray) -> clustering.Assigner:
    config = build.config.clustering
    return clustering.Assigner.over(centroids.astype(np.float32), config.assign_nprobe, config.seed)


# --- the pieces: codes and residuals of one part each ---


def _compress(build: Build, codec: ResidualCodec, map: Map, records: list[dict[str, Any]]) -> tuple[np.ndarray, float]:
    """Tokens of each centroid [C] int64, and the mean norm of a residual."""
    with stage("compress", records) as record:
        sizes = np.zeros(codec.num_centroids, np.int64)
        norms = 0.0
        step = partial(_compress_part, build, codec, _assigner(build, codec.centroids))
        for piece_sizes, piece_norms in _spread(map, "compress", step, range(len(build.parts))):
            sizes += piece_sizes
            norms += piece_norms
        record.update(tokens=build.num_tokens, mean_residual_norm=round(norms / build.num_tokens, 4))
    return sizes, norms / build.num_tokens


def _compress_part(build: Build, codec: ResidualCodec, assigner: clustering.Assigner, number: int) -> tuple[np.ndarray, float]:
    codes_name, residuals_name, done = (f"pieces/{number:05d}-{name}" for name in ("codes.npy", "residuals.npy", "norms.json"))
    if not build.work.has(done):
        kernels = select("auto")
        codes, residuals, norms = [], [], 0.0
        for block in read_blocks(storage.join(build.embeddings, build.parts[number].name)):
            vectors = block.embeddings.values
            codes.append(assigner(vectors).astype(codec.code_dtype))
            packed, block_norms = codec.compress(vectors, codes[-1], kernels)
            residuals.append(packed)
            norms += float(block_norms.sum(dtype=np.float64))
        build.work.save(codes_name, np.concatenate(codes))
        build.work.save(residuals_name, np.concatenate(residuals))
        build.work.save_record(done, norms)
    return np.bincount(build.work.load(codes_name), minlength=codec.num_centroids), build.work.load_record(done)


# --- shards and publication ---


def _assemble(build: Build, codec: ResidualCodec, map: Map, records: list[dict[str, Any]]) -> tuple[ShardEntry, ...]:
    with stage("assemble", records) as record:
        bounds = _shard_bounds(build)
        step = partial(assemble_shard, build.embeddings, build.parts, build.work, build.output, codec.num_centroids, bounds)
        shards = tuple(_spread(map, "assemble", step, range(len(bounds) - 1)))
        record.update(shards=len(shards), bytes=sum(file.size for shard in shards for file in shard.files))
    return shards


def _shard_bounds(build: Build) -> list[int]:
    """Documents at which shards begin, and the end: about equally many tokens each, at least one document."""
    num_shards = build.config.num_shards or 1
    tokens = np.concatenate([[0], np.cumsum([part.num_tokens for part in build.parts])])
    docs = np.concatenate([[0], np.cumsum([part.num_docs for part in build.parts])])
    bounds = [0]
    for shard in range(1, num_shards):
        target = build.num_tokens * shard // num_shards
        part = min(int(np.searchsorted(tokens, target, side="right")) - 1, len(build.parts) - 1)
        ends = tokens[part] + np.cumsum(read_lengths(storage.join(build.embeddings, build.parts[part].name)))
        cut = int(docs[part] + np.searchsorted(ends, target, side="left")) + 1
        bounds.append(min(max(cut, bounds[-1] + 1), build.num_docs - (num_shards - shard)))
    return [*bounds, build.num_docs]


def _publish(
    build: Build,
    source: EmbeddingsManifest,
    codec: ResidualCodec,
    cluster_sizes: np.ndarray,
    mean_norm: float,
    shards: tuple[ShardEntry, ...],
    identity: dict[str, Any],
    records: list[dict[str, Any]],
) -> IndexManifest:
    codec.save(storage.join(build.work.root, "codec.safetensors"))
    build.work.save("cluster_sizes.npy", cluster_sizes)
    manifest = IndexManifest(
        contract=source.contract,
        dim=source.dim,
        nbits=codec.nbits,
        num_centroids=codec.num_centroids,
        num_docs=source.num_docs,
        num_tokens=source.num_tokens,
        codec=_publish_file(build, "codec.safetensors"),
        cluster_sizes=_publish_file(build, "cluster_sizes.npy"),
        mean_residual_norm=mean_norm,
        shards=shards,
        config=identity,
    )
    version = storage.join(build.output, "versions", "1")
    provenance = {"stages": records, "python": platform.python_version(), "numpy": np.__version__, "embeddings": build.embeddings}
    storage.write_bytes(storage.join(version, PROVENANCE), canonical_json(provenance))
    write_manifest(storage.join(version, MANIFEST), manifest)
    storage.write_bytes(storage.join(build.output, LATEST), b"1\n")
    return manifest


def _publish_file(build: Build, name: str) -> FileEntry:
    """Copies a small file of the work folder to codec/, under a name that carries its digest."""
    entry = describe_file(build.work.root, name)
    stem, dot, suffix = name.partition(".")
    published = f"codec/{stem}-{entry.sha256[:12]}{dot}{suffix}"
    storage.write_bytes(storage.join(build.output, published), storage.read_bytes(storage.join(build.work.root, name)))
    return entry.model_copy(update={"name": published})
