"""MUVERA's fixed-dimensional encodings against scan: candidates of both, rescored by the same exact kernels; JSON, a table and a plot.

    python -m bench.comparison.muvera [--work runs/bench] [--variants raw .5 .7 .9] [--queries 50] [--prepare] [--output bench/results]

WORK is a work folder of bench.compare with the size `small`. The variants .5, .7 and .9 add one common vector to every token and normalise,
so that the mean cosine of two document tokens has this value. Each variant has its own exact answer, index and encodings, made on first use
(--prepare makes only these). A run measures one variant at a time and replaces its rows in the output, so runs can be split.

Times are processor milliseconds of one query on one thread, with the encoding of the query. Scan rescores its candidates with the exact
kernels; candidates of MUVERA are rescored with the same kernels by `Searcher.search(engine="exact", only=candidates)`. MUVERA's candidates
have the best dot products of encodings, found by NumPy in float32, or by FAISS in 8 bits: over all encodings, in an inverted file (a
quarter of its lists probed), or in a graph (HNSW).
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from bench.comparison.collection import Collection, open_collection, write_copies
from bench.comparison.fde import FixedDimensionalEncoding
from bench.comparison.report import recall
from bench.machine import instructions, machine
from bench.peers import harness, inputs
from bench.peers.inputs import Texts
from ray_lir.base.config import IndexConfig
from ray_lir.base.parallel import one_blas_thread
from ray_lir.building.build import build_index
from ray_lir.embeddings.manifest import EmbeddingsManifest
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.engines.scan import ScanParams
from ray_lir.engines.stages import StageCall, run_stage
from ray_lir.search.searcher import Searcher
from ray_lir.storage.manifest import MANIFEST, read_manifest

Row = dict[str, Any]
RAW = "raw"
VARIANTS = (RAW, ".5", ".7", ".9")
STORED_QUERIES = 100
"""Queries of a variant."""
K = 100
ENCODINGS: dict[str, tuple[int, int, int, int | None]] = {
    "1,280": (20, 3, 8, None),
    "5,120": (20, 5, 8, None),
    "10,240": (20, 5, 16, None),
    "10,240 to 2,560": (20, 5, 16, 2560),
}
"""(repetitions, k_sim, d_proj, dimensions after the final projection) by name; the first three are the paper's. An encoding with a final
projection comes after the one without it."""
CANDIDATES = (128, 256, 512, 1024, 2048)
PROBED_FRACTION = 0.25
GRAPH_NEIGHBOURS = 32
SEED = 0
RECALLS = ("recall@10", "recall@100")
TOLERANCE = 0.005
SAMPLE = 20_000
"""Token vectors that the mean cosine is measured on."""
FindCandidates = Callable[[np.ndarray, int], np.ndarray]
"""Function from the encoding of a query, [F], and n to the numbers of n documents."""
Answer = Callable[[TokenEmbeddings], np.ndarray]
"""Function from one query to document numbers."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.comparison.muvera", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("runs/bench"))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS)
    parser.add_argument("--encodings", nargs="+", choices=ENCODINGS, default=list(ENCODINGS), metavar="NAME", help="; ".join(ENCODINGS))
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--prepare", action="store_true", help="only make what is missing: vectors, exact answers, indexes, encodings")
    parser.add_argument("--output", type=Path, default=Path("bench/results"))
    options = parser.parse_args()
    for variant in options.variants:
        collection = open_variant(options.work, variant)
        prepare(collection, options.encodings)
        if not options.prepare:
            harness.pin(1)
            faiss.omp_set_num_threads(1)
            with one_blas_thread():
                rows = measure(collection, options.queries, options.encodings)
            write(options.output, variant, {"mean_cosine": mean_cosine(collection.folder), "queries": options.queries, "rows": rows})


