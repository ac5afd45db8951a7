"""Long documents: truncated against encoded in windows.

python -m bench.models.long_documents DATA [--output bench/results/long_documents.json]

DATA is a folder with the collections haystack_novels, squad, scifact and nfcorpus in the BEIR layout. Three measurements:

* Needles: documents of 500 to 20,000 words are joined from passages of novels. At depth 0, 0.1, ... 1 a sentence of a SQuAD paragraph is
  inserted. The paragraph's question must find the document at rank 1 among all documents of all lengths.
* Windows: nDCG@10 of exact search with windows of 128 tokens, with and without repeated titles, against one window of 512 tokens, on
  samples of scifact and nfcorpus.
* Cost: tokens by stride, and milliseconds of search and highlights by length of the documents.
"""

import argparse
import json
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import machine
from ray_lir import Index
from ray_lir.base.config import EncoderConfig, WindowsConfig
from ray_lir.corpus.datasets import load_dataset
from ray_lir.corpus.records import read_documents
from ray_lir.encoder.corpus_encoder import encode_corpus
from ray_lir.encoder.encoder import Encoder
from ray_lir.evaluation import metrics, oracle
from ray_lir.search.highlights import match_hits

LENGTHS = {500: 8, 2000: 6, 5000: 4, 20000: 2}
"""Number of documents by their number of words."""
DEPTHS = tuple(number / 10 for number in range(11))
SAMPLE_DOCUMENTS, SAMPLE_JUDGED = 200, 120
"""Documents of a sample of a collection, and judged documents among them, at most: queries are added until there are this many."""
STRIDES = (1.0, 7 / 8, 3 / 4, 1 / 2)
WINDOW = 256
COMMON_WORDS = 4
"""Words of at least this many letters count as content words when a needle is chosen."""


