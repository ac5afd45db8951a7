"""The collection that compare.py searches, in several sizes: a BEIR folder as token embeddings, and copies of it.

Size "small" is the collection itself. Larger sizes add copies, made by mixing and noise: the first half of a document's
tokens is followed by the second half of another document's, and Gaussian noise is added to every token. Copies are seeded,
so a size is the same on every machine. Copies have no judgements, so nDCG is measured at the small size only.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.peers import inputs
from bench.peers.inputs import Texts
from ray_lir.base.parallel import one_blas_thread, threads
from ray_lir.corpus.datasets import load_dataset
from ray_lir.embeddings.folder import publish_part
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.embeddings.parquet import Block, texts_table
from ray_lir.embeddings.token_embeddings import TokenEmbeddings, concatenate
from ray_lir.evaluation import oracle
from ray_lir.storage.manifest import MANIFEST, read_manifest, write_manifest

SIZES = {"tiny": 1 / 3, "small": 1, "medium": 3, "big": 10, "huge": 30}
"""Copies of the collection in each size; tiny is the first third of it."""
DIM = 128
NOISE = 0.3
"""Length of the noise added to a token of length 1."""
SEED = 0
DOCS_PER_BLOCK = 512
ORACLE = "oracle.npy"
DEPTH = 100
"""Documents in the oracle's ranking of each query."""


@dataclass(frozen=True)
class Collection:
    """One size, in a folder with the input of every system."""

    folder: Path
    doc_ids: list[str]
    query_ids: list[str]
    qrels: dict[str, dict[str, int]] | None
    """None if the documents are not judged."""

    @property
    def has_oracle(self) -> bool:
        """Whether the oracle's ranking is stored."""
        return (self.folder / ORACLE).exists()

    def oracle(self) -> np.ndarray:
        """Return the [Q, DEPTH] best documents by exact MaxSim in float32 over the embeddings; computed once."""
        path = self.folder / ORACLE
        if not self.has_oracle:
            queries, documents = (inputs.load(self.folder, name) for name in ("queries", "documents"))
            print(f"oracle of {self.folder.name}: {documents.num_tokens} tokens", file=sys.stderr, flush=True)
            np.save(path, _exact_ranking(queries, documents, DEPTH))
        return np.load(path)


def open_collection(dataset: Path | None, size: str, work: Path) -> Collection:
    """Return the collection at a size; it is made on first use.

    Args:
        dataset: BEIR folder. None: the work folder already has the size.
        size: A key of SIZES.
        work: Work folder, with one folder for each size.
    """
    folder = work / size
    if not (folder / "about.json").exists():
        if dataset is None:
            sys.exit(f"error: {folder} does not exist yet; set --dataset to the BEIR folder to make it from")
        _make(dataset, SIZES[size], work, folder)
    return Collection(folder, **json.loads((folder / "about.json").read_text()))


def _make(dataset: Path, times: float, work: Path, folder: Path) -> None:
    from ray_lir.encoder.encoder import Encoder, EncoderConfig  # imports torch, which nothing else here needs

    encoded = work / f"{dataset.name}{DIM}"
    if not (encoded / MANIFEST).exists():
        command = ["jobs.encode", "--corpus", str(dataset), "--output", str(encoded), "--encoder.projection", f"pca:{DIM}"]
        if subprocess.run([sys.executable, "-m", *command], check=False, stdout=sys.stderr).returncode:
            sys.exit(f"error: {dataset} could not be encoded; jobs.encode says above why")
    manifest = read_manifest(str(encoded / MANIFEST), EmbeddingsManifest, "jobs.encode")
    judged = load_dataset(str(dataset), "test")
    encoder = Encoder.load(EncoderConfig(checkpoint=manifest.contract.checkpoint))
    queries = encoder.encode_queries(list(judged.queries.values()), list(judged.queries))
    inputs.save(folder, "queries", Texts(queries.values, queries.offsets))
    source = concatenate(list(oracle.read_embeddings(str(encoded), manifest)))
    source = source.slice(0, round(min(times, 1) * len(source)))
    doc_ids = write_copies(source, max(1, int(times)), manifest, folder)
    about = {"doc_ids": doc_ids, "query_ids": list(queries.doc_ids), "qrels": judged.qrels if times == 1 else None}
    (folder / "about.json").write_text(json.dumps(about))