def open_variant(work: Path, variant: str) -> Collection:
    """Return the collection of a variant; it is made on first use from the size `small`.

    Args:
        work: Work folder of bench.compare.
        variant: A name from VARIANTS.
    """
    small = open_collection(None, "small", work)
    if variant == RAW:
        return small
    folder = work / f"cosine{variant}"
    about = folder / "about.json"
    if not about.exists():
        documents, queries = (inputs.in_memory(inputs.load(small.folder, name)) for name in ("documents", "queries"))
        common_D = common_vector(documents.values, float(variant))
        queries = Texts(queries.values[: queries.offsets[STORED_QUERIES]], queries.offsets[: STORED_QUERIES + 1])
        inputs.save(folder, "queries", Texts(add_common(queries.values, common_D), queries.offsets))
        moved = TokenEmbeddings(add_common(documents.values, common_D), documents.offsets, small.doc_ids)
        manifest = read_manifest(str(small.folder / "embeddings" / MANIFEST), EmbeddingsManifest, "jobs.encode")
        write_copies(moved, 1, manifest, folder)
        values = {"doc_ids": small.doc_ids, "query_ids": small.query_ids[:STORED_QUERIES], "qrels": None}
        about.write_text(json.dumps(values))
    return Collection(folder, **json.loads(about.read_text()))


def common_vector(vectors_TD: np.ndarray, cosine: float) -> np.ndarray:
    """Return the vector that gives the mean cosine to unit vectors by `add_common`: a random direction, and a length by bisection.

    Args:
        vectors_TD: [T, D] unit vectors.
        cosine: Mean cosine of two of them after the addition; more than their own.
    """
    random = np.random.default_rng(SEED)
    sample_TD = vectors_TD[random.permutation(len(vectors_TD))[:SAMPLE]]
    direction_D = random.normal(size=vectors_TD.shape[1]).astype(np.float32)
    direction_D /= np.linalg.norm(direction_D)
    low, high = 0.0, 100.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if cosine_of(add_common(sample_TD, middle * direction_D)) < cosine else (low, middle)
    return direction_D * np.float32(high)


def add_common(vectors_TD: np.ndarray, common_D: np.ndarray) -> np.ndarray:
    """Return the vectors plus the common one, normalised, [T, D] float16."""
    moved_TD = vectors_TD.astype(np.float32) + common_D
    return (moved_TD / np.linalg.norm(moved_TD, axis=1, keepdims=True)).astype(np.float16)


def cosine_of(vectors_TD: np.ndarray) -> float:
    """Return the mean cosine of two different vectors of [T, D] unit vectors."""
    count = len(vectors_TD)
    total = float(np.square(vectors_TD.sum(axis=0, dtype=np.float64)).sum())
    return (total - count) / (count * (count - 1))


def mean_cosine(folder: Path) -> float:
    """Return the mean cosine of two document tokens of a variant, from a sample."""
    values = inputs.load(folder, "documents").values
    return round(cosine_of(values[np.sort(np.random.default_rng(SEED).permutation(len(values))[:SAMPLE])].astype(np.float32)), 3)


def prepare(collection: Collection, encodings: Sequence[str] = tuple(ENCODINGS)) -> None:
    """Make the exact answer, the index and the encodings of a variant, unless they exist."""
    collection.oracle()
    if not (collection.folder / "ray_lir" / "index" / "LATEST").exists():
        build_index(str(collection.folder / "embeddings"), str(collection.folder / "ray_lir" / "index"), IndexConfig())
    documents = inputs.load(collection.folder, "documents")
    for name in encodings:
        parameters, path = ENCODINGS[name], encoded_path(collection.folder, name)
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            start = time.process_time()
            with one_blas_thread():
                encoded_NF = _encoded(collection.folder, documents, parameters)
            np.save(path, encoded_NF)
            path.with_suffix(".json").write_text(json.dumps({"cpu_seconds": round(time.process_time() - start, 1)}))


def _encoded(folder: Path, documents: Texts, parameters: tuple[int, int, int, int | None]) -> np.ndarray:
    """Return the encodings of the documents; a final projection starts from the stored encodings without it."""
    encoding = FixedDimensionalEncoding.random(documents.dim, *parameters)
    whole = [name for name, other in ENCODINGS.items() if other == (*parameters[:3], None) != parameters]
    if whole:
        return encoding.final_projection(np.load(encoded_path(folder, whole[0]), mmap_mode="r"))
    return encoding.encode_documents(documents)


def encoded_path(folder: Path, name: str) -> Path:
    """Return the file of the documents' encodings."""
    return folder / "fde" / f"{name.replace(' ', '-').replace(',', '')}.npy"


