"""Building an index from a folder of token embeddings: train the codec, compress every part, assemble shards, publish.

A `Map` applies each step to every part of the embeddings, or to every shard. The results of a step go to the workspace, so a killed build
continues. Files get their published names only when they are complete. The codec does not depend on the number of shards, so search
results do not either.
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
from ray_lir.building.lexical import check_has_terms, count_terms
from ray_lir.building.token_clustering import TokenAssigner
from ray_lir.building.workspace import GARBAGE, WORKSPACES, Build, Workspace, remove_workspaces
from ray_lir.embeddings.attention import weighted_contract
from ray_lir.embeddings.contract import EncoderContract
from ray_lir.embeddings.folder import content_digest, documents_table, write_embeddings
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.embeddings.relation import Relation
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.engines.scoring.registry import check_complete, scorer_of
from ray_lir.index.arrays import array_bytes
from ray_lir.index.codec import ResidualCodec, check_dimensions, read_codec
from ray_lir.index.lexical import write_statistics
from ray_lir.index.manifest import INDEX_FOLDERS, IndexManifest, listed_names
from ray_lir.index.versions import listed_by, read_version, version_numbers
from ray_lir.storage.manifest import (
    FORMAT_VERSION,
    LATEST,
    MANIFEST,
    PROVENANCE,
    RESIDUAL_BYTES_VERSION,
    TRELLIS_VERSION,
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
"""Prefix of the workspaces that hold embeddings passed in memory."""
FOLDERS = (WORKSPACES, *INDEX_FOLDERS, "versions")
CHANGE_PREFIXES = ("version-", "embeddings-", GARBAGE)
"""Prefixes of the workspaces of updates, compactions and removals of versions."""


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
    """Build version 1 of an index and publish it atomically.

    Args:
        embeddings: Folder that jobs.encode or save_embeddings wrote, or token embeddings in memory.
        output: Folder of the index, on a disk or an object store.
        config: Shards, clustering and codec, or the index that provides the codec; None for the defaults.
        contract: For embeddings in memory: the contract of their encoder.
        texts: For embeddings in memory: one text a document.
        titles: For embeddings in memory: one title a document.
        metadata: For embeddings in memory: a dict of JSON values for each document.
        relation: For embeddings in memory: `Encoder.relation` of their encoder; None if its scorer has none.
        map: Where the steps run: threads of this process, plain `map`, or distributed.ray_map. The bytes are the same.
    Returns:
        The manifest. An index that exists with this configuration does not change.
    Raises:
        ConfigError: The output holds something else, or the configuration does not fit the embeddings.
        Conflict: Another build published a different index there meanwhile. That index does not change.
        FormatError: The embeddings differ from their manifest.
        IncompatibleError: The embeddings lack data that their scorer needs in search.
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
        return _overtaken(output, identity, build.workspace, error)


def _build_from_memory(
    embeddings: TokenEmbeddings,
    output: str,
    config: IndexConfig,
    contract: EncoderContract | None,
    documents: pa.Table,
    relation: Relation | None,
    map: Map,
) -> IndexManifest:
    """Save the embeddings in a workspace named by a digest of their content, and build from there."""
    was_built = _check_output(output)
    check_dimensions(embeddings.dim, config.codec.nbits, config.codec.residual_bytes)
    folder = storage.join(output, WORKSPACES, f"{MEMORY}{content_digest(embeddings, documents, contract, relation)}")
    try:
        write_embeddings(folder, embeddings, documents, contract, relation)
        return build_index(folder, output, config, map=map)
    except Conflict:
        raise
    except Exception:
        # Another build that finishes first removes this folder. Saving the embeddings again shows whether its index is the same.
        if was_built or not _check_output(output):
            raise
        write_embeddings(folder, embeddings, documents, contract, relation)
        return build_index(folder, output, config, map=map)
    finally:
        remove_workspaces(output, lambda name: name == storage.base_name(folder))


def _overtaken(output: str, identity: dict[str, Any], workspace: Workspace, error: Exception) -> IndexManifest:
    """Return the index that another run of the same build published.

    Raises:
        Conflict: Another build published a different index.
        Exception: `error`, if there is no index.
    """
    if LATEST not in storage.list_names(output):
        raise error
    storage.remove_tree(workspace.root)
    try:
        return _existing(output, identity)
    except ConfigError:
        raise Conflict(
            f"another build, from other embeddings or with another configuration, published its index in {output} while this one ran, "
            "so this one was not published; choose another output"
        ) from error


