"""The report of compare.py, from the measurements in its work folder: compare.json, compare.md and a plot."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from bench.comparison.collection import SIZES, Collection, open_collection
from bench.comparison.environments import REQUIREMENTS
from bench.comparison.systems import LOWER_BOUND, SYSTEMS, slug
from bench.machine import instructions, machine
from ray_lir import __version__
from ray_lir.evaluation import metrics

Row = dict[str, Any]
OURS = "ray_lir"
REFERENCE = "reference"
"""Folder, in a peer's, of ray_lir's measurements in the same run."""
GROWING = ("auto", "exact", "scan", "plaid", "warp")
"""Settings in the table of growing cost."""


def write_report(work: Path, output: Path, name: str = "compare") -> None:
    """Write the report of all existing measurements.

    Args:
        work: Work folder with the measurements.
        output: Folder of the report.
        name: The files are NAME.json, NAME.md and NAME.svg.
    """
    report = {
        "machine": machine() | {"instructions": instructions()},
        "versions": {"ray_lir": __version__} | {path.stem: pins(path) for path in sorted(REQUIREMENTS.glob("*.txt"))},
        "sizes": [measurements(work, size) for size in SIZES if (work / size / "about.json").exists()],
    }
    output.mkdir(parents=True, exist_ok=True)
    (output / f"{name}.json").write_text(json.dumps(report, indent=1) + "\n")
    (output / f"{name}.md").write_text(markdown(report))
    print(markdown(report))
    from bench.comparison.plot import plot  # matplotlib is in the extra `bench` only

    plot(report, output / f"{name}.svg")


def measurements(work: Path, size: str) -> Row:
    """Return every build and setting of one size."""
    collection = open_collection(None, size, work)
    offsets = np.load(collection.folder / "documents-offsets.npy")
    num_tokens = int(offsets[-1])
    builds, searches = [], []
    for name in SYSTEMS:
        results = collection.folder / slug(name)
        for path in (results / "build.json", results / LOWER_BOUND):
            if path.exists():
                builds.append({"system": name, **build_row(json.loads(path.read_text()), num_tokens)})
        if (results / "build.json").exists():
            searches += [{"system": name, **row} for row in _search_rows(name, results, collection, num_tokens)]
    return {
        "size": size,
        "num_docs": len(offsets) - 1,
        "num_tokens": num_tokens,
        "num_queries": len(collection.query_ids),
        "builds": builds,
        "searches": searches,
    }


def build_row(build: Row, num_tokens: int) -> Row:
    """Return a build with its bytes a token; a failed build is unchanged."""
    return build if "error" in build else {**build, "bytes_per_token": round(build["disk_bytes"] / num_tokens, 2)}


def _search_rows(system: str, results: Path, collection: Collection, num_tokens: int) -> list[Row]:
    """One row for each setting: latency and recall from the run with most queries, throughput from the largest batch."""
    rows = []
    for setting in SYSTEMS[system].settings:
        found = [(path, json.loads(path.read_text())) for path in sorted(results.glob(f"{slug(setting)}-t*.json"))]
        measured = [(path, result) for path, result in found if "error" not in result]
        if not measured:
            rows += [{"setting": setting, "error": result["error"]} for _, result in found[-1:]]
            continue
        single = [(path, result) for path, result in measured if "latency_ms" in result]
        row: Row = {"setting": setting, "options": measured[0][1]["options"]}
        if single:
            path, result = max(single, key=lambda item: item[1]["queries"])
            row |= {key: result[key] for key in ("queries", "latency_ms", "cpu_ms")}
            row["memory_bytes_per_token"] = round(result["memory_bytes"] / num_tokens, 2)
            reference = results / REFERENCE / path.name
            if reference.exists() and "cpu_ms" in (again := json.loads(reference.read_text())):
                row["reference_cpu_ms"] = again["cpu_ms"]
            row |= quality(np.load(path.with_suffix(".npy")), collection)
        batched = sorted((result for _, result in measured if "batch" in result), key=lambda result: result["batch"]["size"])
        batches = {result["threads"]: result["batch"] for result in batched}
        row["queries_per_second"] = {str(threads): round(b["size"] / b["seconds"], 2) for threads, b in sorted(batches.items())}
        rows.append(row)
    return rows


def quality(numbers_QK: np.ndarray, collection: Collection) -> dict[str, float]:
    """Return recall of the oracle's best 10 and 100, and nDCG@10 if documents are judged, for the first Q queries."""
    values = {}
    if collection.has_oracle:
        best = collection.oracle()[: len(numbers_QK)]
        values = {f"recall@{k}": round(recall(numbers_QK, best, k), 4) for k in (10, 100) if k <= numbers_QK.shape[1]}
    if collection.qrels:
        judged = {query: collection.qrels[query] for query in collection.query_ids[: len(numbers_QK)]}
        run = {
            query: [(collection.doc_ids[number], -float(rank)) for rank, number in enumerate(row) if number >= 0]
            for query, row in zip(judged, numbers_QK, strict=True)
        }
        values["nDCG@10"] = round(metrics.means(metrics.evaluate(run, judged, ["nDCG@10"]))["nDCG@10"], 4)
    return values


