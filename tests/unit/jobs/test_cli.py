"""The command line of all jobs."""

import json
from typing import Any

import pytest

from jobs.cli import main, parse
from jobs.help import help_text
from jobs.search import SearchJob
from ray_lir.base.config import IndexConfig
from ray_lir.base.errors import ConfigError


class Job(IndexConfig):
    """A job for the tests."""

    output: str
    """Where."""
    label: str | None = None
    sizes: tuple[int, ...] = ()
    quiet: bool = False
    params: dict[str, Any] = {}


def test_flags_set_nested_fields_with_dashes_underscores_and_equals_signs():
    job = parse(Job, ["--output", "out", "--codec.nbits=2", "--num-shards", "3", "--clustering.num_iterations", "7", "--sizes", "[1, 2]"])
    assert (job.output, job.codec.nbits, job.num_shards, job.clustering.num_iterations, job.sizes) == ("out", 2, 3, 7, (1, 2))


def test_a_boolean_flag_works_with_and_without_a_value():
    assert parse(Job, ["--quiet", "--output", "x"]).quiet and parse(Job, ["--output", "x", "--quiet"]).quiet
    assert parse(Job, ["--quiet", "yes", "--output", "x"]).quiet
    assert not parse(Job, ["--output", "x", "--quiet", "false"]).quiet and not parse(Job, ["--output", "x", "--quiet=no"]).quiet


def test_a_mapping_is_given_as_yaml_on_the_command_line_and_in_a_recipe(tmp_path):
    assert parse(Job, ["--output", "x", "--params", "{nprobe: 4}"]).params == {"nprobe": 4}
    recipe = tmp_path / "job.yaml"
    recipe.write_text("output: there\nparams: {nprobe: 8}\n")
    assert parse(Job, ["--recipe", str(recipe)]).params == {"nprobe": 8}


def test_text_fields_take_any_text_and_none_stays_none():
    job = parse(Job, ["--output", "007", "--label", "none", "--num-shards", "none"])
    assert (job.output, job.label, job.num_shards) == ("007", None, None)


def test_a_recipe_is_a_complete_job_and_flags_win(tmp_path):
    recipe = tmp_path / "job.yaml"
    recipe.write_text("output: there\ncodec:\n  nbits: 8\n  buckets: quantile\n")
    job = parse(Job, ["--recipe", str(recipe), "--codec.nbits", "1"])
    assert (job.output, job.codec.nbits, job.codec.buckets) == ("there", 1, "quantile")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--output", "x", "--codec.nbit", "2"], "unknown field --codec.nbit; did you mean --codec.nbits?"),
        (["--output", "x", "--nbits", "2"], "did you mean --codec.nbits?"),
        (["--output", "x", "--quite-wrong", "2"], "the fields are num_shards"),
        (["--output", "x", "--codec.nbits", "3"], "--codec.nbits: input should be 1, 2, 4 or 8, not 3"),
        (["--output", "x", "--num-shards", "many"], "--num_shards: input should be a valid integer"),
        ([], "--output is required"),
        (["--output"], "--output needs a value"),
        (["out"], "unexpected argument 'out'"),
        (["--recipe", "/nowhere.yaml"], "cannot read the recipe /nowhere.yaml"),
    ],
)
def test_invalid_arguments_are_one_line_errors_with_the_fix(arguments, message):
    with pytest.raises(ConfigError) as caught:
        parse(Job, arguments)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_a_recipe_extends_another_one(tmp_path):
    (tmp_path / "base.yaml").write_text("output: there\ncodec:\n  nbits: 8\n  buckets: quantile\n")
    (tmp_path / "job.yaml").write_text("extends: base.yaml\ncodec:\n  nbits: 2\n")
    job = parse(Job, ["--recipe", str(tmp_path / "job.yaml")])
    assert (job.output, job.codec.nbits, job.codec.buckets) == ("there", 2, "quantile")
    (tmp_path / "base.yaml").write_text("extends: job.yaml\noutput: there\n")
    with pytest.raises(ConfigError, match="does not extend this one"):
        parse(Job, ["--recipe", str(tmp_path / "job.yaml")])
    (tmp_path / "base.yaml").unlink()
    with pytest.raises(ConfigError, match="cannot read the recipe .*base.yaml"):
        parse(Job, ["--recipe", str(tmp_path / "job.yaml")])


