"""jobs.train: invalid arguments are one-line errors and write nothing, and every recipe is a complete job."""

import json
from pathlib import Path

import pytest

from jobs import cli
from jobs.evaluate import EvaluateConfig
from jobs.mine import MineConfig
from jobs.train import TrainJob, run
from ray_lir.base.config import XtrConfig
from ray_lir.scorers import SCORERS
from tests.support.repository import REPOSITORY
from tests.support.training_jobs import flags, make_place


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return make_place(tmp_path_factory.mktemp("train"))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dataset", "nowhere", "no dataset"),
        ("split", "dev", "no split 'dev'"),
        ("scorer", "colpali", "--scorer"),
        ("batch_size", 1, "--batch_size"),
        ("batch_size", 97, "--batch_size 97 is more than the 96 queries"),
        ("num_negatives", 1, "--num_negatives 1 is more than the 0 that come with"),
        ("contrastive_weight", 0, "cannot all be 0"),
        ("examples", "nowhere.jsonl", "nowhere.jsonl"),
        ("dev_split", "dev", "no split 'dev'"),
        ("num_workers", 3, "cannot be shared evenly"),
        ("max_steps", 0, "--max_steps"),
        ("encoder.checkpoint", "/nowhere", "no checkpoint folder /nowhere"),
        ("encoder.precision", "float16", "--encoder.precision float16"),
        ("encoder.projection", "pca:8", "--encoder.projection"),
        ("learning_rat", 1, "did you mean --learning_rate?"),
    ],
)
def test_an_invalid_argument_is_a_one_line_error_and_nothing_is_written(place, capsys, field, value, message):
    with pytest.raises(SystemExit, match="2"):
        cli.main(TrainJob, run, flags(place, "mistake", **{field: value}))
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("error: ") and message in error
    assert not (place / "mistake").exists()


def test_an_output_folder_with_other_content_is_left_alone(place, capsys):
    (place / "other").mkdir()
    (place / "other" / "notes.txt").write_text("mine")
    with pytest.raises(SystemExit, match="2"):
        cli.main(TrainJob, run, flags(place, "other"))
    assert "holds no training; give another --output" in capsys.readouterr().err
    assert [path.name for path in (place / "other").iterdir()] == ["notes.txt"]


def test_an_unfinished_training_does_not_continue_with_another_configuration(place, capsys, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "config.json").write_text(json.dumps({"scorer": "maxsim", "max_steps": 7}))
    with pytest.raises(SystemExit, match="2"):
        cli.main(TrainJob, run, flags(place, tmp_path))
    assert "max_steps 7 and not 80" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", sorted((REPOSITORY / "jobs" / "recipes").glob("*.yaml")), ids=lambda path: path.name)
def test_recipes_are_complete_jobs_except_for_their_folders(recipe):
    """Published recipes name the source of each value."""
    verb = recipe.name.partition("_")[0]
    kind, folders = {
        "mine": (MineConfig, ["--index", "index", "--output", "there.jsonl"]),
        "train": (TrainJob, ["--output", "there"]),
        "evaluate": (EvaluateConfig, ["--index", "index"]),
    }[verb]
    job = cli.parse(kind, ["--recipe", str(recipe), "--dataset", "words", *folders])
    settings = [line for line in recipe.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if "small" in recipe.name:
        assert job.max_steps <= 100 and job.encoder.document_length == 96
    else:
        unsourced = {line.partition(":")[0] for line in settings if "#" not in line and not line.endswith(":")}
        assert unsourced <= {"scorer", "checkpoint_every"}


def row(recipe: str) -> TrainJob:
    path = REPOSITORY / "jobs" / "recipes" / f"train_{recipe}.yaml"
    return cli.parse(TrainJob, ["--recipe", str(path), "--dataset", "words", "--output", "there"])


def test_every_row_of_the_xtr_studys_tables_has_a_recipe():
    """Recipes that extend another one differ from it in what their row says, and in nothing else."""
    for k in (64, 256, 512):
        assert row(f"xtr_1_k{k}") == row("xtr_1").model_copy(update={"xtr": XtrConfig(k_train=(k,))})
    colbert = {"scorer": "maxsim", "temperature": 0.2}
    assert row("xtr_1_colbert") == row("xtr_1").model_copy(update=colbert)
    assert row("xtr_2_contrastive_colbert") == row("xtr_2_contrastive").model_copy(update=colbert)
    assert row("xtr_2_distill_colbert") == row("xtr_2_distill").model_copy(update={"scorer": "maxsim"})
    for loss in ("contrastive", "distill"):
        assert row(f"xtr_2_{loss}").xtr.k_train == (512, 256)
        for k in (256, 512):
            expected = row(f"xtr_2_{loss}").model_copy(update={"xtr": XtrConfig(k_train=(k,))})
            assert row(f"xtr_2_{loss}_k{k}") == expected


def test_both_lengths_of_trial_are_reachable():
    article, code = row("trial_article"), row("trial")
    assert [(each.encoder.query_length, each.encoder.document_length) for each in (article, code)] == [(40, 320), (32, 300)]
    assert (article.trial.first_match, code.trial.first_match) == ("first_token", "best")
    assert article.encoder.checkpoint == code.encoder.checkpoint and not article.learn_temperatures


@pytest.mark.parametrize(("text", "expected"), [("512", (512,)), ("[512, 256]", (512, 256))])
def test_one_k_or_several_can_be_given(text, expected):
    job = cli.parse(TrainJob, ["--dataset", "words", "--output", "there", "--scorer", "xtr", "--xtr.k_train", text])
    assert job.xtr.k_train == job.scorer_settings.k_train == expected


def test_every_scorer_has_a_published_and_a_small_recipe():
    recipes = [
        cli.parse(TrainJob, ["--recipe", str(path), "--dataset", "words", "--output", "there"])
        for path in (REPOSITORY / "jobs" / "recipes").glob("train_*.yaml")
    ]
    for small in (True, False):
        assert {job.scorer for job in recipes if (job.max_steps <= 100) == small} == set(SCORERS)
