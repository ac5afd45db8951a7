"""Development set of the experiment: a quarter of SQuAD's development articles, to choose learning rates, temperatures and lengths.

    python -m bench.papers.development DATA CHECKPOINT [CHECKPOINT ...]

It prints nDCG@10 and other measures of exact search for each checkpoint, and the difference from the first one with its p value. The
experiment leaves these questions out of its tests. Training articles would not do: the default checkpoint was trained on them.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from ray_lir.base.config import EncoderConfig
from ray_lir.corpus.datasets import Dataset, load_dataset
from ray_lir.corpus.records import document_text, read_documents
from ray_lir.encoder.encoder import Encoder
from ray_lir.evaluation import metrics, oracle
from ray_lir.evaluation.significance import compare
from ray_lir.training.dev_set import DevSet

SOURCE, SPLIT = "squad", "dev"
HELD_OUT = 4
"""One article of this many is in the development set."""
QUESTIONS = 1000
DOCUMENTS_AT_ONCE = 64
MEASURES = ("nDCG@10", "Success@1", "R@10")


def development_documents(dataset: Dataset) -> dict[str, str]:
    """Return the judged paragraphs of the development articles, id to text."""
    judged = set().union(*dataset.qrels.values())
    documents = [each for each in read_documents(dataset.corpus) if each.doc_id in judged]
    titles = sorted({each.title for each in documents})
    chosen = set(np.random.default_rng(7).permutation(titles)[: len(titles) // HELD_OUT].tolist())
    return {each.doc_id: document_text(each.title, each.text) for each in documents if each.title in chosen}


def without_development(dataset: Dataset) -> Dataset:
    """Return a data set without the questions of the development set."""
    documents = development_documents(dataset)
    qrels = {query: grades for query, grades in dataset.qrels.items() if not grades.keys() & documents.keys()}
    return replace(dataset, queries={each: dataset.queries[each] for each in qrels}, qrels=qrels)


def development_set(data: Path, questions: int = QUESTIONS) -> DevSet:
    """Return the paragraphs of the development articles, and a sample of their questions.

    Args:
        data: Folder of the collections.
        questions: Largest number of questions.
    """
    judged = load_dataset(str(data / SOURCE), SPLIT)
    documents = development_documents(judged)
    answerable = sorted(query for query, grades in judged.qrels.items() if grades.keys() <= documents.keys())
    chosen = sorted(np.random.default_rng(1).permutation(answerable)[:questions].tolist())
    return DevSet({each: judged.queries[each] for each in chosen}, documents, {each: judged.qrels[each] for each in chosen})


def evaluate(encoder: Encoder, dev: DevSet) -> dict[str, np.ndarray]:
    """Return each measure of exact search with MaxSim and the weights of query tokens, [questions] float64, without TRIAL's relations."""
    queries = encoder.encode_queries(list(dev.queries.values()), list(dev.queries))
    if queries.weights is not None:
        queries = replace(queries, values=(queries.values * queries.weights[:, None]).astype(np.float16))
    names = list(dev.documents)
    blocks = (
        encoder.encode_documents([dev.documents[each] for each in block], block)
        for block in (names[start : start + DOCUMENTS_AT_ONCE] for start in range(0, len(names), DOCUMENTS_AT_ONCE))
    )
    found = metrics.evaluate(oracle.exact_run(blocks, queries, 10), dev.qrels, MEASURES)
    return {name: np.array([values[query] for query in dev.queries]) for name, values in found.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Evaluate checkpoints on the development set."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.papers.development", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="folder of the collections in the BEIR layout")
    parser.add_argument("checkpoints", nargs="+", help="checkpoints; the others are compared with the first")
    parser.add_argument("--document_length", type=int, default=256, help="tokens of a passage at most (%(default)s)")
    parser.add_argument("--query_length", type=int, default=32, help="tokens of a question at most (%(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of the encoder (%(default)s)")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    dev = development_set(options.data)
    lengths = {"query_length": options.query_length, "document_length": options.document_length}
    first: dict[str, np.ndarray] = {}
    for checkpoint in options.checkpoints:
        found = evaluate(Encoder.load(EncoderConfig(checkpoint=checkpoint, device="cpu", **lengths)), dev)
        first = first or found
        comparison = compare(first["nDCG@10"], found["nDCG@10"])
        row = {name: round(float(values.mean()), 4) for name, values in found.items()}
        row |= {"difference": round(comparison.difference, 4), "p": round(comparison.p, 4)}
        print(json.dumps({"checkpoint": checkpoint, "questions": len(dev.queries), "documents": len(dev.documents)} | row), flush=True)


if __name__ == "__main__":
    main()
