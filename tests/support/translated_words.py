"""For training tests: a collection with queries that translate words of their document, and a tiny random BERT.

Only training reveals which word translates which, so an untrained encoder ranks by chance.
"""

import json
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from ray_lir.corpus.datasets import load_dataset
from ray_lir.corpus.records import read_documents
from ray_lir.encoder.encoder import Encoder
from ray_lir.training.data import TrainingData
from ray_lir.training.judgements import from_judgements

NUM_WORDS, NUM_DOCS, WORDS_PER_DOC, WORDS_PER_QUERY, QUERIES_PER_DOC = 40, 48, 6, 3, 2


def write_collection(folder: Path) -> Path:
    """Write a BEIR folder: 48 documents, 96 queries with one positive document each, and one judgement "not relevant"."""
    random = np.random.default_rng(0)
    documents = [random.choice(NUM_WORDS, WORDS_PER_DOC, replace=False) for _ in range(NUM_DOCS)]
    queries = [random.choice(words, WORDS_PER_QUERY, replace=False) for words in documents for _ in range(QUERIES_PER_DOC)]
    (folder / "qrels").mkdir(parents=True)
    _write_jsonl(
        folder / "corpus.jsonl", [{"_id": f"d{n}", "title": "", "text": _text("word", words)} for n, words in enumerate(documents)]
    )
    _write_jsonl(folder / "queries.jsonl", [{"_id": f"q{n}", "text": _text("mot", words)} for n, words in enumerate(queries)])
    rows = [f"q{n}\td{n // QUERIES_PER_DOC}\t1" for n in range(len(queries))]
    (folder / "qrels" / "train.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *rows, "q0\td9\t0"]) + "\n")
    return folder


def write_checkpoint(folder: Path) -> Path:
    """Write a random BERT of two layers without dropout, as a plain Hugging Face folder."""
    vocabulary = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        *(f"{language}{word}" for language in ("word", "mot") for word in range(NUM_WORDS)),
    ]
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertModel(config).save_pretrained(folder)
    return folder


def load_pairs(folder: Path) -> TrainingData:
    judged = load_dataset(str(folder), "train")
    return from_judgements(judged.queries, judged.qrels, ((document.doc_id, document.text) for document in read_documents(judged.corpus)))


def success_at_1(encoder: Encoder, pairs: TrainingData) -> float:
    """Return the fraction of queries for which the best document by MaxSim is positive."""
    queries, documents = encoder.encode_queries(list(pairs.queries)), encoder.encode_documents(list(pairs.documents))
    best = [int(np.argmax([(query @ document.T).max(axis=1).sum() for document in documents])) for query in queries]
    return float(np.mean([[found] in positives for found, positives in zip(best, pairs.lists_by_query(), strict=True)]))


def _text(language: str, words: np.ndarray) -> str:
    return " ".join(f"{language}{word}" for word in words)


def _write_jsonl(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
