"""A folder of token embeddings: publish its parts and manifest, or write a whole folder from embeddings in memory."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from ray_lir import storage
from ray_lir.base.arguments import aligned_mappings, aligned_texts, new_ids
from ray_lir.base.config import DOCS_PER_PART, canonical_json
from ray_lir.base.errors import ConfigError
from ray_lir.corpus.metadata import to_json
from ray_lir.embeddings.contract import EncoderContract, check_weights
from ray_lir.embeddings.manifest import EmbeddingPart, EmbeddingsManifest
from ray_lir.embeddings.parquet import Block, texts_table, write_part
from ray_lir.embeddings.relation import Relation
from ray_lir.embeddings.token_embeddings import TokenEmbeddings, check_embeddings
from ray_lir.storage.manifest import MANIFEST, FileEntry, write_manifest, write_with_digest_name

FOLDER = "embeddings"


def publish_part(root: str, number: int, blocks: Iterable[Block], fingerprint: str, scratch: str | None = None) -> EmbeddingPart:
    """Write one part below `root`. Its name carries a digest of its content, so a second attempt writes the same file.

    Args:
        root: The folder of embeddings.
        number: Position of the part.
        blocks: Documents of the part with their token embeddings.
        fingerprint: Fingerprint of the encoder contract.
        scratch: Folder for the unfinished file, which remains there if the process is killed; None: `root`.

    Returns:
        The manifest entry of the part.
    """
    with storage.attempt_folder(scratch or root) as folder:
        attempt = folder / "part.parquet"
        num_docs, num_tokens = write_part(attempt, blocks, fingerprint)
        sha256, size = storage.sha256(str(attempt)), attempt.stat().st_size
        name = f"{FOLDER}/part-{number:05d}-{sha256[:12]}.parquet"
        storage.publish(attempt, storage.join(root, name))
    return EmbeddingPart(name=name, size=size, sha256=sha256, num_docs=num_docs, num_tokens=num_tokens)


def write_relation(root: str, relation: Relation | None) -> FileEntry | None:
    """Write the relation encoder beside the parts; return its manifest entry, or None without a relation encoder."""
    return write_with_digest_name(root, f"{FOLDER}/relation", ".safetensors", relation.to_bytes()) if relation else None


def external_contract(dim: int, has_weights: bool = False) -> EncoderContract:
    """Return a contract for embeddings of an unknown encoder; it states only `dim` and whether documents have weights."""
    weighs: tuple[Literal["documents"], ...] = ("documents",) if has_weights else ()
    return EncoderContract(checkpoint="external", weights_digest="", dim=dim, weighs=weighs, query_length=1, document_length=1)


def documents_table(
    doc_ids: Sequence[str],
    titles: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
    metadata: Sequence[Mapping[str, Any] | None] | None = None,
) -> pa.Table:
    """Return the documents as a table with the columns doc_id, title, text and metadata (JSON objects).

    Args:
        doc_ids: N document ids.
        titles: N titles; None: empty titles.
        texts: N texts; None: empty texts.
        metadata: N dicts of JSON values, or None for a document without metadata; None: no metadata at all.

    Raises:
        ConfigError: A list has another length or a wrong type, or an id is invalid or repeated.
    """
    doc_ids = new_ids("doc_ids", doc_ids)
    count = len(doc_ids)
    objects = ["{}"] * count
    if metadata is not None:
        objects = [to_json(each, f"metadata[{number}]") for number, each in enumerate(aligned_mappings("metadata", metadata, count))]
    return texts_table(
        doc_ids,
        [""] * count if titles is None else aligned_texts("titles", titles, count),
        [""] * count if texts is None else aligned_texts("texts", texts, count),
        objects,
    )


def save_embeddings(
    root: storage.PathOrUrl,
    embeddings: TokenEmbeddings,
    contract: EncoderContract | None = None,
    texts: Sequence[str] | None = None,
    relation: Relation | None = None,
    *,
    titles: Sequence[str] | None = None,
    metadata: Sequence[Mapping[str, Any] | None] | None = None,
) -> EmbeddingsManifest:
    """Write token embeddings from memory as a folder that `build_index` reads.

    Args:
        root: The folder; its manifest.json is written last.
        embeddings: Token embeddings of N documents.
        contract: The contract of the encoder; None: unknown encoder.
        texts: N texts, returned with search results; None: empty texts.
        relation: `Encoder.relation` of the encoder; None if its scorer has none.
        titles: N titles, returned with search results; None: empty titles.
        metadata: N dicts of JSON values, for filters and search results; None: no metadata.

    Returns:
        The manifest of the folder.

    Raises:
        ConfigError: There are no documents, or a list has another length. Nothing is written.
        IncompatibleError: The contract requires token weights that are missing, or the reverse.
    """
    embeddings = check_embeddings("embeddings", embeddings)
    table = documents_table(embeddings.doc_ids, titles, texts, metadata)
    return write_embeddings(storage.absolute(root), embeddings, table, contract, relation)


def write_embeddings(
    root: str,
    embeddings: TokenEmbeddings,
    documents: pa.Table,
    contract: EncoderContract | None = None,
    relation: Relation | None = None,
) -> EmbeddingsManifest:
    """Write a folder of embeddings, with the documents as `documents_table` returns them.

    Args:
        root: The folder; its manifest.json is written last.
        embeddings: Token embeddings of N documents.
        documents: Table of N rows.
        contract: The contract of the encoder; None: unknown encoder.
        relation: The relation encoder; None if the scorer has none.

    Returns:
        The manifest of the folder.

    Raises:
        ConfigError: There are no documents.
        IncompatibleError: The contract requires token weights that are missing, or the reverse.
    """
    contract = contract or external_contract(embeddings.dim, embeddings.weights is not None)
    check_weights(contract, "documents", embeddings.weights is not None)
    if len(embeddings) == 0:
        raise ConfigError("there are no documents to save; give at least one")
    parts = []
    for number, start in enumerate(range(0, len(embeddings), DOCS_PER_PART)):
        chunk = embeddings.slice(start, min(start + DOCS_PER_PART, len(embeddings)))
        block = Block(chunk, documents.slice(start, len(chunk)))
        parts.append(publish_part(root, number, [block], contract.fingerprint))
    manifest = EmbeddingsManifest(
        contract=contract,
        dim=embeddings.dim,
        num_docs=len(embeddings),
        num_tokens=embeddings.num_tokens,
        parts=tuple(parts),
        relation=write_relation(root, relation),
    )
    write_manifest(storage.join(root, MANIFEST), manifest)
    return manifest


def content_digest(
    embeddings: TokenEmbeddings, documents: pa.Table, contract: EncoderContract | None = None, relation: Relation | None = None
) -> str:
    """Return 16 hex digits over everything that `write_embeddings` writes; the arguments are the same.

    Args:
        embeddings: Token embeddings of N documents.
        documents: Table of N rows.
        contract: The contract of the encoder; None: unknown encoder.
        relation: The relation encoder; None if the scorer has none.
    """
    described = [embeddings.offsets.tolist(), documents.to_pydict(), contract and contract.model_dump(mode="json")]
    sha256 = hashlib.sha256(canonical_json(described))
    arrays = [embeddings.values, embeddings.token_ids, embeddings.weights]
    for array in arrays if embeddings.attention is None else [*arrays, embeddings.attention]:
        sha256.update(b"none" if array is None else f"{array.dtype} {array.shape}".encode())
        sha256.update(b"" if array is None else np.ascontiguousarray(array).data)
    sha256.update(relation.to_bytes() if relation else b"")
    return sha256.hexdigest()[:16]
