"""bench.papers: the list of tables and figures is complete, its commands parse, and they run on tiny data."""

import importlib
import json
import shlex
import subprocess
import sys

import numpy as np
import pytest

from bench.papers.__main__ import POSITIONAL, _job, execute, listing, prepare
from bench.papers.exhibits import ATTENTION, EXHIBITS, TRIAL, XTR
from jobs import cli
from ray_lir.evaluation.analyses import ANALYSES
from tests.support.repository import REPOSITORY

EXPECTED = {
    XTR: {"figure 1", "figure 2", "figure 3", "figure 4", "anisotropy", "table 1", "table 2", "table 3"},
    TRIAL: {f"figure {number}" for number in (1, 2, 3)} | {f"table {number}" for number in range(1, 9)},
    ATTENTION: {"table 1", "table 2", "table 3", "table 4a", "table 4b"},
}
PLACES = {name: f"/nowhere/{name}" for name in ("maxsim", "xtr", "trial", "plain", "attention", "data", "out")}
COMMANDS = sorted({command for exhibit in EXHIBITS for command in exhibit.commands})


def test_every_table_and_figure_is_listed():
    found = {paper: {exhibit.label for exhibit in EXHIBITS if exhibit.paper == paper} for paper in EXPECTED}
    assert found == EXPECTED and len(EXHIBITS) == sum(map(len, EXPECTED.values()))
    shown = listing()
    for exhibit in EXHIBITS:
        assert f"{exhibit.paper}, {exhibit.label}: {exhibit.shows}" in shown and exhibit.result in shown
        assert exhibit.commands


def test_every_analysis_belongs_to_an_exhibit():
    named = {command.split("--analyses ")[1].split()[0] for command in COMMANDS if command.startswith("jobs.analyze")}
    assert named == set(ANALYSES)


@pytest.mark.parametrize("command", COMMANDS)
def test_flags_of_the_commands_exist(command, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    module, *flags = shlex.split(command.format(**PLACES))
    config_type, _ = _job(module, importlib.import_module(module))
    cli.parse(config_type, flags, POSITIONAL.get(module, ()))


def test_results_that_are_files_of_the_repository_exist():
    for exhibit in EXHIBITS:
        for word in exhibit.result.replace(";", " ").split():
            if word.startswith("bench/"):
                assert (REPOSITORY / word).exists()


def test_the_command_prints_the_list():
    shown = subprocess.run(
        [sys.executable, "-m", "bench.papers", "--list"], cwd=REPOSITORY, capture_output=True, text=True, check=True, timeout=120
    ).stdout
    assert shown.strip() == listing()


def test_one_exhibit_of_each_paper_runs_on_tiny_data(tmp_path, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    places = prepare(tmp_path)
    chosen = {(XTR, "figure 3"): "score_distribution", (TRIAL, "table 7"): "relations"}
    for exhibit in EXHIBITS:
        if analysis := chosen.get((exhibit.paper, exhibit.label)):
            for command in exhibit.commands:
                execute(command, places)
            assert json.loads((tmp_path / "out" / f"{analysis}.json").read_text())["models"]
    trainings = [command for command in COMMANDS if command.startswith("jobs.train")][::5]
    assert all(np.isfinite(execute(command, places)["losses"]).all() for command in trainings)
    [exhibit] = [each for each in EXHIBITS if (each.paper, each.label) == (ATTENTION, "table 3")]
    assert execute(exhibit.commands[0], places)["queries"] == 12
