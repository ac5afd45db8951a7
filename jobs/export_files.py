"""Writes the files of an export. It is separate from jobs.export, so that `--help` loads neither NumPy nor Arrow."""

import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ray_lir import storage
from ray_lir.base.config import parse_json
from ray_lir.base.errors import ConfigError, Conflict
from ray_lir.base.progress import track
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.embeddings.parquet import TEXT_COLUMNS, Block, read_whole_documents
from ray_lir.embeddings.token_embeddings import TokenEmbeddings, concatenate
from ray_lir.index.codec import read_codec
from ray_lir.index.manifest import IndexManifest
from ray_lir.index.residuals import decompress, normalize
from ray_lir.index.shard import IndexShard, open_shard
from ray_lir.index.versions import read_version
from ray_lir.storage.manifest import (
    LATEST,
    MANIFEST,
    FileEntry,
    check_file,
    create_manifest,
    describe_file,
    manifest_digest,
    read_manifest,
)

from .export_manifest import ExportManifest, Layout

if TYPE_CHECKING:
    from .export import ExportJob

NAMESPACE = uuid.UUID("5f0c6f2e-4c0b-5b0e-9a53-6f5d8f6f0b57")
"""Namespace of the UUIDs that replace document ids in Qdrant. A repeated export gets the same UUIDs and replaces its points."""
VECTOR = "colbert"
"""Name of the vector in Qdrant."""
RELATION = "relation.safetensors"
"""File of a scorer's relation encoder (embeddings/relation.py)."""


def export(job: "ExportJob") -> dict[str, Any]:
    """Export the vectors and return the sizes.

    Raises:
        ConfigError: The output is not empty, the source holds no vectors, or the layout cannot hold what the scorer needs.
        Conflict: Another export wrote to the same output.
        FormatError: The source is damaged.
    """
    source, output = storage.absolute(job.source), storage.absolute(job.output)
    if storage.list_names(output):
        raise ConfigError(f"{output} is not empty; choose another --output, or remove it first")
    manifest, blocks = _open(source)
    num_docs = manifest.num_documents if isinstance(manifest, IndexManifest) else manifest.num_docs
    check_layout(manifest, job.layout)
    storage.check_writable(output)
    with storage.wrap_errors("write to", output):
        tracked = track(blocks, "export", num_docs, lambda block: len(block.embeddings))
        files = [
            entry
            for number, block in enumerate(_joined(iter(tracked), job.docs_per_file))
            for entry in _publish(output, number, block, LAYOUTS[job.layout])
        ]
        if manifest.relation:
            storage.write_bytes(storage.join(output, RELATION), storage.read_bytes(storage.join(source, manifest.relation.name)))
            files.append(describe_file(output, RELATION))
        if job.layout == "qdrant":
            storage.write_bytes(storage.join(output, "collection.json"), json.dumps(qdrant_collection(manifest.dim), indent=1).encode())
            files.append(describe_file(output, "collection.json"))
        exported = ExportManifest(
            contract=manifest.contract,
            layout=job.layout,
            dim=manifest.dim,
            num_docs=num_docs,
            num_tokens=manifest.num_tokens,
            source=manifest_digest(manifest),
            files=tuple(files),
        )
        try:
            create_manifest(storage.join(output, MANIFEST), exported)
        except FileExistsError:
            raise Conflict(f"another export wrote to {output} while this one ran; choose another --output and run again") from None
    return {
        "output": job.output,
        "layout": job.layout,
        "num_docs": num_docs,
        "num_tokens": manifest.num_tokens,
        "files": len(files),
        "bytes": sum(entry.size for entry in files),
    }


