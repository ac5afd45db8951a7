"""The README's chart: recall against processor time for each system, from results/compare.json."""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "ray_lir"  # equal results give equal files
matplotlib.rcParams["svg.fonttype"] = "none"

from matplotlib import pyplot  # noqa: E402

ROOT = Path(__file__).parents[2]
SIZE = "small"


def draw(results: dict[str, Any], path: Path) -> None:
    """Write a scatter plot: processor milliseconds a query (log scale) across, recall@10 up, one colour a system."""
    size = next(each for each in results["sizes"] if each["size"] == SIZE)
    points: dict[str, list[tuple[float, float]]] = {}
    for row in size["searches"]:
        if "recall@10" in row:
            points.setdefault(row["system"], []).append((row["cpu_ms"]["mean"], row["recall@10"]))
    figure, axes = pyplot.subplots(figsize=(7.2, 3.6))
    for system, marker in zip(points, "osD^vP", strict=False):
        axes.scatter(*zip(*points[system], strict=True), label=system, marker=marker, s=36)
    axes.set_xscale("log")
    axes.set_xlabel("processor milliseconds a query (lower is better)")
    axes.set_ylabel("recall@10 of exact MaxSim")
    axes.set_title(f"{size['num_docs']:,} documents, {size['num_tokens'] / 1e6:.2f} million tokens, k = 100", fontsize=10)
    axes.grid(True, alpha=0.3)
    axes.legend(loc="lower right", fontsize=8)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    path.write_text("\n".join(line.rstrip() for line in path.read_text().splitlines()) + "\n")


if __name__ == "__main__":
    draw(json.loads((ROOT / "bench/results/compare.json").read_text()), ROOT / "docs/images/comparison.svg")
