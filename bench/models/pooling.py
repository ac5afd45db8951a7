"""The quality that token pooling costs: exact MaxSim over pooled embeddings of a BEIR folder, without an index.

python -m bench.models.pooling --dataset DATASET_FOLDER --embeddings FOLDER_OF_JOBS_ENCODE [--output bench/results/pooling.json]
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from ray_lir.base.config import EncoderConfig
from ray_lir.corpus.datasets import load_dataset
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.embeddings.pooling import pool_tokens
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.encoder.encoder import Encoder
from ray_lir.evaluation import metrics, oracle
from ray_lir.storage.manifest import MANIFEST, read_manifest

FACTORS = (1, 2, 3, 4)
DEPTH = 100


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.models.pooling", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", type=Path, required=True)
    parser.add_argument("--embeddings", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--output", type=Path, default=Path("bench/results/pooling.json"))
    options = parser.parse_args()
    dataset = load_dataset(str(options.dataset), options.split)
    manifest = read_manifest(str(options.embeddings / MANIFEST), EmbeddingsManifest, "jobs.encode")
    encoder = Encoder.for_contract(manifest.contract, EncoderConfig(checkpoint=manifest.contract.checkpoint))
    queries = encoder.encode_queries(list(dataset.queries.values()), list(dataset.queries))
    blocks = list(oracle.read_embeddings(str(options.embeddings), manifest))
    rows = [_measure(blocks, queries, dataset.qrels, factor) for factor in FACTORS]
    report = {"dataset": options.dataset.name, "split": options.split, "checkpoint": manifest.contract.checkpoint, "factors": rows}
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))


def _measure(blocks: list[TokenEmbeddings], queries: TokenEmbeddings, qrels: dict[str, dict[str, int]], factor: int) -> dict[str, Any]:
    """Measure tokens, pooling time and quality with one factor."""
    start = time.process_time()
    pooled = [pool_tokens(block, factor) for block in blocks]
    seconds = time.process_time() - start
    found = metrics.means(metrics.evaluate(oracle.exact_run(pooled, queries, DEPTH), qrels))
    tokens, documents = sum(block.num_tokens for block in pooled), sum(len(block) for block in pooled)
    return {"factor": factor, "num_tokens": tokens, "pool_ms_a_document": round(1e3 * seconds / documents, 2), **found}


if __name__ == "__main__":
    main()
