"""MTEB runs retrieval and reranking on ray_lir's engines; a local collection gives the measures of jobs.evaluate."""

import pytest

mteb = pytest.importorskip("mteb", reason="mteb is not installed; run: pip install -c constraints.txt mteb")

from mteb.models.models_protocols import SearchProtocol  # noqa: E402

from jobs.evaluate import EvaluateConfig, evaluate  # noqa: E402
from ray_lir import ConfigError  # noqa: E402
from ray_lir.integrations.mteb import RayLirSearch, folder_task  # noqa: E402
from tests.support.repository import REPOSITORY  # noqa: E402

DATA = str(REPOSITORY / "examples" / "data")


def scores(model: RayLirSearch, task) -> dict[str, float]:
    [result] = mteb.evaluate(model, task, cache=None).task_results
    return result.scores["test"][0]


def test_each_engine_gives_the_measures_of_jobs_evaluate(tmp_path):
    found = {}
    for engine in ("plaid", "warp", "scan"):
        model = RayLirSearch(engine=engine, folder=tmp_path / engine)
        assert isinstance(model, SearchProtocol)
        found[engine] = scores(model, folder_task(DATA))
        assert model.opened is not None
        job = evaluate(EvaluateConfig(index=model.opened.path, dataset=DATA, engine=engine, k=1000, latency_queries=0))
        assert found[engine]["ndcg_at_10"] == pytest.approx(job["nDCG@10"], abs=1e-4)
        assert found[engine]["recall_at_100"] == pytest.approx(job["R@100"], abs=1e-4)
    assert found["plaid"]["main_score"] > 0.9


def test_reranking_scores_the_listed_documents_only():
    task = folder_task(DATA)
    task.load_data()
    data = task.dataset["default"]["test"]
    listed = {query_id: [*list(grades)[:1], *data["corpus"]["id"][:5]] for query_id, grades in data["relevant_docs"].items()}
    data["top_ranked"] = listed
    model = RayLirSearch(engine="scan")
    assert scores(model, task)["ndcg_at_10"] > 0.9
    found = model.search(data["queries"], top_k=3, top_ranked={query_id: [*each, "unknown"] for query_id, each in listed.items()})
    assert all(set(found[query_id]) == set(listed[query_id]) for query_id in listed)


def test_settings_are_part_of_the_revision_and_checked():
    revisions = {
        RayLirSearch(engine=engine, quality=quality).mteb_model_meta.revision
        for engine, quality in (("auto", "balanced"), ("auto", "fast"), ("plaid", "balanced"))
    }
    assert len(revisions) == 3
    assert RayLirSearch(engine="plaid").mteb_model_meta.name == "ray_lir/all-MiniLM-L6-v2-plaid"
    with pytest.raises(ConfigError, match="unknown engine 'best'"):
        RayLirSearch(engine="best")
    with pytest.raises(ConfigError, match="before index"):
        RayLirSearch().search([], top_k=1)
    with pytest.raises(ConfigError):
        folder_task("nowhere/at/all")
