"""The recall-latency plot of compare.py."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "ray_lir"  # equal measurements give equal files

from matplotlib import pyplot  # noqa: E402


def plot(report: dict[str, Any], path: Path) -> None:
    """Plot one panel for each size: recall@10 across, milliseconds a query up, and one line for each system through its settings."""
    sizes = [size for size in report["sizes"] if any("recall@10" in row for row in size["searches"])]
    if not sizes:
        return
    figure, panels = pyplot.subplots(1, len(sizes), figsize=(7 * len(sizes), 5), squeeze=False)
    for panel, size in zip(panels[0], sizes, strict=True):
        for name, points in curves(size["searches"]).items():
            panel.plot(*zip(*points, strict=True), marker="o", label=name)
        panel.set_yscale("log")
        panel.set_xlabel("recall@10 against exact MaxSim")
        panel.set_ylabel("ms a query (p50), one thread")
        panel.set_title(f"{size['size']}: {size['num_tokens'] / 1e6:.1f} million tokens")
        panel.grid(True, which="both", alpha=0.3)
        panel.legend()
    figure.suptitle(report["machine"]["cpu"])
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)


def curves(searches: list[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Return (recall@10, p50 ms) by latency for each system, and for each engine of a system with several."""
    points: dict[str, list[tuple[float, float]]] = {}
    for row in searches:
        if "recall@10" in row:
            name = " ".join(filter(None, [row["system"], row["options"].get("engine")]))
            points.setdefault(name, []).append((row["recall@10"], row["latency_ms"]["p50"]))
    return {name: sorted(found, key=lambda point: point[1]) for name, found in points.items()}
