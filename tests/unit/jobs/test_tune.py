"""jobs.tune: its measurements, and their use by searches."""

import json
from pathlib import Path

import numpy as np
import pytest

from jobs.tune import FUSIONS, TuneConfig, tune
from ray_lir.base.config import EncoderConfig
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.embeddings.token_embeddings import TokenEmbeddings
from ray_lir.encoder.encoder import Encoder
from ray_lir.engines.hybrid import HybridParams
from ray_lir.search.searcher import Searcher
from tests.support.served_index import make_index


@pytest.fixture(scope="module")
def index(tmp_path_factory) -> Path:
    return make_index(tmp_path_factory.mktemp("tune"))


def test_tuning_sets_the_choices_of_auto_and_keeps_the_curve(index):
    result = tune(TuneConfig(index=str(index), target="R@10=0.9", num_queries=12))
    kept = json.loads((index / "versions" / "1" / "tuning.json").read_text())
    assert kept["choices"] == result["choices"] and len(kept["curve"]) == result["settings"]
    reached = [point for point in kept["curve"] if point["recall"] >= 0.9]
    assert result["choices"]["balanced"] == min(reached, key=lambda point: point["p50_ms"])["params"]
    assert max(point["recall"] for point in kept["curve"]) == 1  # rescoring every document is exact search

    searcher = Searcher.open(str(index))
    queries = Encoder.load(EncoderConfig(checkpoint=searcher.manifest.contract.checkpoint)).encode_queries(["the bridge on the river"])
    balanced = searcher.search(queries, 10)[0].params.model_dump(exclude_none=True)
    assert {name: balanced[name] for name in result["choices"]["balanced"] if name in balanced}["engine"] in ("scan", "plaid", "warp")
    assert searcher.search(queries, 10, quality="exact")[0].params.engine == "exact"


def test_a_tuned_choice_uses_more_candidates_for_a_larger_k(index):
    tune(TuneConfig(index=str(index), target="R@10=0.9", num_queries=5))
    planner = Searcher.open(str(index)).planner
    choice = planner.tuning.choices["balanced"]
    query = TokenEmbeddings.of([np.eye(planner.manifest.dim)[:20]])
    near, deep = (planner.plan(query, k)[0].params for k in (100, 1000))
    name = {"scan": "ncandidates", "plaid": "rescore", "warp": "rescore"}[choice.engine]
    factor = {"scan": 1.25, "plaid": 1, "warp": 2}[choice.engine]
    for params, k in ((near, 100), (deep, 1000)):
        default = planner.statistics.default_candidates(k, 20, choice.candidate_fraction)
        assert getattr(params, name) == max(k, round(factor * default))
    assert getattr(deep, name) > 5 * getattr(near, name)


def test_the_weight_of_hybrid_search_is_chosen_on_judged_queries(tmp_path):
    index = make_index(tmp_path, num_docs=60, num_shards=2)
    rows = [json.loads(line) for line in (tmp_path / "corpus.jsonl").read_text().splitlines()]
    dataset = tmp_path / "dev"
    (dataset / "qrels").mkdir(parents=True)
    (dataset / "corpus.jsonl").write_text((tmp_path / "corpus.jsonl").read_text())
    asked = rows[::6]
    (dataset / "queries.jsonl").write_text("".join(json.dumps({"_id": row["_id"], "text": row["text"]}) + "\n" for row in asked))
    judgements = "".join(f"{row['_id']}\t{row['_id']}\t1\n" for row in asked)
    (dataset / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n" + judgements)
    result = tune(TuneConfig(index=str(index), target="R@10=0.9", dataset=str(dataset), split="dev"))
    best = max(result["hybrid"], key=lambda point: point["nDCG@10"])
    assert len(result["hybrid"]) == len(FUSIONS) and result["defaults"]["hybrid"] == best["params"]

    stored = json.loads((index / "versions" / "1" / "tuning.json").read_text())
    stored["defaults"]["hybrid"] = {"engine": "hybrid", "fusion": "rrf", "lexical_weight": 0.7}
    (index / "versions" / "1" / "tuning.json").write_text(json.dumps(stored))
    searcher = Searcher.open(str(index))
    query = Encoder.for_contract(searcher.manifest.contract).encode_queries([asked[0]["text"]])
    for engine, expected in (
        ("hybrid", ("rrf", 0.7)),
        (HybridParams(ncandidates=20), ("rrf", 0.7)),
        (HybridParams(lexical_weight=0.4), ("weighted", 0.4)),
        (HybridParams(fusion="weighted"), ("weighted", 0.2)),
    ):
        params = searcher.search(query, 3, engine)[0].params
        assert (params.fusion, params.lexical_weight) == expected


@pytest.mark.parametrize("target", ["R@10", "nDCG@10=0.5", "R@0=0.9", "R@10=1.5"])
def test_an_unreadable_target_is_refused_with_an_example(index, target):
    with pytest.raises(ConfigError, match="R@10=0.99"):
        tune(TuneConfig(index=str(index), target=target))


def test_a_damaged_file_is_named_with_the_fix(index):
    path = index / "versions" / "1" / "tuning.json"
    path.write_text('{"k": 10}')
    with pytest.raises(FormatError, match=r"jobs\.tune again"):
        Searcher.open(str(index))
    path.unlink()
    assert Searcher.open(str(index)).planner.tuning is None
