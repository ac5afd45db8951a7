"""`ray-lir plot`: the curves of trainings as a PNG file."""

import json
from pathlib import Path

import pytest

from jobs import plot
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.training.trainer import StepRecord


def write_run(folder: Path, num_steps: int, scale: float = 1.0) -> Path:
    folder.mkdir()
    records = [
        StepRecord(
            step=step,
            loss=scale / step,
            learning_rate=1e-5 * step,
            temperature=0.05,
            contrastive_loss=scale / step,
            ndcg_at_10=0.5 if step % 10 == 0 else None,
        )
        for step in range(1, num_steps + 1)
    ]
    (folder / "metrics.jsonl").write_text("".join(record.model_dump_json() + "\n" for record in records))
    return folder


def test_curves_of_two_trainings_share_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    first, second = write_run(tmp_path / "first", 40), write_run(tmp_path / "second", 20, 2.0)
    picture = tmp_path / "curve.png"
    result = plot.run(plot.PlotJob(runs=(str(first), str(second)), output=str(picture)))
    assert result["steps"] == {str(first): 40, str(second): 20}
    content = picture.read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 10_000


def test_a_number_that_never_changes_has_no_panel(tmp_path):
    figure = pytest.importorskip("matplotlib.figure")
    titles = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figure.Figure, "savefig", lambda self, *_, **__: titles.extend(axes.get_title() for axes in self.axes))
        plot.draw({"run": plot.read_curve(str(write_run(tmp_path / "run", 12)))}, tmp_path / "curve.png")
    assert titles == ["loss", "cross-entropy", "learning rate"]


def test_a_folder_without_a_curve_and_a_damaged_curve_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="has no metrics.jsonl; give the output of a training"):
        plot.read_curve(str(tmp_path))
    for content in ("", "{", json.dumps({"loss": 1}), "[1]"):
        (tmp_path / "metrics.jsonl").write_text(content)
        with pytest.raises(FormatError, match="one record a step"):
            plot.read_curve(str(tmp_path))