def measure(collection: Collection, num_queries: int, encodings: Sequence[str] = tuple(ENCODINGS)) -> list[Row]:
    """Return a row for exact search and for each setting of scan and of MUVERA.

    Args:
        collection: A variant, prepared.
        num_queries: Queries to measure, the first of the collection.
        encodings: Names from ENCODINGS.
    """
    queries = inputs.load(collection.folder, "queries")
    texts = [TokenEmbeddings.of([queries[number].astype(np.float32)]) for number in range(num_queries)]
    exact_QK = collection.oracle()[:num_queries]
    searcher = Searcher.open(str(collection.folder / "ray_lir" / "index"))
    run = Run(texts, exact_QK)
    rows = [run.row({"method": "exact"}, lambda query: searcher.search(query, K, "exact")[0].documents)]
    for limit in CANDIDATES:
        params = ScanParams(ncandidates=limit)
        row = run.row({"method": "scan", "candidates": limit}, partial(_scan, searcher, params))
        rows.append(row | run.candidates(partial(_scan_candidates, searcher, params)))
    for name in encodings:
        encoding = FixedDimensionalEncoding.random(queries.dim, *ENCODINGS[name])
        path = encoded_path(collection.folder, name)
        about = {"method": "muvera", "encoding": name, "num_docs": len(collection.doc_ids)}
        about |= {"encode_cpu_seconds": json.loads(path.with_suffix(".json").read_text())["cpu_seconds"]}
        for backend, size, find in backends(np.load(path)):
            for limit in CANDIDATES:
                first = FirstStage(encoding, find, limit)
                row = run.row({**about, "backend": backend, "bytes": size, "candidates": limit}, partial(_muvera, searcher, first))
                rows.append(row | run.candidates_row(first.answers[-num_queries:], first.seconds[-num_queries:]))
    return rows


@dataclass(frozen=True, eq=False)
class Run:
    """The queries of a measurement and their exact answers, [Q, K] document numbers."""

    queries: Sequence[TokenEmbeddings]
    exact_QK: np.ndarray

    def row(self, about: Row, search: Answer) -> Row:
        """Return a row with the time of a search and its recall."""
        answers, seconds = self._timed(search)
        found_QK = harness.table(answers, K)
        recalls = {f"recall@{k}": round(recall(found_QK, self.exact_QK, k), 4) for k in (10, 100)}
        return {**about, "cpu_ms": harness.percentiles_ms(seconds), **recalls}

    def candidates(self, find: Answer) -> Row:
        """Return the time of finding candidates, and the fraction of the exact best 10 and 100 among them."""
        return self.candidates_row(*self._timed(find))

    def candidates_row(self, answers: list[np.ndarray], seconds: list[float]) -> Row:
        """Return the same from the candidates and times of all queries."""
        found_QN = harness.table(answers, max(len(answer) for answer in answers))
        shares = {f"found@{k}": round(found(found_QN, self.exact_QK, k), 4) for k in (10, 100)}
        return {"candidates_cpu_ms": harness.percentiles_ms(seconds), **shares}

    def _timed(self, answer: Answer) -> tuple[list[np.ndarray], list[float]]:
        for query in self.queries[: harness.WARM_UP]:
            answer(query)
        answers, seconds = [], []
        for query in self.queries:
            start = time.process_time()
            answers.append(answer(query))
            seconds.append(time.process_time() - start)
        return answers, seconds


@dataclass(eq=False)
class FirstStage:
    """Finds MUVERA's candidates: the documents with the best dot products with the encoding of a query.

    Attributes:
        encoding: The encoding.
        find: Finds the best dot products.
        limit: Number of candidates.
        answers: The candidates of all queries so far.
        seconds: CPU seconds of all queries so far, with the encoding of the query.
    """

    encoding: FixedDimensionalEncoding
    find: FindCandidates
    limit: int
    answers: list[np.ndarray] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def __call__(self, query: TokenEmbeddings) -> np.ndarray:
        """Return the candidates of one query."""
        start = time.process_time()
        candidates = self.find(self.encoding.encode_queries(Texts(query.values, query.offsets))[0], self.limit)
        self.seconds.append(time.process_time() - start)
        self.answers.append(candidates)
        return candidates


