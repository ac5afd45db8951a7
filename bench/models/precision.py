"""Quality of mixed precisions: queries and documents encoded in different number formats, scored by exact MaxSim; JSON and a table.

    python -m bench.models.precision DATASET_FOLDER... [--documents 1000] [--length 256] [--output bench/results/precision.json]

From a collection with more documents than `--documents`, it takes random queries with their relevant documents, then random others.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import instructions, machine
from ray_lir.base.config import EncoderConfig
from ray_lir.corpus.datasets import load_dataset
from ray_lir.corpus.records import corpus_files, document_text, parse_document
from ray_lir.corpus.scan import read_chunks, scan
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.encoder.encoder import Encoder
from ray_lir.evaluation import metrics
from ray_lir.evaluation.oracle import exact_run, overlap
from ray_lir.evaluation.runs import Run

REFERENCE = ("float32", "float32")
PAIRS = (REFERENCE, ("int8", "int8"), ("float32", "int8"), ("int8", "float32"))
"""Precision of the queries, precision of the documents."""
DEPTH = 100


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.models.precision", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("datasets", nargs="+", type=Path, help="folders in the BEIR layout")
    parser.add_argument("--checkpoint", default=EncoderConfig().checkpoint)
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--length", type=int, default=256, help="document_length")
    parser.add_argument("--output", type=Path, default=Path("bench/results/precision.json"))
    options = parser.parse_args()
    encoders = {
        name: Encoder.load(EncoderConfig(checkpoint=options.checkpoint, precision=name, device="cpu", document_length=options.length))
        for name in dict.fromkeys(name for pair in PAIRS for name in pair)
    }
    rows = []
    for folder in options.datasets:
        rows += _measure(folder, encoders, options.documents)
        report = {
            "machine": machine() | {"instructions": instructions()},
            "checkpoint": options.checkpoint,
            "length": options.length,
            "rows": rows,
        }
        options.output.write_text(json.dumps(report, indent=1) + "\n")
        options.output.with_suffix(".md").write_text(markdown(rows))
    print(markdown(rows))


def _measure(folder: Path, encoders: dict[str, Encoder], largest: int) -> list[dict[str, Any]]:
    """Measure all pairs of precisions on one collection."""
    dataset = load_dataset(str(folder), "test")
    texts = _texts(folder)
    rng, judged, queries = np.random.default_rng(0), set[str](), dict[str, str]()
    for query_id in rng.permutation([query_id for query_id in dataset.queries if query_id in dataset.qrels]):
        together = judged | ({doc_id for doc_id, grade in dataset.qrels[query_id].items() if grade > 0} & set(texts))
        if len(together) <= largest:
            judged, queries = together, queries | {str(query_id): dataset.queries[query_id]}
    unjudged = rng.permutation(sorted(set(texts) - judged))
    chosen = [*sorted(judged), *(str(each) for each in unjudged[: largest - len(judged)])]
    qrels = {query_id: dataset.qrels[query_id] for query_id in queries}
    documents = {name: encoder.encode_documents([texts[each] for each in chosen], chosen) for name, encoder in encoders.items()}
    encoded_queries = {name: encoder.encode_queries(list(queries.values()), list(queries)) for name, encoder in encoders.items()}
    runs = {pair: exact_run([documents[pair[1]]], encoded_queries[pair[0]], DEPTH) for pair in PAIRS}
    expected = _ndcg(runs[REFERENCE], qrels)
    rows = []
    for pair, run in runs.items():
        difference = _ndcg(run, qrels) - expected
        rows.append(
            {
                "dataset": folder.name,
                "documents": len(chosen),
                "of_documents": len(texts),
                "num_queries": len(queries),
                "queries": pair[0],
                "corpus": pair[1],
                "ndcg@10": float(np.mean(expected + difference)),
                "difference": float(np.mean(difference)),
                "standard_error": float(np.std(difference) / np.sqrt(len(difference))),
                "recall@10": overlap(run, runs[REFERENCE], 10),
                "cosine": _cosine(documents[pair[1]], documents["float32"]),
            }
        )
    return rows


def _ndcg(run: Run, qrels: dict[str, dict[str, int]]) -> np.ndarray:
    values = metrics.evaluate(run, qrels)["nDCG@10"]
    return np.array([values[query_id] for query_id in sorted(values)])


def _texts(folder: Path) -> dict[str, str]:
    """Return the text of every document by id."""
    chunks = (chunk for file in scan(corpus_files(str(folder)), 512, map).files for chunk in read_chunks(file, 512))
    documents = (parse_document(row) for chunk in chunks for row in chunk.rows)
    return {document.doc_id: document_text(document.title, document.text) for document in documents}


def _cosine(found: TokenEmbeddings, expected: TokenEmbeddings) -> float:
    return float((found.values.astype(np.float32) * expected.values.astype(np.float32)).sum(1).mean())


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the report as Markdown."""
    lines = [
        "| collection | documents | queries | precision of queries | of documents | nDCG@10 | difference ± standard error "
        "| recall@10 of float32 | cosine |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        quality = f"{row['ndcg@10']:.4f} | {row['difference']:+.4f} ± {row['standard_error']:.4f} | {row['recall@10']:.3f}"
        size = f"{row['documents']} of {row['of_documents']} | {row['num_queries']}"
        lines.append(f"| {row['dataset']} | {size} | {row['queries']} | {row['corpus']} | {quality} | {row['cosine']:.4f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
