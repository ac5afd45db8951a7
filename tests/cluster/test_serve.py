"""The service on Ray Serve, over HTTP: answers equal those of a `Searcher`, and the service reports its faults."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from ray_lir.engines import ENGINES, SERVED
from ray_lir.engines.plan import TopK
from ray_lir.index.filters import Filters
from ray_lir.search.searcher import Searcher
from tests.support.served_index import QUERIES, serve_started

ENGINE_PARAMS = [
    ("auto", {}),
    ("exact", {}),
    ("scan", {}),
    ("scan", {"ncandidates": 12}),
    ("plaid", {}),
    ("plaid", {"nprobe": 3, "ncandidates": 40}),
    ("warp", {}),
    ("warp", {"nprobe": 4, "rescore": 15}),
    ("warp", {"rescore": 0}),
]


@pytest.fixture(scope="module")
def serve_with(ray_cluster: None, index: Path) -> Iterator[Callable[..., httpx.Client]]:
    """Serve the index with these arguments, unless it is already served like this; return a client."""
    from ray import serve

    from serving.app import build

    running: dict[str, Any] = {}

    def start(**arguments: Any) -> httpx.Client:
        if arguments != running:
            serve.run(build({"index": str(index), "encoder_cpus": 0.1, **arguments}))
            running.clear()
            running.update(arguments)
        return client

    with serve_started() as address, httpx.Client(base_url=address, timeout=60) as client:
        yield start


def search(client: httpx.Client, **body: Any) -> dict[str, Any]:
    reply = client.post("/search", json=body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def check_equal(hits: list[dict[str, Any]], answer: TopK, searcher: Searcher) -> None:
    assert [hit["number"] for hit in hits] == answer.documents.tolist()
    assert [hit["doc_id"] for hit in hits] == searcher.doc_ids(answer.documents)
    assert np.array([hit["score"] for hit in hits], np.float32).tobytes() == answer.scores.tobytes()


@pytest.mark.parametrize("num_groups", [1, 2, 4])
def test_served_answers_equal_the_searchers_for_every_engine_and_number_of_groups(serve_with, searcher, encoder, num_groups):
    client = serve_with(num_groups=num_groups)
    assert client.get("/index").json()["num_groups"] == num_groups
    queries = encoder.encode_queries(QUERIES)
    for name, params in ENGINE_PARAMS:
        engine = ENGINES[name].params(**params) if params else name
        answers = searcher.search(queries, 7, engine)
        served = search(client, queries=QUERIES, k=7, engine=name, params=params)
        assert served["engine"] == answers[0].params.engine
        assert served["params"] == [answer.params.model_dump() for answer in answers]
        for hits, answer in zip(served["results"], answers, strict=True):
            assert len(hits) == 7
            check_equal(hits, answer, searcher)


FILTERS = {"where": {"op": "lt", "field": "row", "value": 300}, "ids": {"exclude": ["doc-2"]}}


@pytest.mark.parametrize("num_groups", [1, 4])
def test_served_answers_equal_the_searchers_with_deleted_documents_and_filters(serve_with, index, encoder, num_groups):
    client = serve_with(num_groups=num_groups, version=2)
    searcher = Searcher.open(str(index), 2)
    queries = encoder.encode_queries(QUERIES)
    for name in SERVED:
        for filters in (None, FILTERS):
            answers = searcher.search(queries, 7, name, filters=Filters.model_validate(filters) if filters else None)
            served = search(client, queries=QUERIES, k=7, engine=name, filters=filters)
            assert (served["index_version"], served["coverage"]) == (2, 1)
            for hits, answer in zip(served["results"], answers, strict=True):
                check_equal(hits, answer, searcher)


def test_a_single_query_is_answered_with_documents_timings_and_version(serve_with, searcher, encoder):
    served = search(serve_with(num_groups=4), query=QUERIES[1], k=3, engine="plaid")
    [answer] = searcher.search(encoder.encode_queries([QUERIES[1]]), 3, "plaid")
    [hits] = served["results"]
    check_equal(hits, answer, searcher)
    for hit, number in zip(hits, answer.documents.tolist(), strict=True):
        [document] = searcher.documents([number])
        assert hit["title"] == document["title"]
        assert hit["text"] == document["text"]
        assert hit["metadata"] == {"row": number}
    timings = served["timings"]
    assert len(timings["stages"]) == 3
    assert timings["total"] >= timings["encode"] + timings["plan"] + sum(timings["stages"]) + timings["documents"] - 0.1
    assert served["index_version"] == 1


def test_only_requested_fields_are_sent(serve_with):
    [hits] = search(serve_with(num_groups=4), query="token", k=2, include=["title"])["results"]
    assert [set(hit) for hit in hits] == [{"doc_id", "score", "number", "title"}] * 2
    [hits] = search(serve_with(num_groups=4), query="token", k=2, include=[])["results"]
    assert [set(hit) for hit in hits] == [{"doc_id", "score", "number"}] * 2


def test_more_documents_than_there_are_gives_all_of_them_once(serve_with, searcher):
    [hits] = search(serve_with(num_groups=4), query="the king", k=1000, engine="exact", include=[])["results"]
    assert sorted(hit["number"] for hit in hits) == list(range(searcher.manifest.num_docs))


def test_concurrent_requests_get_their_own_answers(serve_with, searcher, encoder):
    client = serve_with(num_groups=4)
    texts = [
        f"{thing} {where}" for thing in ("river", "court", "gene", "star") for where in ("of the city", "market", "in mice?", "wave", "4")
    ]
    expected = searcher.search(encoder.encode_queries(texts), 5, "exact")
    with ThreadPoolExecutor(12) as pool:
        replies = list(pool.map(lambda text: search(client, query=text, k=5, engine="exact"), texts))
    for reply, answer in zip(replies, expected, strict=True):
        [hits] = reply["results"]
        # The last bit of a vector depends on the queries of its batch.
        np.testing.assert_allclose([hit["score"] for hit in hits], answer.scores, rtol=1e-3)
        assert hits[0]["number"] in answer.documents


def test_a_bad_request_is_refused_and_the_next_one_answered(serve_with):
    client = serve_with(num_groups=4)
    reply = client.post("/search", json={"query": "token", "engine": "fast"})
    assert (reply.status_code, reply.json()["error"]["kind"]) == (400, "ConfigError")
    assert "auto, exact, scan, plaid, warp" in reply.json()["error"]["message"]
    assert client.post("/search", json={"query": "token", "top": 3}).status_code == 422
    assert len(search(client, query="token", k=2)["results"][0]) == 2


def test_health_names_every_deployment_and_index_describes_the_index(serve_with, index, searcher):
    client = serve_with(num_groups=4)
    deployments = ["QueryEncoder", "ShardGroup-0", "ShardGroup-1", "ShardGroup-2", "ShardGroup-3"]
    assert client.get("/health").json() == {"live": True, "ready": True, "deployments": dict.fromkeys(deployments, "ok")}
    facts = client.get("/index").json()
    manifest = searcher.manifest
    assert (facts["index"], facts["version"], facts["num_shards"]) == (str(index), 1, 4)
    assert (facts["num_docs"], facts["num_tokens"], facts["nbits"]) == (manifest.num_docs, manifest.num_tokens, manifest.nbits)
    assert facts["fingerprint"] == manifest.contract.fingerprint
    assert facts["contract"]["weights_digest"] == manifest.contract.weights_digest


def test_a_dead_group_is_reported_and_recovers(serve_with, searcher, encoder):
    import ray

    client = serve_with(num_groups=4)
    [expected] = searcher.search(encoder.encode_queries(["token"]), 20, "exact")
    name = next(each["name"] for each in ray.util.list_named_actors(all_namespaces=True) if "#ShardGroup-2#" in each["name"])
    ray.kill(ray.get_actor(name, namespace="serve"), no_restart=True)
    until = time.monotonic() + 60
    while (reply := client.post("/search", json={"query": "token", "k": 20, "engine": "exact"})).status_code != 200:
        assert (reply.status_code, reply.json()["error"]["kind"]) == (503, "ShardUnavailable")
        assert "ShardGroup-2" in reply.json()["error"]["message"]
        assert time.monotonic() < until, "the group did not come back"
        time.sleep(0.5)
    check_equal(reply.json()["results"][0], expected, searcher)


def num_socket_connections() -> int:
    """Return the connections to replicas' sockets on this machine."""
    listed = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()[1:]]
    return sum(fields[5] == "03" and fields[-1].endswith("/socket") and "/ray_lir-" in fields[-1] for fields in listed)


def test_a_single_replica_is_called_over_a_unix_socket_and_several_through_ray_serve(serve_with, searcher, encoder):
    [expected] = searcher.search(encoder.encode_queries(["token"]), 5, "scan")
    for replicas in (2, 1):
        client = serve_with(num_groups=2, replicas=replicas)
        for _ in range(10):
            check_equal(search(client, query="token", k=5, engine="scan")["results"][0], expected, searcher)
        until = time.monotonic() + 20
        while num_socket_connections() != (3 if replicas == 1 else 0):
            assert time.monotonic() < until
            time.sleep(0.1)


def test_a_search_timeout_names_the_deployment_that_did_not_answer(serve_with):
    client = serve_with(num_groups=1, timeout_s=0.001)
    reply = client.post("/search", json={"query": "token"})
    assert reply.status_code == 503
    assert reply.json()["error"] == {
        "kind": "ShardUnavailable",
        "message": "QueryEncoder did not answer in time; try again, or raise the request's deadline_ms or the service's timeout_s",
    }
    health = client.get("/health")
    assert health.status_code == 503
    assert health.json()["ready"] is False
    assert set(health.json()["deployments"]) == {"QueryEncoder", "ShardGroup-0"}
