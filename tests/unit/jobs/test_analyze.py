"""jobs.analyze: every analysis on small indexes, its numbers by hand and against golden values, and what it refuses."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import ValidationError

from jobs.analyze import AnalyzeConfig, _draw, analyze
from jobs.analyzed_index import AnalyzedIndex
from jobs.query_search import QueryEncoderConfig, QuerySearch
from ray_lir.base.config import AttentionChanges, AttentionConfig, EncoderConfig, IndexConfig, TrialConfig
from ray_lir.base.errors import ConfigError
from ray_lir.building.build import build_index
from ray_lir.corpus.datasets import load_dataset
from ray_lir.embeddings.parquet import read_blocks
from ray_lir.encoder.corpus_encoder import encode_corpus
from ray_lir.encoder.encoder import Encoder
from ray_lir.evaluation.analyses import ANALYSES, AnalysisSettings, token_weights
from ray_lir.evaluation.analyses.analysis import JudgedQuery, RetrievedTokens, depth
from ray_lir.evaluation.analyses.cost import maxsim_flops, relation_flops
from ray_lir.evaluation.analyses.geometry import effective_dimensionality, mean_pairwise_cosine
from ray_lir.evaluation.analyses.token_weights import classes
from ray_lir.evaluation.nearest_tokens import nearest_tokens
from tests.support.repository import GOLDEN
from tests.support.served_index import make_index

QUERIES = 12
LEFT_OUT = {"token_weights", "attention"}


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """Indexes of one corpus under MaxSim and TRIAL, and a data set in which each query is the beginning of its relevant document."""
    folder = tmp_path_factory.mktemp("analyze")
    make_index(folder, num_docs=60, num_shards=2)
    rows = [json.loads(line) for line in (folder / "corpus.jsonl").read_text().splitlines()]
    data = folder / "data"
    (data / "qrels").mkdir(parents=True)
    (data / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": f"q{n}", "text": " ".join(row["text"].split()[:6])}) + "\n" for n, row in enumerate(rows[:QUERIES]))
    )
    (data / "qrels/test.tsv").write_text("".join(f"q{n}\t{row['_id']}\t1\n" for n, row in enumerate(rows[:QUERIES])))
    encoder = Encoder.load(EncoderConfig(checkpoint=str(folder / "checkpoint")))
    encoder.with_scorer("trial", TrialConfig(relation_weight=0.5)).save(folder / "trial_checkpoint")
    encode_corpus(
        str(folder / "corpus.jsonl"), str(folder / "trial_embeddings"), EncoderConfig(checkpoint=str(folder / "trial_checkpoint"))
    )
    build_index(str(folder / "trial_embeddings"), str(folder / "trial"))
    encoder.with_scorer("attention", AttentionConfig(delta_length=12)).save(folder / "attention_checkpoint")
    encode_corpus(
        str(folder / "corpus.jsonl"), str(folder / "attention_embeddings"), EncoderConfig(checkpoint=str(folder / "attention_checkpoint"))
    )
    build_index(str(folder / "attention_embeddings"), str(folder / "attention"), IndexConfig(num_shards=2))
    return folder


@pytest.fixture(scope="module")
def results(place) -> dict[str, dict]:
    """The result of each analysis, of both indexes side by side."""
    found = analyze(
        AnalyzeConfig(
            index=f"maxsim={place}/index,trial={place}/trial",
            dataset=str(place / "data"),
            output=str(place / "out"),
            analysis=AnalysisSettings(tokens_per_query_token=50, candidates=8, k_primes=(2, 10, 1000)),
        )
    )
    assert found["models"] == {"maxsim": "maxsim", "trial": "trial"} and found["queries"] == QUERIES
    assert set(found["analyses"]) | set(found["left_out"]) == set(ANALYSES)
    return {name: json.loads((place / "out" / f"{name}.json").read_text()) for name in found["analyses"]} | {"_": found}


def test_every_analysis_writes_numbers_and_figures(place, results):
    assert set(ANALYSES) - LEFT_OUT <= set(results)
    for name, files in results["_"]["analyses"].items():
        assert files == [f"{name}.json", f"{name}.png", f"{name}.svg"]
        assert (place / "out" / f"{name}.png").read_bytes()[:4] == b"\x89PNG" and (place / "out" / f"{name}.svg").stat().st_size > 1000
        assert results[name]["source"] == ANALYSES[name].source
    assert results["_"]["left_out"]["relations"] == {"maxsim": "the scorer maxsim has no relations; analyze an index of the scorer trial"}


def test_fractions_of_retrieved_tokens_are_given_for_each_rank(results):
    found = results["token_retrieval"]["models"]["maxsim"]
    assert found["queries"] == QUERIES and found["ranks"][0] == 1 and found["ranks"][-1] == 50
    assert len(found["gold"]) == len(found["lexical"]) == len(found["ranks"])
    for name in ("gold", "lexical"):
        assert all(0 <= fraction <= 1 for fraction in found[name]) and sum(found[name]) > 0


def test_histograms_count_every_retrieved_token(place, results):
    found = results["score_distribution"]["models"]["maxsim"]
    assert sum(found["counts"]) == found["tokens"] and len(found["counts"]) == 200 and found["gap_first_last"] > 0
    index = analyzed(place)
    active = sum(int(query.active.sum()) for query in index.queries)
    assert found["tokens"] == 50 * active


def test_quality_rises_to_that_of_all_tokens(results):
    found = results["k_prime"]["models"]["maxsim"]
    assert found["k_primes"] == [2, 10] and len(found["by_imputation"]) == 5
    assert found["by_imputation"]["min"] == found["by_k_prime"][-1]


def test_oracle_candidates_are_at_least_as_good(results):
    for model in ("maxsim", "trial"):
        found = results["candidate_recall"]["models"][model]
        assert found["candidates"] == 8 and ("weighted" in found) == (model == "trial")
        for kind in {"weighted", "unweighted"} & set(found):
            assert found[kind]["quality_oracle"] >= found[kind]["quality"] and 0 <= found[kind]["recall"] <= found[kind]["capped_recall"]


def test_candidates_shrink_from_stage_to_stage(results):
    found = results["candidates"]["models"]["maxsim"]
    assert found["documents"] == 60 and 0 < found["plaid"]["fraction"] <= 1
    kept = list(found["plaid"]["kept"].values())
    assert kept == sorted(kept, reverse=True) and 0 < kept[-1] <= 10 and found["plaid"]["queries_per_second"] > 0
    assert set(results["cost"]["models"]["maxsim"]["milliseconds"]["plaid"]) == {"plan", *found["plaid"]["kept"]}


def test_relations_are_shown_token_by_token(results):
    found = results["relations"]["models"]
    assert list(found) == ["trial"]
    for example in found["trial"]["examples"]:
        assert example["rank"] != example["rank_without_relations"] and {"query_token", "document_token", "contribution"} <= set(
            example["tokens"][0]
        )


def analyzed(place: Path, index: str = "index", embeddings: str | None = None) -> AnalyzedIndex:
    search = QuerySearch.open(str(place / index), QueryEncoderConfig(), None)
    return AnalyzedIndex(search, load_dataset(place / "data"), False, embeddings and str(place / embeddings))


def test_retrieval_equals_brute_force(place):
    index = analyzed(place)
    vectors = index.sample_vectors(10**9, 0)  # a sample of everything is in the order of the index
    found = next(iter(index.retrieve(5)))
    query = index.searcher.planner.plan(index.embeddings.slice(0, 1), 1)[0].query.vectors  # rotated, as the sample is
    assert len(vectors) == index.num_tokens
    for row in range(len(query)):
        expected = np.sort(vectors @ query[row])[::-1][:5]
        assert found.scores[found.rows == row] == pytest.approx(expected, abs=2e-3)
        assert found.ranks[found.rows == row].tolist() == [0, 1, 2, 3, 4]
    assert index.knows_document_tokens and (found.token_ids >= 0).all()


def test_original_vectors_are_those_of_the_embeddings(place):
    index, original = analyzed(place, "trial"), analyzed(place, "trial", "trial_embeddings")
    [part] = (place / "trial_embeddings").rglob("*.parquet")
    [block] = read_blocks(str(part))
    vectors = block.embeddings.values.astype(np.float32)
    query = index.embeddings.values[: index.embeddings.offsets[1]].astype(np.float32)
    found, compressed = (next(iter(each.retrieve(5))) for each in (original, index))
    for row in range(len(query)):
        expected = np.sort(vectors @ query[row])[::-1][:5]
        assert found.scores[found.rows == row] == pytest.approx(expected, abs=1e-5)
    assert np.abs(found.scores - compressed.scores).max() > 1e-4
    with pytest.raises(ConfigError, match="was not built from the embeddings.*leave --embeddings out"):
        analyzed(place, "trial", "attention_embeddings")
    with pytest.raises(ConfigError, match="names 2 folders for 1 indexes"):
        analyze(AnalyzeConfig(index=str(place / "trial"), dataset=str(place / "data"), output="/tmp/never", embeddings="a,b"))


@pytest.mark.parametrize("name", ["index", "attention"])
def test_runs_from_one_retrieval_equal_those_of_the_engine(place, name):
    index = analyzed(place, name)
    settings = [(3, "min"), (40, "zero"), (40, "mean"), (200, "power_law")]
    for (k_prime, imputation), run in zip(settings, index.token_runs(settings, 10), strict=True):
        expected = index.run({"engine": "xtr", "k_prime": k_prime, "imputation": imputation}, 10)
        assert list(run) == list(expected)
        for query_id, ranking in run.items():
            assert [score for _, score in ranking] == pytest.approx([score for _, score in expected[query_id]], abs=1e-4)


def test_nearest_tokens_of_several_blocks_are_those_of_all_tokens():
    rng = np.random.default_rng(0)
    vectors, queries = rng.normal(size=(50, 4)).astype(np.float32), rng.normal(size=(3, 4)).astype(np.float32)
    vectors[7] = vectors[30]  # equal similarities: the lower number comes first
    for sizes in ([50], [20, 30], [1] * 50):
        blocks = np.split(vectors, np.cumsum(sizes)[:-1])
        for k in (1, 9, 50, 60):
            tokens, scores = nearest_tokens(queries, blocks, k)
            expected = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :k]
            np.testing.assert_allclose(scores, np.take_along_axis(queries @ vectors.T, expected, 1), atol=1e-6)
            if k == 50:
                np.testing.assert_array_equal(tokens, expected)


def test_other_lengths_and_sides_equal_an_index_built_with_them(place):
    swept = analyzed(place, "attention")
    engine = {"engine": "exact"}
    for number, changes in enumerate([AttentionChanges(delta_length=30), AttentionChanges(delta_length=0, sides="documents")]):
        build_index(str(place / "attention_embeddings"), str(place / f"attention_{number}"), IndexConfig(num_shards=2, attention=changes))
        expected = analyzed(place, f"attention_{number}").run(engine, 10)
        found = swept.with_attention(changes).run(engine, 10)
        for query_id, ranking in expected.items():
            assert [score for _, score in found[query_id]] == pytest.approx([score for _, score in ranking], rel=2e-4)
        assert any(found[query_id] != swept.run(engine, 10)[query_id] for query_id in found)
    plain = swept.with_attention(None)
    assert plain.searcher.shards[0].weights is None and (plain.embeddings.weights == 1).all()


def test_attention_is_swept_by_one_command(place):
    config = AnalyzeConfig(
        index=f"{place}/attention", dataset=str(place / "data"), output=str(place / "sweep"), analyses="attention", num_queries=4
    )
    assert list(analyze(config)["analyses"]) == ["attention"]
    found = json.loads((place / "sweep/attention.json").read_text())["models"]["attention"]
    assert list(found["by_delta_length"]) == ["100", "150", "200", "300", "always"] and found["delta_length"] == 12
    assert set(found["by_sides"]) == {"none", "queries", "documents", "both"}
    assert all(0 <= value <= 1 for part in ("by_sides", "by_delta_length") for value in found[part].values())


def test_weights_change_candidates_of_trial_only(place):
    engine = {"engine": "plaid", "ncandidates": 16}
    trial, plain = analyzed(place, "trial"), analyzed(place)
    kept = [trial.candidates(engine, 2, 4, weighted) for weighted in (True, False)]
    assert any(not np.array_equal(*pair) for pair in zip(*kept, strict=True))
    same = [plain.candidates(engine, 2, 4, weighted) for weighted in (True, False)]
    assert all(np.array_equal(*pair) for pair in zip(*same, strict=True))


def test_matches_add_up_to_the_exact_score(place):
    trial = analyzed(place, "trial")
    run = trial.run({"engine": "exact"}, 3)
    doc_id, score = run["q0"][0]
    trial.numbers |= trial.searcher.find([doc_id])
    found = trial.matches(0, doc_id)
    assert sum(each.contribution for each in found) == pytest.approx(score, rel=0.02, abs=0.02)
    plain = dict(trial.without_relations(60)["q0"])
    assert sum(each.plain_contribution for each in found) == pytest.approx(plain[doc_id], rel=0.02, abs=0.02)


def test_geometry_matches_the_golden_values():
    golden = np.load(GOLDEN / "metrics.npz")
    assert mean_pairwise_cosine(golden["tokens"]) == pytest.approx(float(golden["mean_pairwise_cosine"]), rel=1e-9)
    assert effective_dimensionality(golden["tokens"]) == pytest.approx(float(golden["effective_dim"]), rel=1e-9)
    assert effective_dimensionality(np.eye(7)) == pytest.approx(7) and mean_pairwise_cosine(np.eye(7)) == 0


def fake(queries: list[JudgedQuery], retrieved: list[RetrievedTokens]) -> SimpleNamespace:
    return SimpleNamespace(queries=queries, retrieve=lambda k: iter(retrieved), num_tokens=100, knows_document_tokens=True)


def test_token_retrieval_by_hand():
    words, special = [[0, 3], [4, 6]], [-1, -1]
    query = JudgedQuery(
        "q", "abc de", ["abc", "de", "[SEP]"], np.array([*words, special]), np.array([5, 6, 7]), None, np.ones(3, bool), np.array([1])
    )
    other = JudgedQuery("p", "x", ["x"], np.array([[0, 1]]), np.array([9]), None, np.ones(1, bool), np.array([], np.int64))
    hits = RetrievedTokens(
        np.array([0, 0, 1, 1, 2, 2]),
        np.array([0, 1, 0, 1, 0, 1]),
        np.zeros(6, np.float32),
        np.array([1, 2, 1, 1, 1, 1]),
        np.array([5, 6, 5, 6, 7, 7]),
    )
    few = RetrievedTokens(np.zeros(1, int), np.zeros(1, int), np.zeros(1, np.float32), np.ones(1, int), np.ones(1, int))
    found = ANALYSES["token_retrieval"].run(fake([query, other], [hits, few]), AnalysisSettings(tokens_per_query_token=2))
    assert found["ranks"] == [1, 2] and found["queries"] == 1  # a query without a relevant document does not count
    assert found["gold"] == [1.0, 0.5]  # the special token does not count
    assert found["lexical"] == [0.5, 0.5]


def test_tokens_have_the_class_of_their_word():
    query = JudgedQuery(
        "q",
        "Paris sleeps",
        ["[CLS]", "par", "##is", "sleeps"],
        np.array([[-1, -1], [0, 3], [3, 5], [6, 12]]),
        np.arange(4),
        None,
        np.ones(4, bool),
        np.array([]),
    )
    assert classes(query, [(0, 5, "PROPN"), (6, 12, "VERB")]) == ["[CLS]", "PROPN", "PROPN", "VERB"]
    assert classes(query, []) == ["[CLS]", "other", "other", "other"]


def test_weights_by_part_of_speech(place, tmp_path, monkeypatch):
    def tag(name: str):
        return lambda text: [(0, len(text), "NOUN")]

    monkeypatch.setattr("ray_lir.evaluation.analyses.token_weights._tagger", tag)
    monkeypatch.setattr("ray_lir.evaluation.analyses.token_weights._model", lambda name: name)
    monkeypatch.setattr("ray_lir.evaluation.analyses.token_weights.is_installed", lambda name: True)
    settings = {"dataset": str(place / "data"), "output": str(tmp_path / "out"), "analyses": "token_weights"}
    analyze(AnalyzeConfig(index=str(place / "trial"), **settings))
    found = json.loads((tmp_path / "out/token_weights.json").read_text())["models"]["trial"]["classes"]
    trial = analyzed(place, "trial")
    words = np.concatenate([query.weights[query.spans[:, 0] >= 0] for query in trial.queries])
    assert found["NOUN"]["tokens"] == len(words) and found["NOUN"]["mean"] == pytest.approx(words.mean(), rel=1e-5)
    assert "[CLS]" in found
    with pytest.raises(ConfigError, match="token_weights is not possible: the scorer maxsim has no query token weights; analyze an index"):
        analyze(AnalyzeConfig(index=str(place / "index"), **settings | {"overwrite": True}))


def test_spacy_tags_words():
    pytest.importorskip("spacy")
    name = token_weights._model("auto")
    if name is None:
        pytest.skip("no English model of spaCy")
    assert [kind for *_, kind in token_weights._tagger(name)("the quick engine works")] == ["DET", "ADJ", "NOUN", "VERB"]
    assert token_weights._model("xx_nothing") is None


def test_without_spacy_the_package_is_named(place, monkeypatch):
    monkeypatch.setattr("ray_lir.evaluation.analyses.token_weights.is_installed", lambda name: False)
    reason = ANALYSES["token_weights"].missing(analyzed(place, "trial"), AnalysisSettings())
    assert reason == "tagging parts of speech needs the package spacy, which is not installed; run: pip install 'ray_lir[tagging]'"


def test_operations_by_hand():
    assert maxsim_flops(2, 3, 4) == 48
    assert relation_flops(3, 10, 128)["pairs"] == 2 * 2 * 10 * (3 * 128**2 + 128) and relation_flops(1, 10, 128)["pairs"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"analyses": "relations"}, "relations is not possible: the scorer maxsim has no relations; analyze an index of the scorer trial"),
        ({"analyses": "attention"}, "attention is not possible: the scorer maxsim has no attention weights"),
        ({"analyses": "geometry,attention"}, "attention is not possible: the scorer maxsim has no attention weights"),
        ({"analyses": "figure3"}, "no analysis 'figure3'; the analyses are k_prime, "),
        ({"analysis": AnalysisSettings(measure="nDGC@10")}, "unknown measure 'nDGC@10'"),
        ({"analysis": AnalysisSettings(measure="AP RR")}, "must name one measure"),
        ({"split": "dev"}, "no split 'dev' in .*; it has test"),
        ({"index": "{place}/index,{place}/index"}, "two indexes have the name 'index'; give them names"),
        ({"dataset": "/nowhere"}, "no dataset /nowhere"),
        ({"output": "s3://bucket/folder"}, "s3://bucket/folder is not on a disk of this machine; give a local path"),
    ],
)
def test_wrong_input_is_one_line_and_writes_nothing(place, tmp_path, changes, message):
    fields = {"index": str(place / "index"), "dataset": str(place / "data"), "output": str(tmp_path / "out")} | changes
    fields["index"] = fields["index"].format(place=place)
    with pytest.raises(ConfigError, match=message) as error:
        analyze(AnalyzeConfig(**fields))
    assert "\n" not in str(error.value) and not list(tmp_path.rglob("*.json"))


def test_runs_are_as_deep_as_the_measure(place):
    search = QuerySearch.open(str(place / "index"), QueryEncoderConfig(), None)
    model = AnalyzedIndex(search, load_dataset(str(place / "data")), False)
    expected = model.evaluate(model.run({"engine": "exact"}, 40), "R@40").mean()
    assert expected > model.evaluate(model.run({"engine": "exact"}, 10), "R@40").mean()
    classes = ANALYSES["query_length"].run(model, AnalysisSettings(measure="R@40"))["classes"]
    assert sum(each["R@40"] * each["queries"] for each in classes) / QUERIES == pytest.approx(expected)
    found = ANALYSES["candidate_recall"].run(model, AnalysisSettings(measure="R@60", candidates=60))["unweighted"]
    assert found["quality"] == pytest.approx(found["recall"])
    assert [depth(AnalysisSettings(measure=name), 10) for name in ("nDCG@10", "R@256", "AP")] == [10, 256, 100]


@pytest.mark.parametrize("field", ["k_primes", "delta_lengths"])
def test_lists_of_settings_are_never_empty_or_out_of_range(field):
    for values in ((), (-1,)):
        with pytest.raises(ValidationError):
            AnalysisSettings.model_validate({field: values})


def test_dollars_in_names_and_queries_are_drawn_as_they_are(results, tmp_path):
    for name in ("relations", "cost", "candidates", "k_prime", "token_retrieval"):
        numbers = json.loads(json.dumps(results[name]["models"]).replace("cell", "$x^$"))
        _draw(ANALYSES[name], {"_$a_^$": next(iter(numbers.values()))}, tmp_path, name)
        assert "mathdefault" not in (tmp_path / f"{name}.svg").read_text()
        assert name == "relations" or "_$a_^$" in (tmp_path / f"{name}.svg").read_text()  # a comment beside the paths of the glyphs


def test_a_sample_of_queries_and_existing_results(place, tmp_path):
    fields = {
        "index": str(place / "index"),
        "dataset": str(place / "data"),
        "output": str(tmp_path),
        "analyses": "geometry",
        "num_queries": 3,
    }
    assert analyze(AnalyzeConfig(**fields))["queries"] == 3
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with pytest.raises(ConfigError, match="geometry.json exists already"):
        analyze(AnalyzeConfig(**fields))
    analyze(AnalyzeConfig(**fields, overwrite=True))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
