"""bench.papers.scorers: statistics by hand, and a report that agrees with the measurements."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.papers.claims import claims
from bench.papers.profiles import PROFILES, engines, models
from bench.papers.report import verdict, write_report
from bench.papers.scorers import training_data
from ray_lir.base.config import TrainingConfig


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_claims_refer_to_trained_models_and_measured_engines(profile):
    for changes in models(profile).values():
        TrainingConfig.model_validate(changes or {})
    names, searches = models(profile), {name for part in engines(profile) for name in part}
    for claim in claims(profile.k_train):
        assert {claim.first[0], claim.second[0]} <= set(names) and {claim.first[1], claim.second[1]} <= searches


def piece(values: np.ndarray) -> dict[str, Any]:
    by_query = {f"q{number}": float(value) for number, value in enumerate(values)}
    return {"cpu_seconds": 1.0, "documents": 5, "tokens": 50, "values": {"nDCG@10": by_query, "R@100": by_query}}


def test_the_report_decides_measured_claims_and_lists_unmeasured_ones(tmp_path: Path):
    rng = np.random.default_rng(0)
    base = [rng.uniform(0.3, 0.5, 30), rng.uniform(0.3, 0.5, 40)]
    better = {"untrained": 0.0, "maxsim": 0.1, "attention": 0.2}
    answers = {
        model: {
            name: {engine: piece(values + change) for engine in ("exact", "plaid", "xtr, min")}
            for name, values in zip("ab", base, strict=True)
        }
        for model, change in better.items()
    }
    for model in models(PROFILES["cpu"]):
        answers.setdefault(model, {"a": {}, "b": {}})
    cost = {"seconds": 2, "cpu_seconds": 3, "examples_per_cpu_second": 4, "first_loss": 1, "last_loss": 0.5}
    about = {
        "profile": "cpu",
        "machine": {"cpu": "one", "cores": 1, "instructions": []},
        "settings": {**vars(PROFILES["cpu"]), "learning_rate": 1e-5, "seed": 0, "dim": 128},
    }
    write_report(about, {"trainings": {model: cost for model in better if model != "untrained"}, "answers": answers}, tmp_path)
    text = (tmp_path / "scorers.md").read_text()
    [row] = [line for line in text.splitlines() if "attention weights help" in line]
    assert "+0.1000" in row and row.endswith("| holds |")
    [equal] = [line for line in text.splitlines() if "as good under XTR's scores" in line]
    assert equal.endswith("| holds: equivalent within .01 |")
    [missing] = [line for line in text.splitlines() if "relations help" in line]
    assert missing.endswith("| not measured yet |") and missing.count("|") == row.count("|")
    [maxsim] = [line for line in text.splitlines() if line.startswith("| maxsim |") and "(" in line]
    assert "+0.1000 (0.00" in maxsim


def test_an_insignificant_difference_decides_nothing():
    found = {"difference": 0.01, "p_holm": 0.2}
    assert verdict({"found": found, "equal": False}) == "not decided: the same direction"
    assert verdict({"found": found | {"difference": -0.01}, "equal": False}) == "not decided: the other direction"
    assert verdict({"found": found | {"difference": -0.01, "p_holm": 0.01}, "equal": False}) == "does not hold: the reverse"
    assert verdict({"found": found | {"p_holm": 0.01}, "equal": True}) == "does not hold: they differ"
    assert verdict({"found": found, "equal": True}) == "not decided"


def test_equivalence_decides_a_claim():
    found = {"difference": 0.001, "p_holm": 0.2, "equivalence_p_holm": 0.01}
    assert verdict({"found": found, "equal": True}) == "holds: equivalent within .01"
    assert verdict({"found": found, "equal": False}) == "does not hold: equivalent within .01"


def test_pairs_from_dataset_and_examples_keep_their_passages(tmp_path: Path):
    for name in ("squad", "nq_qed"):
        folder = tmp_path / name
        (folder / "qrels").mkdir(parents=True)
        (folder / "corpus.jsonl").write_text("".join(f'{{"_id": "{i}", "text": "{name} {i}"}}\n' for i in range(3)))
        (folder / "queries.jsonl").write_text("".join(f'{{"_id": "{i}", "text": "{name} {i}?"}}\n' for i in range(3)))
        (folder / "qrels" / "train.tsv").write_text("query-id\tcorpus-id\tscore\n2\t1\t1\n0\t2\t1\n")
    data = training_data(tmp_path)
    pairs = [
        (query, data.documents[number]) for query, lists in zip(data.queries, data.lists_by_query(), strict=True) for (number,) in lists
    ]
    assert pairs == [("squad 2?", "squad 1"), ("squad 0?", "squad 2"), ("nq_qed 2?", "nq_qed 1"), ("nq_qed 0?", "nq_qed 2")]
