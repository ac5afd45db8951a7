"""Building an index from a folder of token embeddings: train the codec, compress every part, assemble shards, publish.

Each step is a function of one part of the embeddings, or of one shard, applied through a map. What it makes goes to the
work folder, so that a build that was killed continues, and to a published name only when it is whole. What the steps
compute does not depend on the number of shards, so an index answers the same however it is cut.
"""

import logging
import platform
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from pydantic import ValidationError

import ray_lir.base.parallel
from ray_lir import storage
from ray_lir.base.config import IndexConfig, canonical_json, digest
from ray_lir.base.errors import ConfigError, Conflict, FormatError
from ray_lir.base.logs import phase
from ray_lir.base.parallel import Map
from ray_lir.building.assemble import assemble
from ray_lir.building.clustering import Assigner, default_num_centroids
from ray_lir.building.codec_training import assigner_over, train_codec
from ray_lir.building.compress import compress
from ray_lir.building.held_out import held_out_residual_norm
from ray_lir.building.token_clustering import TokenAssigner
from ray_lir.building.workspace import GARBAGE, WORK, Build, Work, tidy
from ray_lir.embeddings.contract import EncoderContract
from ray_lir.embeddings.folder import content_digest, documents_table, write_embeddings
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.embeddings.relation import Relation
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.engines.scoring.registry import check_complete, scorer_of
from ray_lir.index.arrays import array_bytes
from ray_lir.index.codec import ResidualCodec, check_dimensions, read_codec
from ray_lir.index.manifest import IndexManifest, listed_names
from ray_lir.index.versions import listed_by, read_version, version_numbers
from ray_lir.storage.manifest import (
    LATEST,
    MANIFEST,
    PROVENANCE,
    FileEntry,
    check_file,
    create_manifest,
    manifest_digest,
    read_manifest,
    write_with_digest_name,
)

logger = logging.getLogger(__name__)