def write_copies(source: TokenEmbeddings, copies: int, manifest: EmbeddingsManifest, folder: Path) -> list[str]:
    """Write the documents as NumPy files and as an embeddings folder, one block at a time.

    Args:
        source: Token embeddings of the collection.
        copies: Number of copies; the first is the collection itself.
        manifest: Manifest of the collection's embeddings, for the contract.
        folder: Folder of the size.

    Returns:
        Ids of all documents.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shape = (source.num_tokens * copies, source.dim)
    values = np.lib.format.open_memmap(folder / "documents.npy", "w+", np.float16, shape)
    lengths, token_ids, doc_ids, parts, first = [], [], [], [], 0
    for block in (block for number in range(copies) for block in copy_of(source, number)):
        values[first : first + block.num_tokens] = block.values
        first += block.num_tokens
        lengths.append(block.lengths)
        token_ids.append(block.token_ids)
        doc_ids += block.doc_ids
        empty = [""] * len(block)
        texts = texts_table(block.doc_ids, empty, empty, ["{}"] * len(block))
        parts.append(publish_part(str(folder / "embeddings"), len(parts), [Block(block, texts)], manifest.contract.fingerprint))
    values.flush()
    np.save(folder / "documents-offsets.npy", np.concatenate([[0], np.cumsum(np.concatenate(lengths))]))
    if source.token_ids is not None:
        np.save(folder / inputs.TOKEN_IDS, np.concatenate(token_ids).astype(np.int64))
    whole = manifest.model_copy(update={"num_docs": len(doc_ids), "num_tokens": first, "parts": tuple(parts)})
    write_manifest(str(folder / "embeddings" / MANIFEST), whole)
    return doc_ids


def copy_of(source: TokenEmbeddings, number: int) -> Iterator[TokenEmbeddings]:
    """Yield copy `number` of the documents in blocks; copy 0 is the original. Every copy has the same number of tokens."""
    random = np.random.default_rng([SEED, number])
    partners = random.permutation(len(source))
    for start in range(0, len(source), DOCS_PER_BLOCK):
        stop = min(start + DOCS_PER_BLOCK, len(source))
        if number == 0:
            yield source.slice(start, stop)
            continue
        rows = [_halves(source, document, partners[document]) for document in range(start, stop)]
        mixed = np.concatenate(rows)
        values = source.values[mixed].astype(np.float32)
        values += random.normal(0, NOISE / np.sqrt(source.dim), values.shape).astype(np.float32)
        values /= np.linalg.norm(values, axis=1, keepdims=True)
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
        doc_ids = [f"{doc_id}~{number}" for doc_id in source.doc_ids[start:stop]]
        token_ids = None if source.token_ids is None else source.token_ids[mixed]
        yield TokenEmbeddings(values.astype(np.float16), offsets, doc_ids, token_ids)


def _halves(source: TokenEmbeddings, document: int, partner: int) -> np.ndarray:
    """Rows of a document's first half and its partner's second half; over all documents, each row appears once."""
    first, last = source.offsets[document : document + 2]
    partner_first, partner_last = source.offsets[partner : partner + 2]
    return np.concatenate([np.arange(first, (first + last + 1) // 2), np.arange((partner_first + partner_last + 1) // 2, partner_last)])


def _exact_ranking(queries: Texts, documents: Texts, depth: int) -> np.ndarray:
    """Return the [Q, depth] documents of highest MaxSim in float32, best first, ties to the lower number.

    Scoring one document at a time is twice as fast as a block of documents, because its similarities stay in the caches.
    """
    queries_DN = np.ascontiguousarray(queries.values.astype(np.float32).T)

    def scores_Q(number: int) -> np.ndarray:
        best_N = (documents[number].astype(np.float32) @ queries_DN).max(axis=0, initial=-np.inf)
        return np.add.reduceat(best_N, queries.offsets[:-1], dtype=np.float64).astype(np.float32)

    with one_blas_thread():
        scores_BQ = np.stack(list(threads(scores_Q, range(len(documents)))))
    return np.argsort(-scores_BQ, axis=0, kind="stable")[:depth].T
