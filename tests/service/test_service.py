"""The service without Ray: every route, partial answers, limits, versions."""

import asyncio
import base64
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from fastapi.testclient import TestClient

from ray_lir.base.errors import ConfigError, FormatError, ShardUnavailable
from ray_lir.engines import ENGINES, SERVED, VECTOR_ENGINES
from ray_lir.index.filters import Filters
from ray_lir.search.searcher import Searcher
from serving import scatter
from serving.http.routes import routes
from serving.transport.protocol import ENCODER
from serving.workers import shard_server
from serving.workers.batching import Batcher
from serving.workers.shard_server import ShardServer
from serving.workers.versions import Served
from tests.support.local_service import LocalTransport, local_service, raising, sleeping
from tests.support.served_index import QUERIES, make_index

GROUPS = [f"ShardGroup-{group}" for group in range(4)]


@pytest.fixture(scope="module")
def served(index: Path) -> Iterator[tuple[TestClient, LocalTransport]]:
    service, calls = local_service(index)
    with TestClient(routes(service)) as client:
        yield client, calls


@pytest.fixture
def client(served: tuple[TestClient, LocalTransport]) -> TestClient:
    return served[0]


@pytest.fixture
def calls(served: tuple[TestClient, LocalTransport]) -> Iterator[LocalTransport]:
    yield served[1]
    served[1].faults.clear()