TOKENS_PER_SHARD = 50_000_000
CLUSTER_SIZES = "codec/cluster_sizes"
MEMORY = "memory-"
"""Beginning of the names in the work folder of embeddings that were given in memory."""
FOLDERS = (WORK, "codec", "shards", "tombstones", "versions")
WORK_OF_CHANGES = ("version-", "embeddings-", GARBAGE)
"""Beginnings of the names in the work folder that belong to updates, compactions and removals of versions."""


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
    map: Map = ray_lir.base.parallel.threads,
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
        Conflict: if another build published a different index there meanwhile; that index is left as it is.
        FormatError: if the embeddings are not what their manifest says.
        IncompatibleError: if they lack what their scorer needs in search.
    """
    config = config or IndexConfig()
    output = storage.absolute(output)
    if isinstance(embeddings, TokenEmbeddings):
        documents = documents_table(embeddings.doc_ids, titles, texts, metadata)
        return _build_from_memory(embeddings, output, config, contract, documents, relation, map)
    check_unused("build_index", contract=contract, texts=texts, titles=titles, metadata=metadata, relation=relation)
    source, config, identity = _read_source(embeddings, config)
    if _check_output(output):
        return _existing(output, identity)
    build = _prepare(storage.absolute(embeddings), source, output, config, digest(identity)[:16])
    storage.check_writable(output)
    try:
        with storage.wrap_errors("write to", output):
            return _build(build, source, identity, map)
    except Exception as error:
        return _overtaken(output, identity, build.work, error)


def _build_from_memory(
    embeddings: TokenEmbeddings,
    output: str,
    config: IndexConfig,
    contract: EncoderContract | None,
    documents: pa.Table,
    relation: Relation | None,
    map: Map,
) -> IndexManifest:
    """Save the embeddings in the work folder, under a digest of their content, and build from there."""
    was_built = _check_output(output)
    check_dimensions(embeddings.dim, config.codec.nbits)
    folder = storage.join(output, WORK, f"{MEMORY}{content_digest(embeddings, documents, contract, relation)}")
    try:
        write_embeddings(folder, embeddings, documents, contract, relation)
        return build_index(folder, output, config, map=map)
    except Conflict:
        raise
    except Exception:
        # Another build that finishes first removes this folder. Saved again, the embeddings say whether that index is the same.
        if was_built or not _check_output(output):
            raise
        write_embeddings(folder, embeddings, documents, contract, relation)
        return build_index(folder, output, config, map=map)
    finally:
        tidy(output, lambda name: name == storage.base_name(folder))


def _overtaken(output: str, identity: dict[str, Any], work: Work, error: Exception) -> IndexManifest:
    """Return the index that another run of the same build published, or explain why this build failed.

    Raises:
        Conflict: Another build published a different index.
        Exception: `error`, if no index is there.
    """
    if LATEST not in storage.list_names(output):
        raise error
    storage.remove_tree(work.root)
    try:
        return _existing(output, identity)
    except ConfigError:
        raise Conflict(
            f"another build, of other embeddings or with another configuration, published its index in {output} while this one ran, "
            "and this one was not published; choose another output"
        ) from error


def check_unused(function: str, **arguments: Any) -> None:
    """Raises ConfigError if an argument is given that only embeddings held in memory need: a folder has its own."""
    given = next((name for name, value in arguments.items() if value is not None), None)
    if given:
        raise ConfigError(f"{function} takes {given} only with TokenEmbeddings held in memory; a folder of embeddings has its own")


def _build(build: Build, source: EmbeddingsManifest, identity: dict[str, Any], map: Map) -> IndexManifest:
    records: list[dict[str, Any]] = []
    given = build.config.codec_from
    codec, assigner = codec_of(given, read_version(given)) if given else train_codec(build, map, records)
    compressed = compress(build, codec, assigner, map, records)
    counts = compressed.counts
    if not counts.unit and not given:
        codec = replace(codec, mean_norm=compressed.mean_norm)
    with phase("held-out", records) as record:
        # Under the codec of another index no document was trained on.
        held_out = compressed.mean_residual_norm if given else held_out_residual_norm(build, codec, compressed, map)
        record.update(residual_norm=held_out)
    shards = assemble(build, compressed.part_tokens, map, records)
    manifest = IndexManifest(
        contract=source.contract,
        dim=source.dim,
        nbits=codec.nbits,
        num_centroids=codec.num_centroids,
        num_docs=source.num_docs,
        num_tokens=counts.tokens,
        num_zero_rows=counts.zero_rows,
        unit_norms=counts.unit,
        codec=write_with_digest_name(build.output, "codec/codec", ".safetensors", codec.to_bytes()),
        cluster_sizes=write_with_digest_name(build.output, CLUSTER_SIZES, ".npy", array_bytes(compressed.sizes)),
        mean_residual_norm=compressed.mean_residual_norm,
        held_out_residual_norm=held_out,
        **source.truncation.fields,
        relation=_copy_scorer_file(build, source),
        shards=shards,
        config=identity,
    )
    return _publish(build, manifest, records)


def _copy_scorer_file(build: Build, source: EmbeddingsManifest) -> FileEntry | None:
    """Copy the file that the scorer needs in search into the index, if the embeddings come with one."""
    if source.scorer_file is None:
        return None
    scorer = scorer_of(source)
    content = scorer.check(storage.join(build.embeddings, source.scorer_file.name), source.dim)
    return write_with_digest_name(build.output, f"codec/{scorer.file_name}", ".safetensors", content)


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
    try:
        return IndexConfig.model_validate(manifest.config.get("index", {}))
    except ValidationError as error:
        first = error.errors()[0]
        found = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        fix = "restore the manifest, or upgrade ray_lir if a newer one built the index"
        raise FormatError("the index's manifest", "the configuration of an index build", found, fix) from None


def codec_of(index: str, manifest: IndexManifest) -> tuple[ResidualCodec, Assigner | TokenAssigner]:
    """The codec of an index, and what finds a vector's centroid in it as when the index was built."""
    check_file(index, manifest.codec, content=True)
    codec = read_codec(index, manifest)
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


def _publish(build: Build, manifest: IndexManifest, records: list[dict[str, Any]]) -> IndexManifest:
    """Make the version visible, then remove the work folder. Of several builds at once, the first to write the manifest wins.

    Returns:
        The manifest that is there: of this build, or of another run of the same build.

    Raises:
        Conflict: A different build was first.
    """
    if _check_output(build.output):
        try:
            return _existing(build.output, manifest.config)
        except ConfigError:
            _remove_unlisted(build.output, manifest)
            raise
    if storage.exists(storage.join(build.output, MANIFEST)):
        raise Conflict(f"another job wrote {MANIFEST} in {build.output} while this one ran; choose another output")
    version = storage.join(build.output, "versions", "1")
    try:
        create_manifest(storage.join(version, MANIFEST), manifest)
    except FileExistsError:
        first = read_version(build.output, 1)
        if first.config != manifest.config:
            _remove_unlisted(build.output, manifest)
            raise Conflict(
                f"another build, of other embeddings or with another configuration, publishes its index in {build.output}; choose "
                f"another output, or, if no other build is running, remove {version} and run this one again"
            ) from None
        manifest = first
    provenance = {"stages": records, "python": platform.python_version(), "numpy": np.__version__, "embeddings": build.embeddings}
    storage.write_bytes(storage.join(version, PROVENANCE), canonical_json(provenance))
    if LATEST not in storage.list_names(build.output):  # an update may have published version 2 since
        storage.write_bytes(storage.join(build.output, LATEST), b"1\n")
    _tidy(build.output)
    return manifest


def _remove_unlisted(output: str, manifest: IndexManifest) -> None:
    """Remove the files of a build that was not published, except those that the published index has too."""
    for name in listed_names(manifest) - listed_by(output, version_numbers(output)):
        storage.remove(storage.join(output, name))