def found(numbers_QN: np.ndarray, exact_QK: np.ndarray, k: int) -> float:
    """Return the fraction of the exact k best documents among N candidates, as a mean over queries.

    Args:
        numbers_QN: [Q, N] document numbers in any order; -1 for none.
        exact_QK: [Q, at least k] document numbers of the exact answer.
        k: Documents to look for.
    """
    return float(np.mean([np.isin(exact[:k], numbers).mean() for numbers, exact in zip(numbers_QN, exact_QK, strict=True)]))


def _scan(searcher: Searcher, params: ScanParams, query: TokenEmbeddings) -> np.ndarray:
    """Return the best documents by the engine scan."""
    return searcher.search(query, K, params)[0].documents


def _scan_candidates(searcher: Searcher, params: ScanParams, query: TokenEmbeddings) -> np.ndarray:
    """Return the candidates of the engine scan, without rescoring."""
    plans = searcher.planner.plan(query, K, params)
    (best,) = run_stage(StageCall(plans, 0, [None], plans[0].stage_limits[:1]), searcher.shards, searcher.planner.codec, searcher.kernels)
    return best.documents


def _muvera(searcher: Searcher, candidates: Answer, query: TokenEmbeddings) -> np.ndarray:
    """Return the best candidates by exact search."""
    return searcher.search(query, K, "exact", only=candidates(query))[0].documents