def test_a_recipe_with_a_misspelt_field_or_no_mapping_is_refused(tmp_path):
    recipe = tmp_path / "job.yaml"
    recipe.write_text("output: there\ncodec: {nbist: 8}\n")
    with pytest.raises(ConfigError, match=r"unknown field codec\.nbist; did you mean codec\.nbits\?"):
        parse(Job, ["--recipe", str(recipe)])
    recipe.write_text("- a list")
    with pytest.raises(ConfigError, match="must map fields to values"):
        parse(Job, ["--recipe", str(recipe)])


def test_the_result_is_the_last_line_and_a_mistake_exits_with_2(capsys):
    main(Job, lambda job: {"output": job.output}, ["--output", "x"])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"output": "x"}

    def fails(job: Job) -> dict:
        raise ConfigError("the disk is a plate; use a disk")

    with pytest.raises(SystemExit) as exit:
        main(Job, fails, ["--output", "x"])
    captured = capsys.readouterr()
    assert exit.value.code == 2 and captured.err == "error: the disk is a plate; use a disk\n" and not captured.out


def test_help_lists_every_field_with_its_description(capsys):
    with pytest.raises(SystemExit) as exit:
        parse(Job, ["--help"])
    shown = capsys.readouterr().out
    assert exit.value.code == 0 and "--codec.nbits" in shown and "--recipe FILE" in shown and "Where." in shown


def test_a_terminal_shows_fields_and_json_on_request(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    main(Job, lambda job: {"output": job.output, "bytes": 12345, "parts": [{"a": 1}, {"a": 2}]}, ["--output", "x"])
    assert capsys.readouterr().out.splitlines() == ["output  x", "bytes   12,345", "parts   a=1", "        a=2"]
    main(Job, lambda job: {"output": job.output}, ["--output", "x", "--json"])
    assert json.loads(capsys.readouterr().out) == {"output": "x"}
    main(Job, lambda job: {"output": job.output}, ["x"], show=lambda result, _: print("shown", result["output"]), positional="output")
    assert capsys.readouterr().out == "shown x\n"


def test_an_unexpected_error_is_one_line_with_exit_code_1(capsys):
    def fails(job: Job) -> dict:
        raise ZeroDivisionError("division\nby zero")

    with pytest.raises(SystemExit) as exit:
        main(Job, fails, ["--output", "x"])
    shown = capsys.readouterr().err
    assert exit.value.code == 1 and shown.startswith("error: unexpected ZeroDivisionError: division by zero;") and shown.count("\n") == 1


def test_every_sentence_of_the_help_is_complete(capsys):
    with pytest.raises(SystemExit):
        parse(Job, ["--help"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "None: 8 sqrt(number of tokens), or twice as many with token_aware. (default: none)" in shown
    assert "--codec.nbits {1,2,4,8} Bits a dimension of a residual. (default: 4)" in shown and "Where. (required)" in shown


@pytest.mark.parametrize(
    "words", [["--quiet", "there"], ["there", "--quiet"], ["--quiet", "true", "there"], ["--label", "l", "there", "--quiet"]]
)
def test_one_positional_argument_is_accepted_anywhere(words):
    job = parse(Job, words, "output")
    assert (job.output, job.quiet) == ("there", True)
    with pytest.raises(ConfigError, match="unexpected argument 'more'"):
        parse(Job, [*words, "more"], "output")


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_scores_and_gradients_are_finite(value):
    with pytest.raises(ConfigError, match="is not a finite number"):
        parse(Job, ["--output", "x", "--params", f"{{weight: {value}}}"])


@pytest.mark.parametrize("text", ["1984", "year: 2020", "[a, b]", "true"])
def test_a_query_that_looks_like_yaml_stays_text(text: str):
    assert parse(SearchJob, ["--index", "i", text], positional="query").query == text
    assert parse(SearchJob, ["--index", "i", "--query", text], positional="query").query == text


def test_help_describes_the_query_as_text_and_names_the_engines():
    text = help_text(SearchJob, "usage")
    assert "--query TEXT" in text and "Engine that searches: auto" in text