def post(client: TestClient, path: str, **body: object) -> dict:
    reply = client.post(path, json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def only(searcher: Searcher, groups: set[int]) -> Searcher:
    """Return a searcher over some of the shards; each group has one shard."""
    return Searcher(searcher.planner, tuple(searcher.shards[group] for group in sorted(groups)), searcher.kernels)


@pytest.mark.parametrize("num_groups", [1, 3, 5])
def test_grouped_shards_give_the_searchers_answers_to_the_bit(index, searcher, encoder, num_groups):
    service, _ = local_service(index, num_groups)
    with TestClient(routes(service)) as client:
        for engine in SERVED:
            expected = searcher.search(encoder.encode_queries(QUERIES), 5, engine)
            reply = post(client, "/search", queries=QUERIES, k=5, engine=engine)
            assert [[hit["number"] for hit in hits] for hits in reply["results"]] == [answer.documents.tolist() for answer in expected]
            assert [[hit["score"] for hit in hits] for hits in reply["results"]] == [answer.scores.tolist() for answer in expected]
            assert (reply["coverage"], reply["missing"]) == (1, {})


FILTERS = {
    "where": {"op": "or", "filters": [{"op": "lt", "field": "row", "value": 90}, {"op": "ge", "field": "row", "value": 250}]},
    "ids": {"exclude": ["doc-3", "doc-301"]},
}


@pytest.mark.parametrize("version", [1, 2], ids=["whole", "deleted"])
@pytest.mark.parametrize("num_groups", [1, 4])
def test_filtered_answers_are_the_searchers_for_every_engine_with_and_without_deleted_documents(index, encoder, num_groups, version):
    service, _ = local_service(index, num_groups, version)
    searcher = Searcher.open(str(index), version)
    gone = {f"doc-{s.first_document + row}" for s in searcher.shards if s.deleted is not None for row in s.deleted.tolist()}
    assert bool(gone) == (version == 2)
    with TestClient(routes(service)) as client:
        for engine in SERVED:
            for filters in (None, FILTERS, {"ids": {"include": ["doc-7", "doc-8", "doc-399", "nobody"]}}, {"ids": {"include": []}}):
                checked = Filters.model_validate(filters) if filters else None
                expected = searcher.search(encoder.encode_queries(QUERIES), 9, engine, filters=checked)
                reply = post(client, "/search", queries=QUERIES, k=9, engine=engine, filters=filters)
                assert [[hit["number"] for hit in hits] for hits in reply["results"]] == [answer.documents.tolist() for answer in expected]
                assert [[hit["score"] for hit in hits] for hits in reply["results"]] == [answer.scores.tolist() for answer in expected]
                found = {hit["doc_id"] for hits in reply["results"] for hit in hits}
                assert not found & gone and (found or filters == {"ids": {"include": []}}) and reply["coverage"] == 1


def test_explanations_name_filtered_documents_and_refuse_deleted_ones(index, client):
    found = post(client, "/explain", query=QUERIES[1], doc_id="doc-100", k=400, engine="exact", filters=FILTERS)
    assert (found["dropped_at"], found["reason"]) == ("filters", "left out by the filter") and "rank" not in found
    assert found["stages"][0]["num_kept"] < 400
    found = post(client, "/explain", query=QUERIES[1], doc_id="doc-50", k=400, engine="exact", filters=FILTERS)
    assert "dropped_at" not in found and found["rank"] <= 238
    with TestClient(routes(local_service(index, 2, 2)[0])) as after:
        assert after.get("/documents/doc-0").status_code == 404
        assert after.get("/documents/doc-1").status_code == 200


def test_a_wrong_filter_is_422_and_names_the_field(client):
    reply = client.post("/search", json={"query": "token", "filters": {"where": {"op": "lt", "field": "row"}}})
    assert (reply.status_code, reply.json()["error"]["message"]) == (422, "filters.where.lt.value is required")
    deep = '{"query": "token", "filters": {"where": ' + '{"op": "not", "filter": ' * 5000 + "1" + "}" * 5002
    reply = client.post("/search", content=deep, headers={"Content-Type": "application/json"})
    assert reply.status_code in (400, 422)


@pytest.mark.parametrize(("factor", "more", "sent"), [(0, 1, 100), (0.4, 0, 0), (0.8, 2, 100), (9, 0, 100)])
@pytest.mark.parametrize("engine", list(SERVED))
def test_running_groups_ahead_changes_no_answer(client, calls, searcher, encoder, monkeypatch, engine, factor, more, sent):
    for name, value in (("AHEAD_FACTOR", factor), ("AHEAD_MORE", more), ("MAX_SENT", sent)):
        monkeypatch.setattr(scatter, name, value)
    cutting = {
        "scan": {"ncandidates": 30},
        "plaid": {"nprobe": 4, "ncandidates": 60},
        "warp": {"rescore": 25},
        "hybrid": {"ncandidates": 12},
    }
    params = cutting.get(engine, {})
    expected = searcher.search(encoder.encode_queries(QUERIES), 9, ENGINES[engine].params(**params))
    calls.calls.clear()
    reply = post(client, "/search", queries=QUERIES, k=9, engine=engine, params=params)
    assert [[hit["number"] for hit in hits] for hits in reply["results"]] == [answer.documents.tolist() for answer in expected]
    assert [[hit["score"] for hit in hits] for hits in reply["results"]] == [answer.scores.tolist() for answer in expected]
    assert [hit["title"] for hits in reply["results"] for hit in hits] == [
        document["title"] for answer in expected for document in searcher.documents(answer.documents)
    ]
    methods = [method for name, method in calls.calls if name != "QueryEncoder"]
    if factor == 9:
        assert methods[:4] == ["search"] * 4 and set(methods[4:]) <= {"documents"}
    elif engine not in ("exact", "bm25"):  # they have one stage
        assert "run_stage" in methods


@pytest.mark.parametrize("engine", list(SERVED))
def test_a_partial_answer_equals_a_search_over_the_remaining_shards(client, calls, searcher, encoder, engine):
    calls.faults["ShardGroup-1"] = raising(ShardUnavailable("ShardGroup-1 is gone"))
    expected = only(searcher, {0, 2, 3}).search(encoder.encode_queries(QUERIES), 7, engine)
    reply = post(client, "/search", queries=QUERIES, k=7, engine=engine, min_coverage=0.5)
    assert [[hit["number"] for hit in hits] for hits in reply["results"]] == [answer.documents.tolist() for answer in expected]
    assert [[hit["score"] for hit in hits] for hits in reply["results"]] == [answer.scores.tolist() for answer in expected]
    assert reply["coverage"] == sum(shard.num_docs for shard in only(searcher, {0, 2, 3}).shards) / 400
    assert reply["missing"] == {"ShardGroup-1": "ShardGroup-1 is gone"}


@pytest.mark.parametrize("method", ["run_stage", "documents"])
@pytest.mark.parametrize("engine", ["scan", "plaid", "warp", "hybrid"])
def test_a_group_lost_between_stages_displaces_no_documents(client, calls, searcher, encoder, engine, method, monkeypatch):
    """With narrow cuts, documents that a lost group kept would displace those of other groups."""
    monkeypatch.setattr(scatter, "MAX_AHEAD", 0)
    params = {
        "scan": {"ncandidates": 10},
        "plaid": {"nprobe": 4, "ncandidates": 40},
        "warp": {"rescore": 10},
        "hybrid": {"ncandidates": 8},
    }[engine]
    calls.faults["ShardGroup-3"] = raising(FormatError("codes.npy", "10 bytes", "9 bytes"), method)
    expected = only(searcher, {0, 1, 2}).search(encoder.encode_queries(QUERIES), 7, ENGINES[engine].params(**params))
    reply = post(client, "/search", queries=QUERIES, k=7, engine=engine, params=params, min_coverage=0.1)
    assert [[hit["number"] for hit in hits] for hits in reply["results"]] == [answer.documents.tolist() for answer in expected]
    assert [[hit["score"] for hit in hits] for hits in reply["results"]] == [answer.scores.tolist() for answer in expected]
    assert list(reply["missing"]) == ["ShardGroup-3"]


def test_hits_of_hybrid_search_name_their_sides(client, searcher, encoder):
    [answer] = searcher.search(encoder.encode_queries(QUERIES[:1]), 5, "hybrid")
    [hits] = post(client, "/search", query=QUERIES[0], k=5, engine="hybrid", params={"fusion": "weighted"})["results"]
    for row, hit in enumerate(hits):
        assert hit["sides"]["bm25"] == float(answer.sides.lexical[row])
        assert hit["sides"]["late_interaction"] == float(answer.sides.vectors[row])
        assert ("terms" in hit["sides"]["found_by"]) == answer.sides.by_terms[row]
        assert ("vectors" in hit["sides"]["found_by"]) == answer.sides.by_vectors[row]
    [others] = post(client, "/search", query=QUERIES[0], k=5, engine="scan")["results"]
    assert not any("sides" in hit for hit in others)
    told = post(client, "/explain", query=QUERIES[0], doc_id=hits[0]["doc_id"], k=5, engine="hybrid")
    assert (told["rank"], told["score"]) == (1, hits[0]["score"])
    assert [stage["name"] for stage in told["stages"]] == ["candidates_by_terms", "candidates_by_vectors", "bm25", "rescore", "fuse"]


def test_an_index_without_postings_offers_no_lexical_engine(tmp_path):
    index = make_index(tmp_path, num_docs=40, num_shards=2, lexical=False)
    service, _ = local_service(index, 2)
    with TestClient(routes(service)) as client:
        assert client.get("/index").json()["engines"] == list(VECTOR_ENGINES[:4])
        reply = client.post("/search", json={"query": "token", "engine": "hybrid"})
        assert reply.status_code == 400 and "build it with --lexical" in reply.json()["error"]["message"]


def test_a_late_group_is_left_out_only_if_the_request_allows_it(client, calls):
    calls.faults["ShardGroup-0"] = sleeping(30, "search")
    reply = post(client, "/search", query="token", k=3, engine="scan", deadline_ms=1500, min_coverage=0.5)
    assert list(reply["missing"]) == ["ShardGroup-0"] and reply["coverage"] < 1
    assert reply["timings"]["total"] < 1500
    strict = client.post("/search", json={"query": "token", "k": 3, "engine": "scan", "deadline_ms": 300})
    assert (strict.status_code, strict.json()["error"]["kind"]) == (503, "ShardUnavailable")
    assert "ShardGroup-0" in strict.json()["error"]["message"]


def test_coverage_below_the_requested_minimum_is_an_error_with_the_reason(client, calls):
    for group in GROUPS[:3]:
        calls.faults[group] = raising(ShardUnavailable(f"{group} is gone"))
    reply = client.post("/search", json={"query": "token", "min_coverage": 0.5})
    assert reply.status_code == 503 and "ShardGroup-2 is gone" in reply.json()["error"]["message"]
    assert post(client, "/search", query="token", min_coverage=0)["coverage"] < 0.5
    calls.faults[GROUPS[3]] = raising(ShardUnavailable("all gone"))
    assert client.post("/search", json={"query": "token", "min_coverage": 0}).status_code == 503


def test_an_error_in_one_group_is_not_treated_as_a_lost_group(served, calls):
    calls.faults["ShardGroup-0"] = raising(ZeroDivisionError("a bug"))
    with pytest.raises(ZeroDivisionError):
        served[0].post("/search", json={"query": "token", "min_coverage": 0})


def test_requests_beyond_the_limit_get_429_with_retry_after(index):
    service, calls = local_service(index, 1, max_requests=1)
    app = routes(service)
    with TestClient(app) as client:
        post(client, "/search", query="token")
        service.admission.running = 1
        reply = client.post("/search", json={"query": "token"})
        assert (reply.status_code, reply.json()["error"]["kind"]) == (429, "Overloaded")
        assert reply.headers["Retry-After"] == "1"
        service.admission.running = 0
        post(client, "/search", query="token")


def test_a_call_cancelled_in_the_queue_never_starts(index):
    async def scene() -> list[str]:
        server = ShardServer(str(index), 1, 0, 4, 1.0, True, None)
        begun: list[str] = []
        release = threading.Event()

        def work(name: str) -> None:
            begun.append(name)
            release.wait(10)

        first = asyncio.create_task(server._compute(work, "first"))
        second = asyncio.create_task(server._compute(work, "second"))
        await asyncio.sleep(0.1)
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
        release.set()
        await first
        await server._compute(work, "third")
        return begun

    assert asyncio.run(scene()) == ["first", "third"]


def test_a_short_call_that_runs_alone_uses_no_thread(index, monkeypatch):
    async def scene() -> list[list[bool]]:
        server = ShardServer(str(index), 1, 0, 4, 1.0, True, None)

        def on_loop(seconds: float) -> bool:
            time.sleep(seconds)
            return threading.current_thread() is threading.main_thread()

        async def together(number: int, seconds: float = 0.0) -> list[bool]:
            return await asyncio.gather(*(server._compute(on_loop, seconds, kind="search") for _ in range(number)))

        return [await together(1), await together(1), await together(2), await together(1, 0.05), await together(1), await together(1)]

    monkeypatch.setattr(shard_server, "SHORT_S", 0.03)
    unknown, short, two, turns_out_long, after_a_long_one, short_again = asyncio.run(scene())
    assert [unknown, short, two] == [[False], [True], [False, False]]
    assert [turns_out_long, after_a_long_one, short_again] == [[True], [False], [True]]


def test_only_large_batches_use_another_thread():
    async def scene() -> list[list[bool]]:
        def on_loop(items: Sequence[int]) -> list[bool]:
            return [threading.current_thread() is threading.main_thread()] * len(items)

        batcher = Batcher(on_loop, lambda item: item, max_cost=10, small_cost=4)
        return [list(await asyncio.gather(*map(batcher, items))) for items in ([4], [2, 2], [5], [2, 3])]

    assert asyncio.run(scene()) == [[True], [True, True], [False], [False, False]]


def test_encoding_gives_the_encoders_vectors_as_numbers_or_bytes(client, encoder):
    for kind, expected in (("query", encoder.encode_queries(QUERIES)), ("document", encoder.encode_documents(QUERIES))):
        reply = post(client, "/encode", texts=QUERIES, kind=kind)
        assert reply["num_tokens"] == expected.lengths.tolist()
        for rows, matrix in zip(reply["embeddings"], expected, strict=True):
            assert np.array_equal(np.array(rows, np.float16), matrix)
        packed = post(client, "/encode", texts=QUERIES, kind=kind, format="base64")["embeddings"]
        for row, matrix in zip(packed, expected, strict=True):
            assert base64.b64decode(row) == matrix.tobytes()


def test_reranking_indexed_documents_gives_the_scores_of_engine_exact(client, searcher, encoder):
    [everything] = searcher.search(encoder.encode_queries([QUERIES[0]]), 400, "exact")
    ids = ["doc-7", "doc-399", "doc-0", "doc-123"]
    reply = post(client, "/rerank", query=QUERIES[0], doc_ids=ids)
    expected = [f"doc-{number}" for number in everything.documents.tolist() if f"doc-{number}" in ids]
    assert [each["doc_id"] for each in reply["results"]] == expected
    scores = dict(zip(everything.documents.tolist(), everything.scores.tolist(), strict=True))
    assert [each["score"] for each in reply["results"]] == [scores[int(each["doc_id"][4:])] for each in reply["results"]]
    assert [ids[each["position"]] for each in reply["results"]] == expected
    assert len(post(client, "/rerank", query=QUERIES[0], doc_ids=ids, k=2)["results"]) == 2


def test_reranking_texts_scores_their_uncompressed_vectors(client, encoder):
    texts = ["the king of the city", "a late interaction model", "mice"]
    [query] = encoder.encode_queries([QUERIES[0]])
    expected = [float((query.astype(float) @ text.astype(float).T).max(axis=1).sum()) for text in encoder.encode_documents(texts)]
    reply = post(client, "/rerank", query=QUERIES[0], texts=texts)
    assert [each["position"] for each in reply["results"]] == np.argsort([-score for score in expected]).tolist()
    np.testing.assert_allclose([each["score"] for each in reply["results"]], sorted(expected, reverse=True), rtol=1e-5)


def test_a_document_is_found_by_its_id_and_an_unknown_one_is_404(client, searcher):
    document = client.get("/documents/doc-205").json()
    [expected] = searcher.documents([205])
    assert (document["number"], document["title"], document["text"]) == (205, expected["title"], expected["text"])
    assert document["metadata"] == {"row": 205}
    reply = client.get("/documents/..%2F..%2Fetc%2Fpasswd")
    assert (reply.status_code, reply.json()["error"]["kind"]) == (404, "NotFound")
    assert client.post("/rerank", json={"query": "token", "doc_ids": ["doc-1", "doc-x"]}).json()["error"]["message"] == (
        "there is no document 'doc-x' in the index"
    )


def test_a_hit_is_explained_by_contributions_that_add_up_to_its_score(client):
    reply = post(client, "/search", queries=QUERIES[:2], k=3, engine="plaid", explain=True, include=["text", "title"])
    for query, tokens, hits in zip(QUERIES, reply["query_tokens"], reply["results"], strict=False):
        words = [query[token["start"] : token["end"]].lower() for token in tokens if "start" in token]
        assert words == [token["piece"].removeprefix("##") for token in tokens if "start" in token]
        for hit in hits:
            assert len(hit["matches"]) == len(tokens)
            assert sum(match["contribution"] for match in hit["matches"]) == pytest.approx(hit["score"], rel=5e-3)
            for match in hit["matches"]:
                if "field" in match:
                    assert hit[match["field"]][match["start"] : match["end"]].strip()
    assert [set(hit) for hit in post(client, "/search", query="token", k=1, explain=True, include=[])["results"][0]] == [
        {"doc_id", "score", "number", "matches"}
    ]


def test_explain_names_the_stage_that_dropped_a_document(client, searcher, encoder):
    queries = encoder.encode_queries([QUERIES[1]])
    [best] = searcher.search(queries, 400, "exact")
    first, last = f"doc-{best.documents[0]}", f"doc-{best.documents[-1]}"
    found = post(client, "/explain", query=QUERIES[1], doc_id=first, k=5, engine="exact")
    assert (found["rank"], found["reason"], found["score"]) == (1, "found at rank 1 of 5", float(best.scores[0]))
    lost = post(client, "/explain", query=QUERIES[1], doc_id=last, k=5, engine="scan", params={"ncandidates": 20})
    assert lost["dropped_at"] == "score_codes" and "rank" not in lost
    assert lost["stages"][0]["score"] < lost["stages"][0]["cut"] and lost["stages"][0]["num_kept"] == 20
    assert lost["score"] == float(best.scores[-1])
    assert sum(match["contribution"] for match in lost["matches"]) == pytest.approx(lost["score"], rel=5e-3)


def test_a_body_over_the_limit_is_413_with_or_without_content_length(client):
    body = b'{"query": "' + b"x" * (5 << 20) + b'"}'
    declared = client.post("/search", content=body, headers={"Content-Type": "application/json"})
    undeclared = client.post("/search", content=iter([body[: 3 << 20], body[3 << 20 :]]), headers={"Content-Type": "application/json"})
    for reply in (declared, undeclared):
        assert (reply.status_code, reply.json()["error"]["kind"]) == (413, "RequestEntityTooLarge")


def test_explaining_too_many_documents_is_refused(client):
    reply = client.post("/search", json={"query": "token", "k": 201, "explain": True})
    assert reply.status_code == 422 and "lower k" in reply.json()["error"]["message"]


def test_the_service_is_live_but_not_ready_while_a_group_is_down(client, calls):
    assert client.get("/health/live").json() == {"live": True}
    assert client.get("/health/ready").status_code == 200
    calls.faults["ShardGroup-2"] = raising(ShardUnavailable("ShardGroup-2 is gone"))
    reply = client.get("/health/ready")
    assert (reply.status_code, reply.json()["deployments"]["ShardGroup-2"]) == (503, "ShardGroup-2 is gone")
    assert client.get("/health/live").status_code == 200


def test_a_query_that_cannot_be_planned_fails_without_its_batch(index):
    encoder = local_service(index)[1].deployments[ENCODER]

    async def together() -> list[object]:
        plans = [encoder.plan(Served(0, 1), [text], k, "scan", "balanced") for text, k in (("a", 3), ("b", 3), ("c", 0), ("d", 3))]
        return await asyncio.gather(*plans, return_exceptions=True)

    first, second, wrong, last = asyncio.run(together())
    assert isinstance(wrong, ConfigError) and str(wrong) == "k must be between 1 and 100000, not 0"
    assert [len(each.plans) for each in (first, second, last)] == [1, 1, 1]


def test_every_engine_that_the_index_route_offers_is_accepted_by_search(client: TestClient) -> None:
    reply = client.get("/index")
    assert reply.status_code == 200 and set(reply.json()["engines"]) == set(SERVED)
    for engine in reply.json()["engines"]:
        assert post(client, "/search", query=QUERIES[0], engine=engine)["engine"] == engine


def test_the_index_route_lists_metadata_fields_of_the_groups_that_answer(index: Path) -> None:
    service, calls = local_service(index)
    calls.faults["ShardGroup-0"] = raising(ShardUnavailable("ShardGroup-0 is gone"), "fields")
    with TestClient(routes(service)) as client:
        [field] = client.get("/index").json()["fields"]
        assert field["path"] == ["row"] and field["kind"] == "number" and field["lowest"] > 0
        calls.faults.clear()
        [field] = client.get("/index").json()["fields"]
        assert (field["lowest"], field["highest"], field["fraction"]) == (0, 399, 1.0)
        num_calls = len(calls.calls)
        client.get("/index")
        assert len(calls.calls) == num_calls  # complete replies are cached