def check_unused(function: str, **arguments: Any) -> None:
    """Check that arguments for embeddings in memory are None: a folder of embeddings has its own.

    Raises:
        ConfigError: An argument is not None; the message names it and `function`.
    """
    used = next((name for name, value in arguments.items() if value is not None), None)
    if used:
        raise ConfigError(f"{function} takes {used} only with TokenEmbeddings held in memory; a folder of embeddings has its own")


def _build(build: Build, source: EmbeddingsManifest, identity: dict[str, Any], map: Map) -> IndexManifest:
    records: list[dict[str, Any]] = []
    codec_from = build.config.codec_from
    codec, assigner = codec_of(codec_from, read_version(codec_from)) if codec_from else train_codec(build, map, records)
    compressed = compress(build, codec, assigner, map, records)
    counts = compressed.counts
    if not counts.unit and not codec_from:
        codec = replace(codec, mean_norm=compressed.mean_norm)
    with phase("held-out", records) as record:
        # The codec of another index was not trained on any of these documents.
        held_out = compressed.mean_residual_norm if codec_from else held_out_residual_norm(build, codec, compressed, map)
        record.update(residual_norm=held_out)
    shards = assemble(build, compressed.part_tokens, map, records)
    lexical = None
    if build.config.lexical:
        terms = count_terms(build.output, shards, map, records)
        check_has_terms(terms)
        lexical = write_statistics(build.output, build.config.stemmer, terms)
    manifest = IndexManifest(
        format_version=RESIDUAL_BYTES_VERSION if codec.residual_bytes else TRELLIS_VERSION if codec.has_trellis else FORMAT_VERSION,
        contract=source.contract,
        dim=source.dim,
        nbits=codec.nbits,
        residual_bytes=codec.residual_bytes,
        num_centroids=codec.num_centroids,
        num_docs=sum(shard.num_docs for shard in shards),
        num_tokens=counts.tokens,
        num_whole_docs=source.num_docs if source.contract.has_passages else None,
        num_zero_rows=counts.zero_rows,
        unit_norms=counts.unit,
        codec=write_with_digest_name(build.output, "codec/codec", ".safetensors", codec.to_bytes()),
        cluster_sizes=write_with_digest_name(build.output, CLUSTER_SIZES, ".npy", array_bytes(compressed.sizes)),
        mean_residual_norm=compressed.mean_residual_norm,
        held_out_residual_norm=held_out,
        **source.truncation.fields,
        relation=_copy_scorer_file(build, source),
        lexical=lexical,
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
    """Return whether the output holds an index.

    Raises:
        ConfigError: It holds something else.
    """
    names = storage.list_names(output)
    if LATEST in names:
        return True
    foreign = [name for name in names if name not in FOLDERS and not name.startswith(".")]
    if foreign:
        raise ConfigError(f"{output} is not empty and holds no index (it holds {foreign[0]}); choose another output")
    return False


def _existing(output: str, identity: dict[str, Any]) -> IndexManifest:
    manifest = read_version(output)
    if {name: value for name, value in manifest.config.items() if name != "change"} != identity:
        raise ConfigError(
            f"{output} holds an index of other embeddings or another configuration; choose another output, or remove it first"
        )
    _remove_workspaces(output)
    since = f", and changes since made version {manifest.change.parent + 1}" if manifest.change else ""
    logger.info("%s is built already with this configuration%s; nothing to do", output, since)
    return manifest


def _remove_workspaces(output: str) -> None:
    """Remove the workspaces of this build, and of builds that were killed or lost the race to publish the index."""
    remove_workspaces(output, lambda name: not name.startswith(CHANGE_PREFIXES))


def settings_of(manifest: IndexManifest) -> IndexConfig:
    """Return the configuration of an index's build.

    Raises:
        FormatError: The manifest's configuration is damaged, or from a newer version.
    """
    try:
        return IndexConfig.model_validate(manifest.config.get("index", {}))
    except ValidationError as error:
        first = error.errors()[0]
        found = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        fix = "restore the manifest, or upgrade ray_lir if a newer one built the index"
        raise FormatError("the index's manifest", "the configuration of an index build", found, fix) from None


def codec_of(index: str, manifest: IndexManifest) -> tuple[ResidualCodec, Assigner | TokenAssigner]:
    """Return the codec of an index, and the assigner that the index was built with.

    Raises:
        FormatError: The codec is missing or damaged.
    """
    check_file(index, manifest.codec, content=True)
    codec = read_codec(index, manifest)
    return codec, assigner_over(codec.centroids_f32, codec.token_offsets, settings_of(manifest).clustering)


def prepare_build(embeddings: storage.PathOrUrl, output: storage.PathOrUrl, config: IndexConfig) -> Build:
    """Return the inputs and settings of a build; nothing is written.

    Args:
        embeddings: Folder of token embeddings.
        output: Folder of the index.
        config: Shards, clustering and codec.
    Raises:
        ConfigError: The output holds something other than an index, or the configuration does not fit the embeddings.
        FormatError: The embeddings differ from their manifest.
    """
    source, config, identity = _read_source(embeddings, config)
    output = storage.absolute(output)
    _check_output(output)
    return _prepare(storage.absolute(embeddings), source, output, config, digest(identity)[:16])


def _read_source(embeddings: storage.PathOrUrl, config: IndexConfig) -> tuple[EmbeddingsManifest, IndexConfig, dict[str, Any]]:
    """Return the embeddings' manifest, the configuration with the settings of codec_from, and the identity of the index."""
    source = read_manifest(storage.join(storage.absolute(embeddings), MANIFEST), EmbeddingsManifest, "jobs.encode")
    identity: dict[str, Any] = {"embeddings": manifest_digest(source)}
    source = source.model_copy(update={"contract": weighted_contract(source.contract, config.attention)})
    if config.codec_from:
        codec_from = storage.absolute(config.codec_from)
        config = config.model_copy(update={"codec_from": codec_from})
        other = read_version(codec_from)
        config = _with_codec_of(other, config, source)
        identity["codec"] = other.codec.sha256
    return source, config, identity | {"index": config.model_dump(mode="json")}


def _with_codec_of(other: IndexManifest, config: IndexConfig, source: EmbeddingsManifest) -> IndexConfig:
    """Return the configuration with the clustering and codec settings of another index.

    Raises:
        ConfigError: The configuration asks for different settings, or the dimensions differ.
    """
    settings = settings_of(other)
    for name in ("clustering", "codec"):
        value, default = getattr(config, name), getattr(IndexConfig(), name)
        if value not in (default, getattr(settings, name)):
            raise ConfigError(f"{name} settings differ from the codec of codec_from {config.codec_from}; leave them out")
    if other.dim != source.dim:
        raise ConfigError(f"the embeddings have {source.dim} dimensions and the index codec_from {other.dim}; give another index")
    return config.model_copy(update={"clustering": settings.clustering, "codec": settings.codec})


def _prepare(embeddings: str, source: EmbeddingsManifest, output: str, config: IndexConfig, name: str) -> Build:
    check_dimensions(source.dim, config.codec.nbits, config.codec.residual_bytes)
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
        workspace=Workspace(storage.join(output, WORKSPACES, name)),
    )


def _publish(build: Build, manifest: IndexManifest, records: list[dict[str, Any]]) -> IndexManifest:
    """Publish the version, then remove the workspace. If several builds run at once, the first to write the manifest wins.

    Returns:
        The published manifest, written by this run or by another run of the same build.

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
                f"another build, from other embeddings or with another configuration, publishes its index in {build.output}; choose "
                f"another output, or, if no other build is running, remove {version} and run this one again"
            ) from None
        manifest = first
    provenance = {"stages": records, "python": platform.python_version(), "numpy": np.__version__, "embeddings": build.embeddings}
    storage.write_bytes(storage.join(version, PROVENANCE), canonical_json(provenance))
    if LATEST not in storage.list_names(build.output):  # an update may have published version 2 since
        storage.write_bytes(storage.join(build.output, LATEST), b"1\n")
    _remove_workspaces(build.output)
    return manifest


def _remove_unlisted(output: str, manifest: IndexManifest) -> None:
    """Remove the files of a build that was not published, except files that the published index lists too."""
    for name in listed_names(manifest) - listed_by(output, version_numbers(output)):
        storage.remove(storage.join(output, name))
