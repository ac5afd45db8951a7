"""k-means against token-aware clustering on the same embeddings: build time, residuals and recall of a scan; JSON and a table.

    python -m bench.kernels.clustering EMBEDDINGS QUERIES.npz [--output bench/results/clustering.json]

QUERIES.npz holds `values` [T, D] and `offsets` of encoded queries. Run it on idle cores.
"""

import argparse
import json
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench.machine import machine
from ray_lir.base.config import ClusteringConfig, IndexConfig
from ray_lir.building.build import build_index
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.engines.scan import ScanParams
from ray_lir.evaluation.latency import percentiles_ms, time_each
from ray_lir.search.searcher import Searcher

SETTINGS = [("k_means", 1), ("token_aware", 1), ("token_aware", 2), ("token_aware", 4), ("token_aware", 8)]
"""Method, and number of centroids as a multiple of the default of k-means."""
CANDIDATES = (32, 64, 128, 256)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.kernels.clustering", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("embeddings")
    parser.add_argument("queries", type=Path)
    parser.add_argument("--work", type=Path, default=Path("runs/clustering"))
    parser.add_argument("--num-queries", type=int, default=200)
    parser.add_argument("--output", type=Path, default=Path("bench/results/clustering.json"))
    options = parser.parse_args()
    with np.load(options.queries) as file:
        names = [str(i) for i in range(len(file["offsets"]) - 1)]
        queries = TokenEmbeddings(file["values"], file["offsets"], names).slice(0, min(options.num_queries, len(names)))
    default = _measure(options.embeddings, options.work, queries, "k_means", None)
    rows = [default]
    for method, times in SETTINGS[1:]:
        rows.append(_measure(options.embeddings, options.work, queries, method, times * default["num_centroids"]))
    options.output.write_text(json.dumps({"machine": machine(), "queries": len(queries), "rows": rows}, indent=1) + "\n")
    options.output.with_suffix(".md").write_text(markdown(rows))
    print(markdown(rows))


def _measure(embeddings: str, work: Path, queries: TokenEmbeddings, method: str, num_centroids: int | None) -> dict[str, Any]:
    """Measure one clustering: its build, and the fraction of the exact top 10 and top 100 among the best R by centroids."""
    output = work / f"{method}-{num_centroids or 'default'}"
    shutil.rmtree(output, ignore_errors=True)
    config = IndexConfig(clustering=ClusteringConfig(method=method, num_centroids=num_centroids))
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    manifest = build_index(embeddings, str(output), config)
    after, seconds = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter() - start
    searcher = Searcher.open(str(output))
    exact = [answer.documents for answer in searcher.search(queries, 100, "exact")]
    row: dict[str, Any] = {
        "method": method,
        "num_centroids": manifest.num_centroids,
        "build_s": seconds,
        "build_cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "mean_residual_norm": manifest.mean_residual_norm,
    }
    for count in CANDIDATES:
        found = [answer.documents for answer in searcher.search(queries, max(10, min(count, 100)), ScanParams(ncandidates=count))]
        row[f"R@10 of {count}"] = float(np.mean([np.isin(a[:10], b).mean() for a, b in zip(exact, found, strict=True)]))
    times = time_each(lambda i: searcher.search(queries.slice(i, i + 1), 10, ScanParams(ncandidates=128)), range(min(50, len(queries))))
    return row | {"scan_ms": percentiles_ms(times)}


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the report as Markdown."""
    kept = " | ".join(f"exact top 10 in best {count}" for count in CANDIDATES)
    lines = [
        f"| clustering | centroids | build CPU s | mean residual norm | {kept} | scan p50 ms |",
        "|---|---|---|---|" + "---|" * len(CANDIDATES) + "---|",
    ]
    for row in rows:
        shares = " | ".join(f"{row[f'R@10 of {count}']:.3f}" for count in CANDIDATES)
        built = f"{row['build_cpu_s']:.1f} | {row['mean_residual_norm']:.3f}"
        lines.append(f"| {row['method']} | {row['num_centroids']:,} | {built} | {shares} | {row['scan_ms']['p50']:.2f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
