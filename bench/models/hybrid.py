"""Quality, bytes and time of BM25, late interaction and hybrid search on judged collections, and on names of Python's standard library.

python -m bench.models.hybrid --data DATA --embeddings FOLDER_OF_FOLDERS --work DIR [--sets scifact,...] [--output bench/results/hybrid]

Embeddings of set NAME are expected in FOLDER_OF_FOLDERS/NAME, as jobs.encode writes them; missing ones are encoded. The names of the
standard library are queries on its docstrings: full names, and names inside questions. DIR keeps the result of each set, so that a run that
was stopped continues.
"""

import argparse
import json
import re
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import machine
from ray_lir.base.config import ClusteringConfig, EncoderConfig, IndexConfig
from ray_lir.building.build import build_index
from ray_lir.corpus.datasets import Dataset, has_queries_as_documents, load_dataset
from ray_lir.corpus.docstring_corpus import collect, known_items
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.encoder.corpus_encoder import encode_corpus
from ray_lir.encoder.encoder import Encoder
from ray_lir.engines.bm25 import Bm25Params
from ray_lir.engines.exact import ExactParams
from ray_lir.engines.hybrid import HybridParams
from ray_lir.engines.params import EngineConfig
from ray_lir.engines.scan import ScanParams
from ray_lir.evaluation import metrics
from ray_lir.index.manifest import IndexManifest
from ray_lir.search.searcher import Searcher