def recall(numbers_QK: np.ndarray, best_QK: np.ndarray, k: int) -> float:
    """Return the fraction of the oracle's k best documents among the k best found, as a mean over queries.

    Args:
        numbers_QK: [Q, K] document numbers found, best first; -1 for none.
        best_QK: [Q, at least k] document numbers of the oracle, best first.
        k: Documents to compare.
    """
    shares = [len(np.intersect1d(found[:k], exact[:k])) / len(exact[:k]) for found, exact in zip(numbers_QK, best_QK, strict=True)]
    return float(np.mean(shares))


def markdown(report: Row) -> str:
    """Return a table of builds and one of searches for each size."""
    computer = report["machine"]
    lines = [
        f"{computer['cpu']}, {computer['cores']} cores ({', '.join(computer['instructions'])}), {computer['memory_gb']} GB. "
        "Made by `python -m bench.compare` (bench/README.md).",
    ]
    for size in report["sizes"]:
        lines += ["", f"## {size['size']}: {size['num_docs']:,} documents, {size['num_tokens']:,} tokens", ""]
        lines += ["| build | threads | seconds | CPU seconds | peak MB (input held) | bytes a token on disk |", "|---|---|---|---|---|---|"]
        lines += [build_line(row) for row in size["builds"]]
        lines += ["", "| search, k=100 | setting | p50 ms | p95 ms | CPU ms | queries/s, 1 thread | 2 threads | bytes a token in memory "]
        lines[-1] += "| R@10 | R@100 | nDCG@10 | queries | CPU ms / ray_lir's in the same run |"
        lines += ["|---" * 13 + "|"]
        lines += [search_line(row) for row in size["searches"]]
    return "\n".join([*lines, *growth(report["sizes"])]) + "\n"


def growth(sizes: list[Row]) -> list[str]:
    """Return the lines of a table of this project's cost by size; none if only one size was measured."""
    measured = [size for size in sizes if any(row["system"] == OURS and "error" not in row for row in size["builds"])]
    if len(measured) < 2:
        return []
    builds = [next(row for row in size["builds"] if row["system"] == OURS) for size in measured]
    rows = {
        "ray_lir": [f"{size['num_tokens'] / 1e6:.1f} M tokens" for size in measured],
        "---": ["---"] * len(measured),
        "build, CPU seconds": [number(row["cpu_seconds"]) for row in builds],
        "build, peak MB": [number(row["peak_bytes"] / 2**20) for row in builds],
    }
    for setting in GROWING:
        found = [next((row for row in size["searches"] if (row["system"], row["setting"]) == (OURS, setting)), {}) for size in measured]
        rows[f"{setting}, CPU ms a query"] = [number(row.get("cpu_ms", {}).get("mean")) for row in found]
        rows[f"{setting}, R@10"] = [f"{row['recall@10']:.3f}" if "recall@10" in row else "" for row in found]
    return ["", "## How cost grows", "", *("| " + " | ".join([name, *cells]) + " |" for name, cells in rows.items())]


def build_line(row: Row) -> str:
    """Return the table line of a build."""
    if "error" in row:
        return f"| {row['system']} | | {row['error']} | | | |"
    if "assembled" in row:
        return f"| {row['system']} | | assembled ({row['assembled']}) | | | {row['bytes_per_token']} |"
    peak, held = (round(row[key] / 2**20) for key in ("peak_bytes", "held_bytes"))
    times = f"{number(row['seconds'])} | {number(row['cpu_seconds'])}"
    return f"| {row['system']} | {row['threads']} | {times} | {peak} ({held}) | {row['bytes_per_token']} |"


def search_line(row: Row) -> str:
    """Return the table line of a search setting."""
    if "error" in row:
        return f"| {row['system']} | {row['setting']} | {row['error']} " + "| " * 10 + "|"
    single, many = row.get("latency_ms", {}), row["queries_per_second"]
    cells = [row["system"], row["setting"], number(single.get("p50")), number(single.get("p95")), number(row.get("cpu_ms", {}).get("mean"))]
    cells += [number(many.get("1")), number(many.get("2")), number(row.get("memory_bytes_per_token"))]
    cells += ["" if key not in row else f"{row[key]:.3f}" for key in ("recall@10", "recall@100", "nDCG@10")]
    ratio = row["cpu_ms"]["mean"] / row["reference_cpu_ms"]["mean"] if "reference_cpu_ms" in row else None
    return "| " + " | ".join([*cells, str(row.get("queries", "")), number(ratio)]) + " |"


def number(value: float | None) -> str:
    """Return three digits, the precision of a measurement on a shared machine."""
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def pins(requirements: Path) -> list[str]:
    """Return the packages of a requirements file."""
    return [line for line in requirements.read_text().splitlines() if line and not line.startswith("#")]
