"""The residual codec: recall of exhaustive search from the codes, against bytes a token; JSON and a table.

    python -m bench.kernels.codec [--dataset FOLDER] [--size small] [--num-queries 100]
                               [--work runs/bench] [--output bench/results/codec.json]

The embeddings and the exact answers (MaxSim in float32) are those of bench.compare. Each codec has its own build.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from bench.comparison.collection import SIZES, Collection, open_collection
from bench.comparison.report import quality
from bench.machine import machine
from bench.peers import inputs
from ray_lir import storage
from ray_lir.base.config import CodecConfig, IndexConfig
from ray_lir.building.build import build_index
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.index.documents import FILE
from ray_lir.search.searcher import Searcher

BITS = (1, 2, 4, 8)
CODECS = {
    "quantile buckets (the papers')": {"buckets": "quantile", "rotation": False, "token_scale": False},
    "Lloyd-Max buckets": {"rotation": False, "token_scale": False},
    "and a scale a token": {"rotation": False},
    "and a rotation (the default)": {},
}
DEPTH = 100


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.kernels.codec", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dataset", type=Path)
    parser.add_argument("--size", choices=SIZES, default="small")
    parser.add_argument("--num-queries", type=int, default=100)
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    parser.add_argument("--output", type=Path, default=Path("bench/results/codec.json"))
    options = parser.parse_args()
    collection = open_collection(options.dataset, options.size, options.work)
    rows = [_measure(collection, options.num_queries, nbits, name) for nbits in BITS for name in CODECS]
    report = {"machine": machine(), "size": options.size, "queries": options.num_queries, "rows": rows}
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(markdown(rows))
    print(markdown(rows))


def _measure(collection: Collection, num_queries: int, nbits: int, name: str) -> dict[str, Any]:
    """Measure one codec: build, exhaustive search, recall of the oracle and nDCG."""
    output = str(collection.folder / "codec")
    storage.remove_tree(output)
    manifest = build_index(str(collection.folder / "embeddings"), output, IndexConfig(codec=CodecConfig(nbits=nbits, **CODECS[name])))
    texts = inputs.load(collection.folder, "queries")
    queries = TokenEmbeddings.of([texts[number] for number in range(num_queries)])
    answers = Searcher.open(output).search(queries, DEPTH, "exact")
    storage.remove_tree(output)
    arrays = sum(file.size for shard in manifest.shards for file in shard.files if not file.name.endswith(FILE))
    found = quality(np.stack([answer.documents for answer in answers]), collection)
    print(f"{nbits} bits, {name}: {found}", flush=True)
    return {"nbits": nbits, "codec": name, **found, "bytes_per_token": round(arrays / manifest.num_tokens, 2)}


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the report as Markdown."""
    lines = ["| bits | codec | R@10 | R@100 | nDCG@10 | bytes a token |", "|---|---|---|---|---|---|"]
    for row in rows:
        quality = " | ".join(f"{row[name]:.3f}" for name in ("recall@10", "recall@100", "nDCG@10"))
        lines.append(f"| {row['nbits']} | {row['codec']} | {quality} | {row['bytes_per_token']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
