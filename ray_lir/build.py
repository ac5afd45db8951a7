"""Building an index from a folder of token embeddings: train the codec, compress every part, assemble shards, publish.

Each step is a function of one part of the embeddings, or of one shard, applied through a map. What it makes goes to the
work folder, so that a build that was killed continues, and to a published name only when it is whole. What the steps
compute does not depend on the number of shards, so an index answers the same however it is cut.
"""

import logging
import platform
from collections.abc import Mapping, Sequence
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
    check_complete,
    check_file,
    manifest_digest,
    read_manifest,
    write_manifest,
    write_named,
)
from ray_lir.formats.relation import Relation, load_relation
from ray_lir.formats.token_embeddings import TokenEmbeddings
from ray_lir.index.assemble import assemble
from ray_lir.index.clustering import Assigner, default_num_centroids
from ray_lir.index.codec import ResidualCodec, check_dimensions, load_codec
from ray_lir.index.pieces import compress
from ray_lir.index.rows import array_bytes
from ray_lir.index.token_clustering import TokenAssigner
from ray_lir.index.training import assigner_over, train_codec
from ray_lir.index.work import WORK, Build, Work, tidy
from ray_lir.parallel import Map
from ray_lir.search import LATEST, read_version

logger = logging.getLogger(__name__)

TOKENS_PER_SHARD = 50_000_000
CLUSTER_SIZES = "codec/cluster_sizes"
FOLDERS = (WORK, "codec", "shards", "tombstones", "versions")
WORK_OF_CHANGES = ("version-", "embeddings-")
"""How the names of the work folders begin that belong to updates and compactions."""


def build_index(
    embeddings: storage.PathOrUrl | TokenEmbeddings,
    output: storage.PathOrUrl,
    config: IndexConfig | None = None,
    *,
    contract: EncoderContract | None = None,
    texts: Sequence[str] | None = None,
    titles: Sequence[str] | None = None,
    metadata: Sequence[Mapping[str, Any] | None] | None = None,
    relation: Relation | None = None,
    map: Map = ray_lir.parallel.threads,
) -> IndexManifest:
    """Builds version 1 of an index and publishes it in one step.

    Args:
        embeddings: folder that jobs.encode or save_embeddings wrote, or token embeddings held in memory.
        output: folder of the index, on a disk or an object store.
        config: shards, clustering and codec, or the index whose codec is taken; None for the defaults.
        contract: for embeddings held in memory, that of their encoder.
        texts: for embeddings held in memory, one a document.
        titles: for embeddings held in memory, one a document.
        metadata: for embeddings held in memory, a dict of JSON values for each document.
        relation: for embeddings held in memory, that of their encoder, if its scorer is trial.
        map: where the steps run: threads of this process, plain `map`, or distributed.ray_map. The bytes are the same.

    Returns:
        The manifest. If the index is there already with this configuration, it is left as it is.

    Raises:
        ConfigError: if the output holds something else, or the configuration does not fit the embeddings.
        FormatError: if the embeddings are not what their manifest says.
        IncompatibleError: if they lack what their scorer needs in search.
    """
    config = config or IndexConfig()
    output = storage.absolute(output)
    if isinstance(embeddings, TokenEmbeddings):
        _check_output(output)
        check_dimensions(embeddings.dim, config.codec.nbits)
        folder = storage.join(output, WORK, "embeddings")
        save_embeddings(folder, embeddings, contract, texts, relation, titles=titles, metadata=metadata)
        manifest = build_index(folder, output, config, map=map)
        _tidy(output)
        return manifest
    check_unused("build_index", contract=contract, texts=texts, titles=titles, metadata=metadata, relation=relation)
    source, config, identity = _read_source(embeddings, config)
    if _check_output(output):
        return _existing(output, identity)
    build = _prepare(storage.absolute(embeddings), source, output, config, digest(identity)[:16])
    try:
        with storage.told_as("write to", output):
            return _build(build, source, identity, map)
    except Exception:
        if LATEST in storage.list_names(output):  # another run of this job was faster, and took the work folder away
            return _existing(output, identity)
        raise


def check_unused(function: str, **arguments: Any) -> None:
    """Raises ConfigError if an argument is given that only embeddings held in memory need: a folder has its own."""
    given = next((name for name, value in arguments.items() if value is not None), None)
    if given:
        raise ConfigError(f"{function} takes {given} only with TokenEmbeddings held in memory; a folder of embeddings has its own")


def _build(build: Build, source: EmbeddingsManifest, identity: dict[str, Any], map: Map) -> IndexManifest:
    records: list[dict[str, Any]] = []
    given = build.config.codec_from
    codec, assigner = codec_of(given, read_version(given)) if given else train_codec(build, map, records)
    cluster_sizes, mean_residual_norm = compress(build, codec, assigner, map, records)
    shards = assemble(build, map, records)
    manifest = IndexManifest(
        contract=source.contract,
        dim=source.dim,
        nbits=codec.nbits,
        num_centroids=codec.num_centroids,
        num_docs=source.num_docs,
        num_tokens=source.num_tokens,
        codec=write_named(build.output, "codec/codec", ".safetensors", codec.to_bytes()),
        cluster_sizes=write_named(build.output, CLUSTER_SIZES, ".npy", array_bytes(cluster_sizes)),
        mean_residual_norm=mean_residual_norm,
        **source.truncation.fields,
        relation=_copy_relation(build, source),
        shards=shards,
        config=identity,
    )
    _publish(build, manifest, records)
    return manifest


