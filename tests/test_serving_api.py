"""The service without a cluster: what the HTTP side accepts and refuses, how shards are grouped, what a wrong start says."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from click.testing import CliRunner
from fastapi.testclient import TestClient

from ray_lir.engines import ENGINES
from ray_lir.engines.plan import merge
from ray_lir.errors import ConfigError, FormatError, IncompatibleError, ShardUnavailable, UnsupportedVersion
from ray_lir.models.encoder import Encoder
from ray_lir.search import Searcher
from serving.api import MAX_K, MAX_QUERIES, MAX_QUERY_CHARACTERS, SearchRequest, routes
from serving.app import build, parse
from serving.shard_server import ShardServer, split_shards
from tests.served_index import QUERIES, make_index


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("served"))


PASSED_ON = ConfigError("the request was passed on")


class Failing:
    """A service in which every search ends with one error."""

    def __init__(self, error: Exception):
        self.error = error

    async def search(self, request: SearchRequest) -> None:
        request.chosen_engine()
        raise self.error


def client(error: Exception = PASSED_ON) -> TestClient:
    return TestClient(routes(Failing(error)), raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"query": "x", "topk": 3}, "unknown field topk; the fields are query, queries, k, engine, params, include"),
        ({}, "give either query or queries"),
        ({"query": "x", "queries": ["y"]}, "give either query or queries"),
        ({"queries": []}, "queries: list should have at least 1 item after validation, not 0"),
        ({"queries": ["x"] * (MAX_QUERIES + 1)}, f"queries: list should have at most {MAX_QUERIES} items after validation, not 65"),
        ({"query": ""}, "query: string should have at least 1 character"),
        ({"query": "x" * (MAX_QUERY_CHARACTERS + 1)}, f"query: string should have at most {MAX_QUERY_CHARACTERS} characters"),
        ({"query": 7}, "query: input should be a valid string"),
        ({"query": "x", "k": 0}, "k: input should be greater than or equal to 1"),
        ({"query": "x", "k": MAX_K + 1}, f"k: input should be less than or equal to {MAX_K}"),
        ({"query": "x", "include": ["body"]}, "include.0: input should be 'title', 'text' or 'metadata'"),
    ],
)
def test_a_malformed_request_is_refused_with_the_field_and_the_reason(body, message):
    reply = client().post("/search", json=body)
    assert (reply.status_code, reply.json()) == (422, {"error": {"kind": "InvalidRequest", "message": message}})


def test_a_body_that_is_not_json_is_refused():
    reply = client().post("/search", content='{"query": ', headers={"Content-Type": "application/json"})
    assert reply.status_code == 422
    assert reply.json()["error"]["message"].startswith("the body is not JSON: ")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"engine": "fast"}, "unknown engine 'fast'; choose auto, exact, scan, plaid, warp"),
        ({"engine": "scan", "params": {"nprobe": 4}}, "params of scan: unknown field nprobe; the fields are engine, ncandidates"),
        ({"engine": "warp", "params": {"nprobe": 0}}, "params of warp: nprobe: input should be greater than or equal to 1"),
        ({"engine": "plaid", "params": {"engine": "warp"}}, "params of plaid: engine: input should be 'plaid'"),
        ({"params": {"nprobe": 4}}, "params need an engine that they belong to; choose exact, scan, plaid, warp"),
    ],
)
def test_an_engine_that_cannot_be_is_refused_with_what_there_is(body, message):
    reply = client().post("/search", json={"query": "x", **body})
    assert (reply.status_code, reply.json()) == (400, {"error": {"kind": "ConfigError", "message": message}})


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ConfigError("no"), 400),
        (ShardUnavailable("ShardGroup-1 is gone"), 503),
        (FormatError("codes.npy", "10 bytes", "9"), 500),
        (UnsupportedVersion("manifest.json", "1", "2"), 500),
        (IncompatibleError("another encoder"), 500),
    ],
)
def test_each_kind_of_error_has_its_status_and_says_itself(error, status):
    reply = client(error).post("/search", json={"query": "x"})
    assert (reply.status_code, reply.json()) == (status, {"error": {"kind": type(error).__name__, "message": str(error)}})


def test_an_error_of_the_program_does_not_show_its_inside():
    reply = client(ZeroDivisionError("secret")).post("/search", json={"query": "x"})
    assert reply.status_code == 500
    assert reply.json() == {"error": {"kind": "InternalError", "message": "unexpected ZeroDivisionError; the service's log has more"}}


def test_an_unknown_path_is_answered_in_the_same_form():
    assert client().get("/serach").json() == {"error": {"kind": "NotFound", "message": "GET /serach: Not Found; /docs lists what there is"}}
    assert client().get("/search").json()["error"]["kind"] == "MethodNotAllowed"


def test_the_examples_of_the_description_are_requests():
    schema = client().get("/openapi.json").json()
    examples = schema["components"]["schemas"]["SearchRequest"]["examples"]
    assert len(examples) == 2
    for example in examples:
        assert client().post("/search", json=example).json()["error"]["message"] == str(PASSED_ON)


def tokens(*counts: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(num_tokens=count) for count in counts]


def test_shards_are_grouped_by_size_without_a_gap():
    assert split_shards(tokens(5, 5, 5, 5), 2) == [range(0, 2), range(2, 4)]
    assert split_shards(tokens(9, 1, 1, 1), 2) == [range(0, 1), range(1, 4)]
    assert split_shards(tokens(1, 1, 1, 9), 3) == [range(0, 2), range(2, 3), range(3, 4)]
    assert split_shards(tokens(0, 0, 7), 3) == [range(0, 1), range(1, 2), range(2, 3)]
    assert split_shards(tokens(3), 1) == [range(0, 1)]


@pytest.mark.parametrize("engine", list(ENGINES))
def test_merging_the_groups_of_shards_gives_the_searchers_answer(index, engine):
    searcher = Searcher.open(str(index))
    queries = Encoder.for_contract(searcher.manifest.contract).encode_queries(QUERIES)
    groups = [ShardServer(str(index), 1, shards.start, shards.stop, 1) for shards in split_shards(searcher.manifest.shards, 3)]
    assert sum(len(group.searcher.shards) for group in groups) == 4
    plans = searcher.planner.plan(queries, 5, engine)
    documents = [None] * len(plans)
    for number in range(len(plans[0].keeps)):
        parts = [group.run_stage(plans, number, documents) for group in groups]
        best = [merge(answers, plan.keeps[number], searcher.kernels) for plan, *answers in zip(plans, *parts, strict=True)]
        documents = [np.sort(top.documents) for top in best]
    for answer, expected in zip(best, searcher.search(queries, 5, engine), strict=True):
        assert answer.documents.tolist() == expected.documents.tolist()
        assert answer.scores.tolist() == expected.scores.tolist()


def test_relative_paths_are_made_absolute(index, monkeypatch):
    monkeypatch.chdir(index.parent)
    assert parse({"index": "index", "num_groups": "2", "timeout_s": "1.5"}).model_dump(include={"index", "num_groups", "timeout_s"}) == {
        "index": str(index),
        "num_groups": 2,
        "timeout_s": 1.5,
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"index": "/nowhere"}, "/nowhere: expected an index, found no LATEST file; check the path, or make one with jobs.build_index"),
        ({"indx": "/nowhere"}, "unknown argument indx; did you mean index?"),
        ({}, "index is required"),
        ({"index": "INDEX", "colour": "red"}, "unknown field colour; the fields are index, version, encoder, num_groups"),
        ({"index": "INDEX", "num_groups": "many"}, "num_groups: input should be a valid integer"),
        ({"index": "INDEX", "num_groups": "5"}, "num_groups is 5, but INDEX has 4 shards; choose no more groups than shards"),
        ({"index": "INDEX", "version": "7"}, "INDEX/versions/7/manifest.json: expected the manifest of index, found no such file"),
        ({"index": "INDEX", "encoder": "all-MiniLM-L6-v2"}, "all-MiniLM-L6-v2 has other weights than "),
        ({"index": "s3://bucket/index"}, "s3://bucket/index is not on a local disk"),
    ],
)
def test_serve_run_says_in_one_line_what_is_wrong_and_ends_with_code_2(index, arguments, message):
    from ray.serve.scripts import cli

    words = [f"{name}={value.replace('INDEX', str(index))}" for name, value in arguments.items()]
    result = CliRunner().invoke(cli, ["run", "serving.app:build", *words])
    assert result.exit_code == 2
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: " + message.replace("INDEX", str(index)))


def test_a_shard_that_was_cut_is_found_before_anything_starts(tmp_path):
    index = make_index(tmp_path, num_docs=40, num_shards=1)
    codes = next(index.glob("shards/*/codes.npy"))
    codes.write_bytes(codes.read_bytes()[:-10])
    with pytest.raises(ConfigError, match=r"codes\.npy: expected \d+ bytes, found \d+ bytes"):
        build({"index": str(index)})
