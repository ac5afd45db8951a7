"""The cost of adding documents from another domain than the codec's: each collection under the codec of every other.

    python -m bench.scale.drift --quality runs/quality --datasets FOLDER [--names cranfield cisi] [--output bench/results/drift.json]

It reads the output of `make quality`: embeddings, an index of each collection, and exact rankings without
compression. Each collection is indexed with the codec of another (codec_from) and searched exhaustively.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from bench.machine import machine
from ray_lir.base.config import EncoderConfig, IndexConfig
from ray_lir.building.build import build_index
from ray_lir.corpus.datasets import load_dataset
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.encoder.encoder import Encoder
from ray_lir.index.versions import read_version
from ray_lir.search.searcher import Searcher

K = 10


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.scale.drift", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quality", type=Path, default=Path("runs/quality"))
    parser.add_argument("--datasets", type=Path, required=True)
    parser.add_argument("--names", nargs="+", default=["cranfield", "cisi"])
    parser.add_argument("--work", type=Path, default=Path("runs/drift"))
    parser.add_argument("--output", type=Path, default=Path("bench/results/drift.json"))
    options = parser.parse_args()
    rows = [row for name in options.names for row in measure(options, name)]
    report = {"machine": machine(), "k": K, "rows": rows}
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(table(rows))
    print(json.dumps(report))


def measure(options: argparse.Namespace, name: str) -> list[dict[str, Any]]:
    """Measure one collection under every codec."""
    folder = options.quality / name
    contract = read_version(str(folder / "index-1")).contract
    dataset = load_dataset(str(options.datasets / name), "test")
    encoder = Encoder.for_contract(contract, EncoderConfig(checkpoint=contract.checkpoint))
    queries = encoder.encode_queries(list(dataset.queries.values()), list(dataset.queries))
    best = read_best(folder / "oracle.run")
    rows = []
    for other in options.names:
        index = options.work / f"{name}-by-{other}"
        source = options.quality / other / "index-1"
        norm = read_version(str(source)).mean_residual_norm
        manifest = build_index(str(folder / "embeddings"), str(index), IndexConfig(codec_from=str(source)))
        share = _found(index, queries, best)
        drift = round(manifest.mean_residual_norm / norm, 3)
        rows.append({"documents": name, "codec_of": other, "drift": drift, f"top_{K}": round(share, 4)})
    return rows


def read_best(path: Path) -> dict[str, set[str]]:
    """Return the first K documents of each query of a TREC run."""
    best: dict[str, set[str]] = {}
    for line in path.read_text().splitlines():
        query, _, document, rank, *_ = line.split()
        if int(rank) <= K:
            best.setdefault(query, set()).add(document)
    return best


def _found(index: Path, queries: TokenEmbeddings, best: dict[str, set[str]]) -> float:
    """Return the fraction of the best documents that exhaustive search from the codes finds."""
    searcher = Searcher.open(str(index))
    answers = searcher.search(queries, K, "exact")
    shares = [
        len(best[query].intersection(searcher.doc_ids(top.documents))) / K for query, top in zip(queries.doc_ids, answers, strict=True)
    ]
    return sum(shares) / len(shares)


def table(rows: list[dict[str, Any]]) -> str:
    """Return the report as a Markdown table."""
    lines = ["| documents | codec of | residual norm relative to the codec's own documents | recall@10 |", "|---|---|---|---|"]
    lines += [f"| {row['documents']} | {row['codec_of']} | {row['drift']:.2f} | {row[f'top_{K}']:.3f} |" for row in rows]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