def _copy_relation(build: Build, source: EmbeddingsManifest) -> FileEntry | None:
    """The relation encoder in the index, if the embeddings come with one."""
    if source.relation is None:
        return None
    relation = load_relation(storage.join(build.embeddings, source.relation.name), source.dim)
    return write_named(build.output, "codec/relation", ".safetensors", relation.to_bytes())


def _check_output(output: str) -> bool:
    """Whether an index is there. Raises ConfigError if something else is."""
    names = storage.list_names(output)
    if LATEST in names:
        return True
    strange = [name for name in names if name not in FOLDERS and not name.startswith(".")]
    if strange:
        raise ConfigError(f"{output} is not empty and holds no index ({strange[0]} is in it); choose another output")
    return False


def _existing(output: str, identity: dict[str, Any]) -> IndexManifest:
    manifest = read_version(output)
    if {name: value for name, value in manifest.config.items() if name != "change"} != identity:
        raise ConfigError(
            f"{output} holds an index of other embeddings or another configuration; choose another output, or remove it first"
        )
    _tidy(output)
    since = f", and version {manifest.change.parent + 1} came of changes since" if manifest.change else ""
    logger.info("%s is built already with this configuration%s; nothing to do", output, since)
    return manifest


def _tidy(output: str) -> None:
    """Removes the work folders of builds: of this one, or what a run left that was killed, or overtaken, as the index was published."""
    tidy(output, lambda name: not name.startswith(WORK_OF_CHANGES))


def settings_of(manifest: IndexManifest) -> IndexConfig:
    """The configuration that an index was built with."""
    return IndexConfig.model_validate(manifest.config.get("index", {}))


def codec_of(index: str, manifest: IndexManifest) -> tuple[ResidualCodec, Assigner | TokenAssigner]:
    """The codec of an index, and what finds a vector's centroid in it as when the index was built."""
    check_file(index, manifest.codec, content=True)
    codec = load_codec(storage.join(index, manifest.codec.name))
    return codec, assigner_over(codec.centroids_f32, codec.token_offsets, settings_of(manifest).clustering)


def prepare(embeddings: storage.PathOrUrl, output: storage.PathOrUrl, config: IndexConfig) -> Build:
    """What a build would do; nothing is written.

    Raises:
        ConfigError: if the output holds something that is no index, or the configuration does not fit the embeddings.
        FormatError: if the embeddings are not what their manifest says.
    """
    source, config, identity = _read_source(embeddings, config)
    output = storage.absolute(output)
    _check_output(output)
    return _prepare(storage.absolute(embeddings), source, output, config, digest(identity)[:16])


def _read_source(embeddings: storage.PathOrUrl, config: IndexConfig) -> tuple[EmbeddingsManifest, IndexConfig, dict[str, Any]]:
    """The embeddings' manifest, the configuration with all that codec_from says, and all that decides what the index holds."""
    source = read_manifest(storage.join(storage.absolute(embeddings), MANIFEST), EmbeddingsManifest, "jobs.encode")
    identity: dict[str, Any] = {"embeddings": manifest_digest(source)}
    if config.codec_from:
        config = config.model_copy(update={"codec_from": storage.absolute(config.codec_from)})
        theirs = read_version(config.codec_from)
        config = _with_codec_of(theirs, config, source)
        identity["codec"] = theirs.codec.sha256
    return source, config, identity | {"index": config.model_dump(mode="json")}


def _with_codec_of(theirs: IndexManifest, config: IndexConfig, source: EmbeddingsManifest) -> IndexConfig:
    """The configuration with the clustering and the codec of another index. Raises ConfigError if others are asked for."""
    settings = settings_of(theirs)
    for name in ("clustering", "codec"):
        asked, default = getattr(config, name), getattr(IndexConfig(), name)
        if asked not in (default, getattr(settings, name)):
            raise ConfigError(f"{name} settings differ from those of codec_from {config.codec_from}, whose codec is taken; leave them out")
    if theirs.dim != source.dim:
        raise ConfigError(f"the embeddings have {source.dim} dimensions and the index codec_from {theirs.dim}; give another index")
    return config.model_copy(update={"clustering": settings.clustering, "codec": settings.codec})


def _prepare(embeddings: str, source: EmbeddingsManifest, output: str, config: IndexConfig, name: str) -> Build:
    check_dimensions(source.dim, config.codec.nbits)
    if source.num_tokens == 0:
        raise ConfigError(f"{embeddings} holds no tokens, so there is nothing to index")
    num_shards = config.num_shards or -(-source.num_tokens // TOKENS_PER_SHARD)
    if num_shards > source.num_docs:
        raise ConfigError(f"num_shards is {num_shards}, but there are {source.num_docs} documents; choose fewer shards")
    for part in source.parts:
        check_file(embeddings, part)
    check_complete(source)
    return Build(
        embeddings=embeddings,
        contract=source.contract,
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


def _publish(build: Build, manifest: IndexManifest, records: list[dict[str, Any]]) -> None:
    """Makes the version visible, then removes the work folder."""
    if LATEST in storage.list_names(build.output):
        _existing(build.output, manifest.config)  # somebody else built here meanwhile: the same index, or an error
    version = storage.join(build.output, "versions", "1")
    provenance = {"stages": records, "python": platform.python_version(), "numpy": np.__version__, "embeddings": build.embeddings}
    storage.write_bytes(storage.join(version, PROVENANCE), canonical_json(provenance))
    write_manifest(storage.join(version, MANIFEST), manifest)
    storage.write_bytes(storage.join(build.output, LATEST), b"1\n")
    _tidy(build.output)
