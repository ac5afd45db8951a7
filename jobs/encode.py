"""Encodes a corpus into a folder of token embeddings."""

import time
from typing import Any

from pydantic import Field

from ray_lir import storage
from ray_lir.base.config import DOCS_PER_PART, AttentionChanges, Config, EncoderConfig
from ray_lir.corpus.refused_rows import DEAD_LETTERS
from ray_lir.distributed.workers import Workers

from .cli import main
from .where import JobSize, Where, encoding, runs_on_ray, session


class EncodeJob(Config):
    """Encodes the documents of a corpus into Parquet files of token embeddings with a manifest.

    A row of the corpus has an id and a `text`. The id is `_id`, `doc_id` or `id`, text or a whole number. A `title` is optional and is
    encoded in front of the text. `metadata` (an object) and all other fields are stored with the document, for filters and hits.
    Invalid rows go to dead_letters/ in the output folder, with the reason.
    """

    corpus: str
    """Folder of a collection (BEIR, LoTTE, MS MARCO), JSONL, TSV or Parquet file (also .gz), or a folder of such files: a path or a URL
    (s3://bucket/folder). Or the name of a dataset to download (scifact, lotte/writing/test), or an identifier, ir_datasets:ID."""
    output: str
    """Folder or URL for the embeddings. A killed job continues there when it runs again."""
    encoder: EncoderConfig = EncoderConfig()
    attention: AttentionChanges = AttentionChanges()
    workers: Workers = Workers()
    docs_per_part: int = Field(DOCS_PER_PART, ge=1)
    """Rows of the corpus in one Parquet file of embeddings."""
    where: Where = "auto"
    """ray: encode on Ray. here: encode in this process. auto: in this process, unless a --workers flag is set, RAY_ADDRESS names a cluster,
    or the corpus has more than 10 million tokens (40 MB of text). The bytes are the same."""


def run(job: EncodeJob) -> dict[str, Any]:
    """Encode the corpus and return sizes and speed.

    Raises:
        ConfigError: A setting or path is wrong.
        Conflict: Another job wrote the same output.
        FormatError: A file of the corpus is damaged.
    """
    start = time.perf_counter()
    if job.attention:
        job = job.model_copy(update={"encoder": job.encoder.model_copy(update={"attention": job.attention})})
    from ray_lir.corpus.datasets import find_corpus
    from ray_lir.corpus.records import corpus_files

    corpus = find_corpus(job.corpus)
    files = corpus_files(corpus)  # a wrong path is reported before a cluster starts
    on_ray = runs_on_ray(job.where, "encode", JobSize.of_corpus(files), job.workers)
    from ray_lir.encoder.corpus_encoder import encode_corpus
    from ray_lir.storage.manifest import manifest_digest

    with session(on_ray) as map:
        spread = encoding(on_ray, job.workers, job.encoder)
        result = encode_corpus(corpus, job.output, job.encoder, docs_per_part=job.docs_per_part, map=map, spread=spread)
    manifest = result.manifest
    return {
        "output": job.output,
        "num_docs": manifest.num_docs,
        "num_tokens": manifest.num_tokens,
        **({"num_windows": manifest.num_windows} if manifest.contract.windows else {}),
        "num_dead": manifest.num_dead,
        "num_repeated": manifest.num_repeated,
        "dead_letters": storage.join(job.output, DEAD_LETTERS) if manifest.num_dead else None,
        **manifest.truncation.report,
        "bytes": sum(part.size for part in manifest.parts),
        "seconds": round(time.perf_counter() - start, 3),
        "docs_per_second": result.docs_per_second,
        "num_chunks": result.num_chunks,
        "num_skipped": result.num_skipped,
        "fingerprint": manifest.contract.fingerprint,
        "manifest_digest": manifest_digest(manifest),
    }


if __name__ == "__main__":
    main(EncodeJob, run)