def check_layout(manifest: EmbeddingsManifest | IndexManifest, layout: Layout) -> None:
    """Check that the layout's system can compute the scorer.

    Raises:
        ConfigError: It cannot.
    """
    contract = manifest.contract
    lost = "token weights" if "documents" in contract.weighs else "relations" if manifest.relation else None
    if layout == "qdrant" and lost:
        raise ConfigError(
            f"Qdrant supports MaxSim only, and scorer {contract.scorer} of {contract.checkpoint} needs {lost}; "
            "choose --layout npy or parquet, which store them, or encode the corpus with a maxsim checkpoint"
        )


def _open(source: str) -> tuple[EmbeddingsManifest | IndexManifest, Iterator[Block]]:
    if LATEST in storage.list_names(source):
        if not storage.is_local(source):
            raise ConfigError(f"{source} is not on a local disk; copy the index to one, or export the embeddings that it was built from")
        index = read_version(source)
        if index.relation:
            check_file(source, index.relation)
        return index, index_blocks(source, index)
    embeddings = read_manifest(storage.join(source, MANIFEST), EmbeddingsManifest, "jobs.encode or jobs.build_index")
    for part in (*embeddings.parts, *([embeddings.relation] if embeddings.relation else [])):
        check_file(source, part)
    return embeddings, (block for part in embeddings.parts for block in read_whole_documents(storage.join(source, part.name)))


def index_blocks(root: str, manifest: IndexManifest, docs_per_block: int = 256) -> Iterator[Block]:
    """Yield the live documents of an index in order, with decoded vectors and token weights.

    Vectors are rotated back. If the index was built from unit vectors, they are normalised.

    Args:
        root: Folder of the index.
        manifest: Manifest of its version.
        docs_per_block: Documents in a block, at most.
    """
    codec = read_codec(root, manifest)
    for entry in manifest.shards:
        shard = open_shard(root, entry, manifest)
        for rows in _row_blocks(shard, docs_per_block):
            tokens, offsets = shard.tokens(rows)
            vectors = decompress(shard.codes[tokens], shard.residuals[tokens], shard.scales[tokens], codec)
            vectors = normalize(vectors) if manifest.unit_norms else vectors
            vectors = vectors if codec.rotation is None else vectors @ codec.rotation.T
            texts = shard.documents.slice(rows[0], rows[-1] + 1 - rows[0]).take(pa.array(rows - rows[0]))
            weights = shard.token_weights(tokens)
            weights = None if weights is None else weights.astype(np.float32)
            embeddings = TokenEmbeddings(vectors.astype(np.float16), offsets, texts.column("doc_id").to_pylist(), weights=weights)
            yield _whole(shard, rows, embeddings, texts) if shard.of_passages else Block(embeddings, texts)


def _row_blocks(shard: IndexShard, docs_per_block: int) -> Iterator[np.ndarray]:
    """Yield the live rows of a shard in blocks; all passages of a document are in one block."""
    rows = shard.found_documents
    starts = np.append(np.flatnonzero(np.diff(shard.parents[rows], prepend=-1)), len(rows))
    for first in range(0, len(starts) - 1, docs_per_block):
        yield rows[starts[first] : starts[min(first + docs_per_block, len(starts) - 1)]]


def _whole(shard: IndexShard, rows: np.ndarray, embeddings: TokenEmbeddings, texts: pa.Table) -> Block:
    """Return passages as whole documents."""
    parents, counts = np.unique(shard.parents[rows], return_counts=True)
    documents = pa.Table.from_pylist([shard.whole_row(int(row)) for row in parents], texts.schema)
    return Block(embeddings.joined(counts.tolist(), documents.column("doc_id").to_pylist()), documents)


def _joined(blocks: Iterator[Block], docs_per_file: int) -> Iterator[Block]:
    """Joins blocks until they hold at least `docs_per_file` documents."""
    held: list[Block] = []
    for block in blocks:
        held.append(block)
        if sum(len(each.embeddings) for each in held) >= docs_per_file:
            yield _join(held)
            held = []
    if held:
        yield _join(held)


def _join(blocks: list[Block]) -> Block:
    return Block(concatenate([block.embeddings for block in blocks]), pa.concat_tables([block.texts for block in blocks]))