def backends(encoded_NF: np.ndarray) -> Iterator[tuple[str, int, FindCandidates]]:
    """Yield name, bytes and search function of each way to find the best dot products of [N, F] encodings."""

    def by_product(query_F: np.ndarray, limit: int) -> np.ndarray:
        scores_N = encoded_NF @ query_F
        return np.argpartition(-scores_N, limit - 1)[:limit]

    yield "numpy float32", encoded_NF.nbytes, by_product
    num_docs, dim = encoded_NF.shape
    lists = int(np.sqrt(num_docs))
    flat = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    inverted = faiss.index_factory(dim, f"IVF{lists},SQ8", faiss.METRIC_INNER_PRODUCT)
    inverted.nprobe = max(1, round(PROBED_FRACTION * lists))
    graph = faiss.IndexHNSWSQ(dim, faiss.ScalarQuantizer.QT_8bit, GRAPH_NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    for name, index in {"flat 8-bit": flat, "IVF 8-bit": inverted, "HNSW 8-bit": graph}.items():
        index.train(encoded_NF)
        index.add(encoded_NF)
        yield name, len(faiss.serialize_index(index)), partial(_by_index, index)


def _by_index(index: Any, query_F: np.ndarray, limit: int) -> np.ndarray:
    """Return the numbers of the documents that a FAISS index finds; a graph keeps as many neighbours as it returns."""
    if isinstance(index, faiss.IndexHNSW):
        index.hnsw.efSearch = limit
    _, numbers_1N = index.search(query_F[None], limit)
    return numbers_1N[0][numbers_1N[0] >= 0]


def write(output: Path, variant: str, result: Row) -> None:
    """Put the rows of a variant into muvera.json, and write muvera.md and muvera.svg from all variants.

    Args:
        output: Folder of the report.
        variant: A name from VARIANTS.
        result: Its rows, mean cosine and number of queries.
    """
    path = output / "muvera.json"
    report: Row = json.loads(path.read_text()) if path.exists() else {"variants": {}}
    variants = report["variants"] | {variant: {"machine": machine() | {"instructions": instructions()}, **result}}
    report = {"variants": {name: variants[name] for name in VARIANTS if name in variants}}
    path.write_text(json.dumps(report, indent=1) + "\n")
    (output / "muvera.md").write_text(markdown(report))
    plot(report, output / "muvera.svg")


def markdown(report: Row) -> str:
    """Return tables: MUVERA within the time of scan, and every measurement by number of candidates."""
    lines = ["Made by `python -m bench.comparison.muvera` (bench/README.md). One thread, k = 100, median CPU milliseconds of a query.", ""]
    lines += ["| mean cosine | scan, candidates | CPU ms | R@10 | R@100 | best of MUVERA in that time: R@10 | R@100 | MUVERA reaches the "]
    lines[-1] += "recalls of scan less .005 in | with |"
    lines.append("|---" * 9 + "|")
    for variant in report["variants"].values():
        lines += [f"| {variant['mean_cosine']} | {line}" for line in equal_times(variant["rows"])]
    for name, variant in report["variants"].items():
        computer = variant["machine"]
        lines += ["", f"## {name}: mean cosine {variant['mean_cosine']}", ""]
        lines += [
            f"{computer['cpu']} ({', '.join(computer['instructions'])}), {variant['queries']} queries. Cells: median CPU ms, R@10, R@100.",
            "",
        ]
        lines += ["| candidates found by | bytes a document | " + " | ".join(f"{limit:,}" for limit in CANDIDATES) + " |"]
        lines.append("|---" * (2 + len(CANDIDATES)) + "|")
        for method, rows in series(variant["rows"]).items():
            size = round(rows[0]["bytes"] / rows[0]["num_docs"]) if "bytes" in rows[0] else ""
            cells = [f"{row['cpu_ms']['p50']:.1f}, {row['recall@10']:.3f}, {row['recall@100']:.3f}" for row in rows]
            lines.append(f"| {method} | {size} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def equal_times(rows: list[Row]) -> list[str]:
    """Return the ends of the lines that compare each setting of scan with MUVERA."""
    encoded = [row for row in rows if row["method"] == "muvera"]
    lines = []
    for row in (row for row in rows if row["method"] == "scan"):
        within = [each for each in encoded if each["cpu_ms"]["p50"] <= row["cpu_ms"]["p50"]]
        equal = [each for each in encoded if all(each[name] >= row[name] - TOLERANCE for name in RECALLS)]
        cells = [f"{row['candidates']:,}", f"{row['cpu_ms']['p50']:.1f}", *(f"{row[name]:.3f}" for name in RECALLS)]
        cells += [f"{max(each[name] for each in within):.3f}" if within else "none" for name in RECALLS]
        fastest = min(equal, key=lambda each: each["cpu_ms"]["p50"], default=None)
        cells += [f"{fastest['cpu_ms']['p50']:.1f}", f"{name_of(fastest)}, {fastest['candidates']:,}"] if fastest else ["not reached", ""]
        lines.append(" | ".join(cells) + " |")
    return lines


def series(rows: list[Row]) -> dict[str, list[Row]]:
    """Return the rows with candidates by method, encoding and backend."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        if "candidates" in row:
            groups.setdefault(name_of(row), []).append(row)
    return groups


def name_of(row: Row) -> str:
    """Return the name of a row's method."""
    return f"MUVERA {row['encoding']}, {row['backend']}" if row["method"] == "muvera" else row["method"]


def plot(report: Row, path: Path) -> None:
    """Plot recall against time for each variant: scan, and the best settings of each encoding of MUVERA."""
    from bench.comparison.plot import pyplot  # matplotlib is in the extra `bench` only

    variants = report["variants"]
    figure, panels = pyplot.subplots(len(RECALLS), len(variants), figsize=(4 * len(variants), 6), squeeze=False, sharex=True)
    for column, variant in enumerate(variants.values()):
        for line, recall_name in enumerate(RECALLS):
            panel = panels[line, column]
            groups: dict[str, list[Row]] = {}
            for row in variant["rows"]:
                if "candidates" in row:
                    groups.setdefault(f"MUVERA {row['encoding']}" if "encoding" in row else row["method"], []).append(row)
            for name, rows in groups.items():
                points = frontier([(row["cpu_ms"]["p50"], row[recall_name]) for row in rows])
                panel.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name)
            panel.set_xscale("log", base=2)
            panel.xaxis.set_major_formatter("{x:g}")
            panel.grid(True, which="both", alpha=0.3)
            panel.set_title(f"mean cosine {variant['mean_cosine']}" if line == 0 else "")
            panel.set_ylabel(recall_name if column == 0 else "")
            panel.set_ylim(0, 1.02)
    panels[0, 0].legend(fontsize=7)
    figure.supxlabel("median CPU ms of a query, one thread")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def frontier(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the (time, recall) points that no faster point exceeds in recall, by time."""
    best: list[tuple[float, float]] = []
    for point in sorted(points):
        if not best or point[1] > best[-1][1]:
            best.append(point)
    return best


if __name__ == "__main__":
    main()