SETS = {
    "scifact": ("train", "test"),
    "nfcorpus": ("dev", "test"),
    "arguana_rebuilt": ("dev", "test"),
    "nq_qed": ("train", "dev"),
    "squad": ("train", "dev"),
    "cranfield": (None, "test"),
    "cisi": (None, "test"),
    "medline": (None, "test"),
    "docstrings": (None, "test"),
}
"""Collections, with the split on which the weight is chosen (None: there is none) and the split that is measured. The queries of
docstrings are the summaries of docstrings, and the rest of a docstring is the one relevant document."""
DEPTH = 100
MAX_QUERIES = 300
"""Queries of a split, at most. A larger split is sampled."""
CANDIDATES = 400
"""Candidates of each side, to choose the weight; the default for 100 hits."""
TIMED_QUERIES = 50
CONFIG = IndexConfig(lexical=True, clustering=ClusteringConfig(num_centroids=1024))
"""Fewer centroids than the default, for short builds. Exact scores depend little on them."""
WEIGHTS = tuple(tenths / 10 for tenths in range(1, 10))
DEFAULT = "hybrid: weighted"
ENGINES: dict[str, EngineConfig] = {
    "BM25": Bm25Params(),
    "late interaction": ExactParams(),
    DEFAULT: HybridParams(),
    "hybrid: rrf": HybridParams(fusion="rrf"),
    "hybrid: rescore": HybridParams(fusion="rescore"),
}
MEASURES = ("nDCG@10", "R@100")
STDLIB_DOCUMENTS = 2000
SYMBOLS = 200
KNOWN_ITEMS = 1000


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.models.hybrid", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--embeddings", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--output", type=Path, default=Path("bench/results/hybrid"))
    parser.add_argument("--only_sets", action="store_true", help="measure the sets, and write no report")
    options = parser.parse_args()
    rows = []
    for name in options.sets.split(","):
        rows.append(_once(options.work / f"{name}.json", partial(_measure_set, name, options)))
        print(json.dumps(rows[-1]), flush=True)
    if options.only_sets:
        return
    report = {"machine": machine(), "sets": rows, "symbols": _once(options.work / "symbols.json", partial(_measure_symbols, options))}
    options.output.with_suffix(".json").write_text(json.dumps(report, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(_table(report))


def _once(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result that an earlier run kept, or that of a measurement."""
    if not path.exists():
        found = measure()
        path.write_text(json.dumps(found))
    return json.loads(path.read_text())


def _measure_set(name: str, options: argparse.Namespace) -> dict[str, Any]:
    chosen_on, split = SETS[name]
    data = _docstrings(options.work / "docstrings-data") if name == "docstrings" else options.data / name
    searcher, seconds = _open(data, options.embeddings / name, options.work / name)
    encoder = Encoder.for_contract(searcher.manifest.contract)
    judged = _sample(load_dataset(str(data), split))
    queries = encoder.encode_queries(list(judged.queries.values()))
    found = {label: _quality(searcher, queries, judged, params) for label, params in ENGINES.items()}
    weight, curve = None, {}
    if chosen_on:
        dev = _sample(load_dataset(str(options.data / name), chosen_on))
        embedded = encoder.encode_queries(list(dev.queries.values()))
        curve = _curve(searcher, embedded, dev)
        weight = max(curve, key=curve.__getitem__)
        found["hybrid: tuned"] = _quality(searcher, queries, judged, HybridParams(lexical_weight=weight))
    return {
        "set": name,
        "split": split,
        "queries": len(judged.queries),
        "quality": found,
        "tuned_weight": weight,
        "tuned_on": chosen_on,
        "curve": curve,
        "milliseconds": _milliseconds(searcher, queries),
        **_sizes(searcher.manifest),
        "build_seconds": seconds,
    }


def _docstrings(folder: Path) -> Path:
    """A folder in the BEIR layout with docstrings and their summaries."""
    documents, queries = known_items(collect(1 << 30, then=()), KNOWN_ITEMS)
    (folder / "qrels").mkdir(parents=True, exist_ok=True)
    rows = [{"_id": each.doc_id, "title": each.title, "text": each.text} for each in documents]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "queries.jsonl").write_text("".join(json.dumps({"_id": key, "text": text}) + "\n" for key, text in queries.items()))
    (folder / "qrels" / "test.tsv").write_text("".join(f"{key}\t{key}\t1\n" for key in queries))
    return folder


def _open(dataset: Path, embeddings: Path, index: Path) -> tuple[Searcher, float | None]:
    """The index, and the seconds of its build; None if it was there."""
    seconds = None
    if not index.exists():
        encode_corpus(str(dataset), str(embeddings), EncoderConfig())
        start = time.perf_counter()
        build_index(str(embeddings), str(index), CONFIG)
        seconds = round(time.perf_counter() - start, 1)
    return Searcher.open(str(index)), seconds


def _sample(dataset: Dataset) -> Dataset:
    ids = list(dataset.queries)
    kept = [ids[i] for i in sorted(np.random.default_rng(0).permutation(len(ids))[:MAX_QUERIES])]
    return Dataset(
        dataset.name,
        dataset.split,
        {query_id: dataset.queries[query_id] for query_id in kept},
        {query_id: dataset.qrels[query_id] for query_id in kept},
        dataset.corpus,
    )


def _quality(searcher: Searcher, queries: TokenEmbeddings, judged: Dataset, params: EngineConfig) -> dict[str, float]:
    ignores = has_queries_as_documents(judged.name)
    run = {}
    for query_id, answer in zip(judged.queries, searcher.search(queries, DEPTH + ignores, params), strict=True):
        ids = [doc_id for doc_id in searcher.doc_ids(answer.documents) if not (ignores and doc_id == query_id)]
        run[query_id] = [(doc_id, 0.0) for doc_id in ids[:DEPTH]]
    return {name: round(value, 4) for name, value in metrics.means(metrics.evaluate(run, judged.qrels, MEASURES)).items()}


def _curve(searcher: Searcher, queries: TokenEmbeddings, judged: Dataset) -> dict[float, float]:
    """nDCG@10 by weight. Each query is searched once: the candidates and their two scores do not depend on the weight."""
    ignores = has_queries_as_documents(judged.name)
    runs: dict[float, dict[str, list[tuple[str, float]]]] = {weight: {} for weight in WEIGHTS}
    for query_id, answer in zip(judged.queries, searcher.search(queries, CANDIDATES, HybridParams(ncandidates=CANDIDATES)), strict=True):
        assert answer.sides is not None
        ids = searcher.doc_ids(answer.documents)
        lexical, vectors = (scores.astype(float) for scores in (answer.sides.lexical, answer.sides.vectors))
        for weight, run in runs.items():
            scores = weight * lexical / max(lexical.max(), 1e-9) + (1 - weight) * (vectors - vectors.min()) / max(np.ptp(vectors), 1e-9)
            order = np.argsort(-scores, kind="stable")
            run[query_id] = [(ids[row], 0.0) for row in order if not (ignores and ids[row] == query_id)][:DEPTH]
    return {weight: round(metrics.means(metrics.evaluate(run, judged.qrels, ("nDCG@10",)))["nDCG@10"], 4) for weight, run in runs.items()}


def _milliseconds(searcher: Searcher, queries: TokenEmbeddings) -> dict[str, Any]:
    """Processor milliseconds of one query for its best 10, over all threads, without encoding."""
    timed = {"BM25": Bm25Params(), "late interaction (scan)": ScanParams(), **{name: ENGINES[name] for name in list(ENGINES)[2:]}}
    singles = [queries.slice(i, i + 1) for i in range(min(TIMED_QUERIES, len(queries)))]
    found = {}
    for label, params in timed.items():
        searcher.search(singles[0], 10, params)
        start = time.process_time()
        for query in singles:
            searcher.search(query, 10, params)
        found[label] = round(1e3 * (time.process_time() - start) / len(singles), 2)
    return found


def _sizes(manifest: IndexManifest) -> dict[str, Any]:
    assert manifest.lexical is not None
    files = [file for shard in manifest.shards for file in shard.files]
    statistics = (manifest.lexical.terms, manifest.lexical.term_offsets, manifest.lexical.frequencies)
    lexical = sum(file.size for file in files if "/lexical_" in file.name) + sum(file.size for file in statistics)
    return {
        "documents": manifest.num_docs,
        "index_bytes": sum(file.size for file in files if "/lexical_" not in file.name) + manifest.codec.size,
        "lexical_bytes": lexical,
    }


def _measure_symbols(options: argparse.Namespace) -> dict[str, Any]:
    """Rank 1 for names of the standard library, alone and in questions."""
    folder = options.work / "stdlib-corpus"
    documents = collect(STDLIB_DOCUMENTS, then=())
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"_id": each.doc_id, "title": each.title, "text": each.text} for each in documents]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    searcher, _ = _open(folder, options.embeddings / "stdlib", options.work / "stdlib")
    encoder = Encoder.for_contract(searcher.manifest.contract)
    names = [each.doc_id for each in documents if re.fullmatch(r"\w+(\.\w+){1,3}", each.doc_id)]
    names = [names[i] for i in np.random.default_rng(0).permutation(len(names))[:SYMBOLS]]
    report: dict[str, Any] = {"documents": len(documents), "names": len(names)}
    for kind, template in (("name alone", "{}"), ("name in a question", "what does {} do and when should I use it?")):
        answers = {}
        queries = encoder.encode_queries([template.format(name) for name in names])
        for label, params in ENGINES.items():
            tops = searcher.search(queries, 1, params)
            answers[label] = [searcher.doc_ids(top.documents) == [name] for name, top in zip(names, tops, strict=True)]
        missed = [i for i, found in enumerate(answers["late interaction"]) if not found]
        report[kind] = {
            label: {
                "at rank 1": round(float(np.mean(found)), 4),
                "of those that late interaction misses": round(float(np.mean([found[i] for i in missed])), 4) if missed else None,
            }
            for label, found in answers.items()
        } | {"late interaction misses": len(missed)}
    return report


def _table(report: dict[str, Any]) -> str:
    labels = [*ENGINES, "hybrid: tuned"]
    lines = [
        "# Hybrid search: quality, bytes and time",
        "",
        f"Written by `python -m bench.models.hybrid` on {report['machine']['cpu']}. all-MiniLM-L6-v2 as it is, 4 bits a dimension; late "
        "interaction is the engine exact. BM25: lucene, k1 1.2, b 0.75, English stemming. `weighted` has the default weight, `tuned` the "
        "weight with the best nDCG@10 on another split. Splits of more than 300 queries are sampled. 1,024 centroids. The machine had "
        "other work: times are those of the processor.",
        "",
    ]
    for measure in MEASURES:
        lines += [f"## {measure}", "", f"| set | split | queries | {' | '.join(labels)} | tuned weight |", f"|{'---|' * (len(labels) + 4)}"]
        for row in report["sets"]:
            values = [f"{row['quality'][label][measure]:.3f}" if label in row["quality"] else "" for label in labels]
            lines.append(f"| {row['set']} | {row['split']} | {row['queries']} | {' | '.join(values)} | {row['tuned_weight'] or ''} |")
        lines += ["", _verdict(report["sets"], measure), ""]
    tuned = [row for row in report["sets"] if row["curve"]]
    lines += ["## nDCG@10 by weight, on the split that chooses it", ""]
    lines += [f"| set | split | {' | '.join(map(str, WEIGHTS))} |", f"|{'---|' * (len(WEIGHTS) + 2)}"]
    for row in tuned:
        lines.append(f"| {row['set']} | {row['tuned_on']} | {' | '.join(f'{value:.3f}' for value in row['curve'].values())} |")
    lines.append("")
    timed = list(report["sets"][0]["milliseconds"])
    lines += ["## Bytes, and mean processor milliseconds of a query (k = 10, all threads, without encoding)", ""]
    lines += [f"| set | documents | index MB | lexical MB | added | {' | '.join(timed)} |", f"|{'---|' * (len(timed) + 5)}"]
    for row in report["sets"]:
        ms = [f"{row['milliseconds'][label]:.1f}" for label in timed]
        sizes = f"{row['index_bytes'] / 1e6:.1f} | {row['lexical_bytes'] / 1e6:.2f} | {row['lexical_bytes'] / row['index_bytes']:.1%}"
        lines.append(f"| {row['set']} | {row['documents']:,} | {sizes} | {' | '.join(ms)} |")
    symbols = report["symbols"]
    lines += ["", f"## {symbols['names']} names of Python's standard library, on {symbols['documents']:,} docstrings", ""]
    lines += ["| query | engine | found at rank 1 | of those that late interaction misses |", "|---|---|---|---|"]
    for kind in ("name alone", "name in a question"):
        for label in ENGINES:
            found = symbols[kind][label]
            missed = found["of those that late interaction misses"]
            lines.append(f"| {kind} | {label} | {found['at rank 1']:.3f} | {'' if missed is None else f'{missed:.3f}'} |")
    return "\n".join(lines) + "\n"


def _verdict(rows: list[dict[str, Any]], measure: str) -> str:
    """How often hybrid search is at least as good as the better of the two."""

    def wins(label: str) -> int:
        better = [max(row["quality"][name][measure] for name in ("BM25", "late interaction")) for row in rows]
        return sum(row["quality"].get(label, row["quality"][DEFAULT])[measure] >= best for row, best in zip(rows, better, strict=True))

    return (
        f"At least as good as the better of BM25 and late interaction: weighted on {wins(DEFAULT)} of {len(rows)} sets, rrf on "
        f"{wins('hybrid: rrf')}, tuned (weighted where there is no other split) on {wins('hybrid: tuned')}."
    )


if __name__ == "__main__":
    main()