def _publish(output: str, number: int, block: Block, write: Callable[[Path, int, Block], None]) -> list[FileEntry]:
    """Writes the files of one block to a scratch folder, then moves each to the output."""
    with storage.attempt_folder(output) as folder:
        write(folder, number, block)
        entries = [describe_file(str(folder), path.name) for path in sorted(folder.iterdir())]
        for entry in entries:
            storage.publish(folder / entry.name, storage.join(output, entry.name))
    return entries


def write_npy(folder: Path, number: int, block: Block) -> None:
    """Write embeddings-N.npy [T, dim] float16, doclens-N.npy [documents] int64, doc_ids-N.json, and weights-N.npy [T] float32 if present.

    Args:
        folder: Folder to write to.
        number: N.
        block: Documents, vectors and weights.
    """
    np.save(folder / f"embeddings-{number:05d}.npy", block.embeddings.values)
    np.save(folder / f"doclens-{number:05d}.npy", block.embeddings.lengths)
    if block.embeddings.weights is not None:
        np.save(folder / f"weights-{number:05d}.npy", block.embeddings.weights)
    (folder / f"doc_ids-{number:05d}.json").write_text(json.dumps(list(block.embeddings.doc_ids), ensure_ascii=False))


def write_parquet(folder: Path, number: int, block: Block) -> None:
    """Write part-N.parquet: doc_id, title, text, metadata, vectors (lists of fixed-size lists of float32), and weights if present.

    Args:
        folder: Folder to write to.
        number: N.
        block: Documents, vectors and weights.
    """
    values = pa.array(block.embeddings.values.astype(np.float32).reshape(-1))
    offsets = pa.array(block.embeddings.offsets.astype(np.int32))
    vectors = pa.ListArray.from_arrays(offsets, pa.FixedSizeListArray.from_arrays(values, block.embeddings.dim))
    table = block.texts.select(["doc_id", *TEXT_COLUMNS]).append_column("vectors", vectors)
    if block.embeddings.weights is not None:
        table = table.append_column("weights", pa.ListArray.from_arrays(offsets, pa.array(block.embeddings.weights)))
    pq.write_table(table, folder / f"part-{number:05d}.parquet", row_group_size=1024, compression="zstd")


def write_qdrant(folder: Path, number: int, block: Block) -> None:
    """Write points-N.jsonl: one point a line, for {"points": [...]} of PUT /collections/NAME/points.

    Documents without tokens are left out.

    Args:
        folder: Folder to write to.
        number: N.
        block: Documents and vectors.
    """
    with open(folder / f"points-{number:05d}.jsonl", "w") as file:
        for vectors, row in zip(block.embeddings, block.texts.to_pylist(), strict=True):
            if len(vectors):  # Qdrant refuses an empty multivector
                payload = {**row, "metadata": parse_json(row["metadata"])}
                point = {"id": str(uuid.uuid5(NAMESPACE, row["doc_id"])), "vector": {VECTOR: _rounded(vectors)}, "payload": payload}
                file.write(json.dumps(point, ensure_ascii=False) + "\n")


def _rounded(vectors: np.ndarray) -> list[list[float]]:
    """Vectors rounded to five digits, which keep every float16 value."""
    return [[float(f"{value:.5g}") for value in vector] for vector in vectors.tolist()]


def qdrant_collection(dim: int) -> dict[str, Any]:
    """Return the body of PUT /collections/NAME: MaxSim over the multivector, without an HNSW graph."""
    vector = {
        "size": dim,
        "distance": "Dot",
        "multivector_config": {"comparator": "max_sim"},
        "hnsw_config": {"m": 0},
        "datatype": "float16",
    }
    return {"vectors": {VECTOR: vector}}


LAYOUTS: dict[str, Callable[[Path, int, Block], None]] = {"npy": write_npy, "parquet": write_parquet, "qdrant": write_qdrant}
