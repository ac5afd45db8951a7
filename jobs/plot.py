"""Draws the curves of one or several trainings as a PNG file."""

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from ray_lir import storage
from ray_lir.base.config import Config, parse_json
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.base.extras import require

from .cli import main
from .hits import names

CURVE = "metrics.jsonl"
PANELS = {
    "ndcg_at_10": "nDCG@10 on the development set",
    "loss": "loss",
    "contrastive_loss": "cross-entropy",
    "own_contrastive_loss": "cross-entropy over own documents",
    "distillation_loss": "distillation loss",
    "query_weight_penalty": "penalty on query weights",
    "learning_rate": "learning rate",
    "gradient_norm": "gradient norm",
    "temperature": "temperature",
    "distillation_temperature": "temperature of the distillation",
    "query_weight": "mean query weight",
    "query_weight_std": "standard deviation of query weights",
    "closed_fraction": "fraction of closed gates",
    "examples_per_second": "examples a second",
}
"""Numbers of a step and the titles of their panels. A number that never changes has no panel, unless it is the loss."""
COLUMNS = 3
SMOOTHED = ("loss", "contrastive_loss", "own_contrastive_loss", "distillation_loss", "gradient_norm", "examples_per_second")


class PlotJob(Config):
    """Draws the curves of trainings: loss, nDCG@10, learning rate, gradient norm, temperatures, gates and speed."""

    runs: Annotated[tuple[str, ...], BeforeValidator(names)] = Field(min_length=1)
    """Folders or URLs of trainings, also of unfinished ones; several are separated by commas and share the panels."""
    output: str = "curve.png"
    """PNG file to write."""


def run(job: PlotJob) -> dict[str, Any]:
    """Draw the curves and return the file and the number of steps of each training.

    Raises:
        ConfigError: A folder holds no training, or matplotlib is not installed.
        FormatError: The curve of a training is damaged.
    """
    require("matplotlib", "plot")
    curves = {folder: read_curve(folder) for folder in job.runs}
    draw(curves, storage.local_output(job.output))
    return {"output": job.output, "steps": {folder: int(curve[-1]["step"]) for folder, curve in curves.items()}}


def read_curve(folder: str) -> list[dict[str, Any]]:
    """Return the records of a training, one a step.

    Raises:
        ConfigError: The folder holds no training that has saved a checkpoint.
        FormatError: The curve is damaged.
    """
    file = storage.join(storage.absolute(folder), CURVE)
    if not storage.exists(file):
        raise ConfigError(f"{folder} has no {CURVE}; give the output of a training that has saved a checkpoint")
    try:
        records = [parse_json(line) for line in storage.read_bytes(file).decode().splitlines()]
        if records and all(isinstance(record["step"], int) for record in records):
            return records
    except (ValueError, KeyError, TypeError):
        pass
    raise FormatError(file, "one record a step, as JSON lines", "something else", "train again into another folder")


def draw(curves: dict[str, list[dict[str, Any]]], output: Path) -> None:
    """Draw one panel for each number that changes, and one line in it for each training."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = [name for name in PANELS if name == "loss" or any(_changes(curve, name) for curve in curves.values())]
    columns = min(COLUMNS, len(shown))
    rows = math.ceil(len(shown) / columns)
    figure = Figure(figsize=(4.4 * columns, 2.9 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    for number, name in enumerate(shown):
        axes = figure.add_subplot(rows, columns, number + 1)
        for color, (folder, curve) in enumerate(curves.items()):
            points = [(record["step"], record[name]) for record in curve if record.get(name) is not None]
            steps, values = zip(*points, strict=True) if points else ((), ())
            smoothed = name in SMOOTHED and len(values) > 20
            marker = "o" if name == "ndcg_at_10" else None
            axes.plot(steps, values, color=f"C{color}", alpha=0.25 if smoothed else 1.0, marker=marker, linewidth=1.2, markersize=3)
            if smoothed:
                axes.plot(steps, _moving_mean(values), color=f"C{color}", linewidth=1.6)
            axes.plot([], [], color=f"C{color}", label=folder)
        axes.set_title(PANELS[name], fontsize=10)
        axes.grid(alpha=0.25)
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
        if number >= len(shown) - columns:
            axes.set_xlabel("step", fontsize=9)
    if len(curves) > 1:
        figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", fontsize=9, ncols=3)
    figure.savefig(output, dpi=130, format="png")


def _changes(curve: list[dict[str, Any]], name: str) -> bool:
    return len({record[name] for record in curve if record.get(name) is not None}) > 1


def _moving_mean(values: tuple[float, ...]) -> list[float]:
    """Return the mean of each value and those before it, in a window of a twentieth of the curve."""
    window = max(2, len(values) // 20)
    return [sum(values[max(0, end - window) : end]) / min(end, window) for end in range(1, len(values) + 1)]


if __name__ == "__main__":
    main(PlotJob, run, positional="runs")