@dataclass(frozen=True)
class Needle:
    """A sentence and the question that it answers.

    Attributes:
        question: The question.
        sentence: The sentence of its paragraph with most words of the question.
    """

    question: str
    sentence: str


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.models.long_documents", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path)
    parser.add_argument("--output", type=Path, default=Path("bench/results/long_documents.json"))
    options = parser.parse_args()
    start = time.process_time()
    with tempfile.TemporaryDirectory() as scratch:
        report = {"machine": machine(), **measure_needles(options.data, Path(scratch))}
        report["windows"] = [measure_collection(options.data / name, Path(scratch) / name) for name in ("scifact", "nfcorpus")]
    report["cpu_seconds"] = round(time.process_time() - start)
    options.output.write_text(json.dumps(report, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(page(report))
    print(json.dumps({"output": str(options.output), "cpu_seconds": report["cpu_seconds"]}))


def words_of(text: str) -> set[str]:
    """Return the content words of a text in lower case."""
    return {word for word in re.findall(r"\w+", text.lower()) if len(word) >= COMMON_WORDS}


def needles(squad: Path) -> Iterator[Needle]:
    """Yield one needle a paragraph: the first question that shares at least four content words with a sentence of its paragraph."""
    dataset = load_dataset(str(squad), "dev")
    paragraphs = {document.doc_id: document.text for document in read_documents(str(squad))}
    used: set[str] = set()
    for query_id, judged in dataset.qrels.items():
        [doc_id] = list(judged)[:1]
        question = dataset.queries[query_id]
        sentences = re.split(r"(?<=[.!?])\s+", paragraphs[doc_id])
        best = max(sentences, key=lambda sentence: len(words_of(sentence) & words_of(question)))
        if doc_id not in used and len(words_of(best) & words_of(question)) >= 4 and 8 <= len(best.split()) <= 40:
            used.add(doc_id)
            yield Needle(question, best)


def with_needles(haystack: Iterator[str], words: int, inserted: Sequence[Needle]) -> str:
    """Return a document of about `words` words: passages of novels with needles at equal distances.

    Args:
        haystack: Passages of novels.
        words: Words of the document, needles included.
        inserted: The needles, from depth 0 to 1.
    """
    room = max(0, words - sum(len(needle.sentence.split()) for needle in inserted))
    text: list[str] = []
    while len(text) < room:
        text += next(haystack).split()
    text = text[:room]
    parts = [" ".join(part) for part in np.array_split(np.array(text, object), len(inserted) - 1)]
    return " ".join([inserted[0].sentence, *(f"{part} {needle.sentence}" for part, needle in zip(parts, inserted[1:], strict=True))])


def measure_needles(data: Path, scratch: Path) -> dict[str, Any]:
    """Return the fraction of needles that are found at rank 1, by length and depth, and the cost of windows."""
    haystack = (document.text for document in read_documents(str(data / "haystack_novels")))
    supply = needles(data / "squad")
    documents, placed = [], []
    for words, count in LENGTHS.items():
        for number in range(count):
            inserted = list(islice(supply, len(DEPTHS)))
            doc_id = f"{words}-{number}"
            documents.append({"_id": doc_id, "text": with_needles(haystack, words, inserted)})
            placed += [(doc_id, words, depth, needle.question) for depth, needle in zip(DEPTHS, inserted, strict=True)]
    found: dict[str, list[bool]] = {}
    tokens, seconds = {}, {}
    for name, windows in (("truncated", None), ("windows", WindowsConfig(length=WINDOW))):
        start = time.process_time()
        index = Index.create(scratch / name, documents, EncoderConfig(windows=windows))
        seconds[name] = round(time.process_time() - start, 1)
        tokens[name] = index.manifest.num_tokens
        embedded = index.encoder.encode_queries([question for *_, question in placed])
        answers = index.searcher.search(embedded, 1, "exact")
        found[name] = [index.searcher.doc_ids(answer.documents)[0] == doc_id for answer, (doc_id, *_) in zip(answers, placed, strict=True)]
    rows = [
        {
            "words": words,
            "depth": depth,
            **{
                name: round(float(np.mean([hit for hit, (_, *place, _) in zip(hits, placed, strict=True) if place == [words, depth]])), 3)
                for name, hits in found.items()
            },
        }
        for words in LENGTHS
        for depth in DEPTHS
    ]
    questions = [question for *_, question in placed[:: len(DEPTHS)]]
    return {
        "needles": rows,
        "documents": {str(words): count for words, count in LENGTHS.items()},
        "tokens": tokens,
        "cpu_seconds_of_indexing": seconds,
        "tokens_by_stride": tokens_by_stride([document["text"] for document in documents], index.encoder),
        "latency": [latency(index, words, questions) for words in LENGTHS],
    }


def tokens_by_stride(texts: Sequence[str], encoder: Encoder) -> list[dict[str, Any]]:
    """Return the number of tokens in windows, by stride as a fraction of the length, and relative to the texts' own tokens."""
    whole = sum(len(encoder.tokenizer.tokenizer.encode(text, add_special_tokens=False)) for text in texts)
    rows = []
    for fraction in STRIDES:
        contract = Encoder.load(EncoderConfig(windows=WindowsConfig(length=WINDOW, stride=int(WINDOW * fraction)), device="cpu")).contract
        tokenizer = type(encoder.tokenizer)(contract, encoder.tokenizer.tokenizer)
        tokens = sum(map(len, tokenizer.documents(texts)))
        rows.append({"stride": fraction, "tokens": tokens, "relative": round(tokens / whole, 3)})
    return rows


def latency(index: Index, words: int, questions: Sequence[str]) -> dict[str, Any]:
    """Return the median milliseconds of an exact search among the documents of one length, and of the matches in its best hit.

    Args:
        index: Index of the documents in windows.
        words: Number of words of the documents.
        questions: The queries.
    """
    numbers = sorted(index.searcher.find([f"{words}-{number}" for number in range(LENGTHS[words])]).values())
    [shard] = index.searcher.shards
    searches, matches = [], []
    for question in questions:
        query = index.encoder.encode_queries([question])
        start = time.perf_counter()
        [answer] = index.searcher.search(query, 1, "exact", only=numbers)
        searched = time.perf_counter()
        hits = [{"number": int(answer.documents[0]), **index.searcher.documents(answer.documents)[0]}]
        list(match_hits(index.searcher, index.encoder.tokenizer, question, query, hits))
        searches.append(searched - start)
        matches.append(time.perf_counter() - searched)
    return {
        "words": words,
        "tokens": int(shard.lengths(np.array(numbers)).sum()),
        "search_ms": round(1e3 * float(np.median(searches)), 2),
        "matches_ms": round(1e3 * float(np.median(matches)), 2),
    }


def measure_collection(folder: Path, scratch: Path) -> dict[str, Any]:
    """Return nDCG@10 of exact search over a sample of a collection, with windows of 128 tokens and one of 512."""
    dataset = load_dataset(str(folder), "test")
    judged: dict[str, None] = {}
    queries: dict[str, str] = {}
    for query_id, judgements in dataset.qrels.items():
        relevant = [doc_id for doc_id, grade in judgements.items() if grade > 0]
        if len(judged) + len(set(relevant) - judged.keys()) <= SAMPLE_JUDGED:
            judged |= dict.fromkeys(relevant)
            queries[query_id] = dataset.queries[query_id]
    scratch.mkdir()
    with (scratch / "corpus.jsonl").open("w") as file:
        rest = SAMPLE_DOCUMENTS - len(judged)
        for document in read_documents(str(folder)):
            rest -= document.doc_id not in judged
            if document.doc_id in judged or rest >= 0:
                file.write(json.dumps({"_id": document.doc_id, "title": document.title, "text": document.text}) + "\n")
    settings = {
        "one window of 512": EncoderConfig(document_length=512),
        "windows of 128": EncoderConfig(windows=WindowsConfig(length=128)),
        "windows of 128, title repeated": EncoderConfig(windows=WindowsConfig(length=128, repeat_title=True)),
    }
    qrels = {query_id: dataset.qrels[query_id] for query_id in queries}
    rows = []
    for number, (name, config) in enumerate(settings.items()):
        output = scratch / str(number)
        manifest = encode_corpus(str(scratch / "corpus.jsonl"), str(output), config).manifest
        embedded = Encoder.load(config).encode_queries(list(queries.values()), list(queries))
        run = oracle.exact_run(list(oracle.read_embeddings(str(output), manifest)), embedded, 10)
        rows.append(
            {"encoding": name, "tokens": manifest.num_tokens, "nDCG@10": round(metrics.means(metrics.evaluate(run, qrels))["nDCG@10"], 4)}
        )
    return {"dataset": folder.name, "documents": manifest.num_docs, "queries": len(queries), "rows": rows}


def page(report: dict[str, Any]) -> str:
    """Return the report as a page."""
    words = sorted({row["words"] for row in report["needles"]})
    cell = {(row["words"], row["depth"]): row for row in report["needles"]}
    lines = [
        "# Long documents",
        "",
        f"`python -m bench.models.long_documents DATA`, {report['cpu_seconds']} s of CPU. Default encoder, windows of {WINDOW} tokens.",
        "",
        "## Needles found at rank 1",
        "",
        "A sentence is inserted at each depth of a document. Its question must find the document among the "
        f"{sum(report['documents'].values())} documents of all lengths. Truncated / in windows.",
        "",
        f"| depth | {' | '.join(f'{each:,} words' for each in words)} |",
        f"|---|{'---|' * len(words)}",
    ]
    for depth in DEPTHS:
        lines.append(f"| {depth} | {' | '.join('{truncated:.2f} / {windows:.2f}'.format(**cell[each, depth]) for each in words)} |")
    lines += [
        "",
        f"Documents: {', '.join(f'{count} of {int(each):,} words' for each, count in report['documents'].items())}.",
        "",
        "## Cost",
        "",
        f"Truncated documents have {report['tokens']['truncated']:,} tokens, windows {report['tokens']['windows']:,}.",
        "",
        "| stride / length | tokens | relative to the texts |",
        "|---|---|---|",
        *(f"| {row['stride']:g} | {row['tokens']:,} | {row['relative']} |" for row in report["tokens_by_stride"]),
        "",
        "| words a document | tokens searched | exact search, ms | matches and highlights of one hit, ms |",
        "|---|---|---|---|",
        *(f"| {row['words']:,} | {row['tokens']:,} | {row['search_ms']} | {row['matches_ms']} |" for row in report["latency"]),
        "",
        "## Windows against one long window",
        "",
        "Exact MaxSim over samples of the collections, so the figures cannot be compared with those of whole collections.",
        "",
        "| collection | documents | queries | encoding | tokens | nDCG@10 |",
        "|---|---|---|---|---|---|",
        *(
            f"| {each['dataset']} | {each['documents']} | {each['queries']} "
            f"| {row['encoding']} | {row['tokens']:,} | {row['nDCG@10']:.3f} |"
            for each in report["windows"]
            for row in each["rows"]
        ),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
