"""Building an index from a folder of token embeddings: train the codec, compress every part, assemble shards, publish.

Each step is a function of one part of the embeddings, or of one shard, applied through a map. What it makes goes to the
work folder, so that a build that was killed continues, and to a published name only when it is whole. What the steps
compute does not depend on the number of shards, so an index answers the same however it is cut.
"""

import logging
import platform
from collections.abc import Sequence
from typing import Any

import numpy as np

import ray_lir.parallel
from ray_lir.config import IndexConfig, canonical_json, digest
from ray_lir.errors import ConfigError
from ray_lir.formats import storage
from ray_lir.formats.contract import EncoderContract
from ray_lir.formats.embeddings import save_embeddings
from ray_lir.formats.manifest import (
    MANIFEST,
    PROVENANCE,
    EmbeddingsManifest,
    FileEntry,
    IndexManifest,
    check_file,
    describe_file,
    manifest_digest,
    read_manifest,
    write_manifest,
)
from ray_lir.formats.token_embeddings import TokenEmbeddings
from ray_lir.index.assemble import assemble
from ray_lir.index.clustering import default_num_centroids
from ray_lir.index.codec import check_dimensions
from ray_lir.index.pieces import compress
from ray_lir.index.training import train_codec
from ray_lir.index.work import Build, Work
from ray_lir.parallel import Map
from ray_lir.search import LATEST, read_version

logger = logging.getLogger(__name__)

TOKENS_PER_SHARD = 50_000_000
WORK = "_work"


def build_index(
    embeddings: str | TokenEmbeddings,
    output: str,
    config: IndexConfig | None = None,
    *,
    contract: EncoderContract | None = None,
    texts: Sequence[str] | None = None,
    map: Map = ray_lir.parallel.threads,
) -> IndexManifest:
    """Builds version 1 of an index and publishes it in one step.

    Args:
        embeddings: folder that jobs.encode or save_embeddings wrote, or token embeddings held in memory.
        output: folder of the index, on a disk or an object store.
        config: shards, clustering and codec; None for the defaults.
        contract: for embeddings held in memory, that of their encoder.
        texts: for embeddings held in memory, one a document.
        map: where the steps run: threads of this process, plain `map`, or distributed.ray_map. The bytes are the same.

    Returns:
        The manifest. If the index is there already with this configuration, it is left as it is.

    Raises:
        ConfigError: if the output holds something else, or the configuration does not fit the embeddings.
        FormatError: if the embeddings are not what their manifest says.
    """
    config = config or IndexConfig()
    output = storage.absolute(output)
    if isinstance(embeddings, TokenEmbeddings):
        _check_output(output)
        check_dimensions(embeddings.dim, config.codec.nbits)
        folder = storage.join(output, WORK, "embeddings")
        save_embeddings(folder, embeddings, contract, texts)
        manifest = build_index(folder, output, config, map=map)
        storage.remove_tree(storage.join(output, WORK))
        return manifest
    embeddings = storage.absolute(embeddings)
    source = read_manifest(storage.join(embeddings, MANIFEST), EmbeddingsManifest, "jobs.encode")
    identity = {"index": config.model_dump(mode="json"), "embeddings": manifest_digest(source)}
    if _check_output(output):
        return _existing(output, identity)
    build = _prepare(embeddings, source, output, config, digest(identity)[:16])
    try:
        with storage.told_as("write to", output):
            return _build(build, source, identity, map)
    except Exception:
        if LATEST in storage.list_names(output):  # another run of this job was faster, and took the work folder away
            return _existing(output, identity)
        raise


def _build(build: Build, source: EmbeddingsManifest, identity: dict[str, Any], map: Map) -> IndexManifest:
    records: list[dict[str, Any]] = []
    codec, assigner = train_codec(build, map, records)
    cluster_sizes, mean_residual_norm = compress(build, codec, assigner, map, records)
    shards = assemble(build, codec.num_centroids, map, records)
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
        mean_residual_norm=mean_residual_norm,
        shards=shards,
        config=identity,
    )
    _publish(build, manifest, records)
    return manifest


def _check_output(output: str) -> bool:
    """Whether an index is there. Raises ConfigError if something else is."""
    names = storage.list_names(output)
    if LATEST in names:
        return True
    strange = [name for name in names if name not in (WORK, "codec", "shards", "versions") and not name.startswith(".")]
    if strange:
        raise ConfigError(f"{output} is not empty and holds no index ({strange[0]} is in it); choose another output")
    return False


def _existing(output: str, identity: dict[str, Any]) -> IndexManifest:
    manifest = read_version(output)
    if manifest.config != identity:
        raise ConfigError(
            f"{output} holds an index of other embeddings or another configuration; choose another output, or remove it first"
        )
    storage.remove_tree(storage.join(output, WORK))  # what a run left that was killed, or overtaken, after the index was published
    logger.info("%s is built already with this configuration; nothing to do", output)
    return manifest


def _prepare(embeddings: str, source: EmbeddingsManifest, output: str, config: IndexConfig, name: str) -> Build:
    check_dimensions(source.dim, config.codec.nbits)
    if source.num_tokens == 0:
        raise ConfigError(f"{embeddings} holds no tokens, so there is nothing to index")
    num_shards = config.num_shards or -(-source.num_tokens // TOKENS_PER_SHARD)
    if num_shards > source.num_docs:
        raise ConfigError(f"num_shards is {num_shards}, but there are {source.num_docs} documents; choose fewer shards")
    for part in source.parts:
        check_file(embeddings, part)
    return Build(
        embeddings=embeddings,
        parts=tuple(part for part in source.parts if part.num_docs),
        output=output,
        config=config,
        dim=source.dim,
        num_docs=source.num_docs,
        num_tokens=source.num_tokens,
        num_shards=num_shards,
        num_centroids=config.clustering.num_centroids or default_num_centroids(source.num_tokens, config.clustering.method),
        work=Work(storage.join(output, WORK, name)),
    )


def _publish_file(build: Build, name: str) -> FileEntry:
    """Copies a small file of the work folder to codec/, under a name that carries its digest."""
    entry = describe_file(build.work.root, name)
    stem, dot, suffix = name.partition(".")
    published = f"codec/{stem}-{entry.sha256[:12]}{dot}{suffix}"
    storage.write_bytes(storage.join(build.output, published), storage.read_bytes(storage.join(build.work.root, name)))
    return entry.model_copy(update={"name": published})


def _publish(build: Build, manifest: IndexManifest, records: list[dict[str, Any]]) -> None:
    """Makes the version visible, then removes the work folder."""
    if LATEST in storage.list_names(build.output):
        _existing(build.output, manifest.config)  # somebody else built here meanwhile: the same index, or an error
    version = storage.join(build.output, "versions", "1")
    provenance = {"stages": records, "python": platform.python_version(), "numpy": np.__version__, "embeddings": build.embeddings}
    storage.write_bytes(storage.join(version, PROVENANCE), canonical_json(provenance))
    write_manifest(storage.join(version, MANIFEST), manifest)
    storage.write_bytes(storage.join(build.output, LATEST), b"1\n")
    storage.remove_tree(storage.join(build.output, WORK))
