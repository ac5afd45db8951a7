"""The service without a cluster: requests that HTTP accepts and refuses, grouping of shards, and start errors."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from click.testing import CliRunner
from fastapi.testclient import TestClient

from ray_lir.api.admin import IndexChange
from ray_lir.api.search import MAX_K, MAX_QUERIES, MAX_QUERY_CHARACTERS, SearchRequest
from ray_lir.base.errors import ConfigError, FormatError, IncompatibleError, ShardUnavailable, UnsupportedVersion
from ray_lir.engines.choice import engine_params
from ray_lir.index.shard_groups import split_shards
from serving.app import build, parse, scaling
from serving.foreground import main
from serving.http.access import Access, Grant, check_address, read_tokens
from serving.http.routes import routes
from serving.metrics import Metrics
from serving.workers.shard_server import ShardServer
from tests.support.repository import REPOSITORY
from tests.support.served_index import make_index


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("served"))


PASSED_ON = ConfigError("the request was passed on")


class Failing:
    """A service that ends every search with one error."""

    def __init__(self, error: Exception):
        self.error = error
        self.metrics = Metrics()

    async def search(self, request: SearchRequest) -> None:
        engine_params(request.engine, request.params)
        raise self.error

    async def change_index(self, change: IndexChange) -> None:
        raise self.error


def client(error: Exception = PASSED_ON) -> TestClient:
    return TestClient(routes(Failing(error)), raise_server_exceptions=False)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"query": "x", "topk": 3},
            "unknown field topk; the fields are query, queries, k, engine, quality, params, filters, version, include, "
            "deadline_ms, min_coverage, explain, highlight",
        ),
        ({}, "give either query or queries"),
        ({"query": "x", "queries": ["y"]}, "give either query or queries"),
        ({"queries": []}, "queries: list should have at least 1 item after validation, not 0"),
        ({"queries": ["x"] * (MAX_QUERIES + 1)}, f"queries: list should have at most {MAX_QUERIES} items after validation, not 65"),
        ({"query": ""}, "query: string should have at least 1 character"),
        ({"query": "x" * (MAX_QUERY_CHARACTERS + 1)}, f"query: string should have at most {MAX_QUERY_CHARACTERS} characters"),
        ({"query": 7}, "query: input should be a valid string"),
        ({"query": "x", "k": 0}, "k: input should be greater than or equal to 1"),
        ({"query": "x", "k": MAX_K + 1}, f"k: input should be less than or equal to {MAX_K}"),
        ({"query": "x", "quality": "best"}, "quality: input should be 'fast', 'balanced' or 'exact'"),
        ({"query": "x", "include": ["body"]}, "include.0: input should be 'title', 'text' or 'metadata'"),
    ],
)
def test_a_malformed_request_is_refused_with_the_field_and_the_reason(body, message):
    reply = client().post("/search", json=body)
    assert (reply.status_code, reply.json()) == (422, {"error": {"kind": "InvalidRequest", "message": message}})


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"5"])
@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded"])
def test_a_body_that_is_no_object_is_refused_with_the_header_to_send(content, kind):
    reply = client().post("/search", content=content, headers={"Content-Type": kind})
    assert reply.status_code == 422
    expected = "the body is not a JSON object; send one, with the header Content-Type: application/json"
    assert reply.json()["error"]["message"] == expected


def test_a_body_that_is_not_json_is_refused():
    reply = client().post("/search", content='{"query": ', headers={"Content-Type": "application/json"})
    assert reply.status_code == 422
    assert reply.json()["error"]["message"].startswith("the body is not JSON: ")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"engine": "fast"}, "unknown engine 'fast'; choose auto, exact, scan, plaid, warp, bm25, hybrid"),
        (
            {"engine": "scan", "params": {"nprobe": 4}},
            "params of scan: unknown field nprobe; the fields are engine, relation_candidates, relation_documents, ncandidates, "
            "rescore, candidate_fraction",
        ),
        ({"engine": "warp", "params": {"nprobe": 0}}, "params of warp: nprobe: input should be greater than or equal to 1"),
        ({"engine": "plaid", "params": {"engine": "warp"}}, "params of plaid: engine: input should be 'plaid'"),
        ({"params": {"nprobe": 4}}, "params need a named engine, not auto; choose exact, scan, plaid, warp, bm25, hybrid"),
    ],
)
def test_an_invalid_engine_is_refused_with_the_valid_ones(body, message):
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
def test_each_kind_of_error_has_its_status_and_message(error, status):
    reply = client(error).post("/search", json={"query": "x"})
    assert (reply.status_code, reply.json()) == (status, {"error": {"kind": type(error).__name__, "message": str(error)}})


def test_an_internal_error_reveals_no_details():
    reply = client(ZeroDivisionError("secret")).post("/search", json={"query": "x"})
    assert reply.status_code == 500
    assert reply.json() == {"error": {"kind": "InternalError", "message": "unexpected ZeroDivisionError; see the service's log"}}


def test_an_unknown_path_gets_an_error_in_the_usual_form():
    assert client().get("/serach").json() == {"error": {"kind": "NotFound", "message": "GET /serach: Not Found; /docs lists the routes"}}
    assert client().get("/search").json()["error"]["kind"] == "MethodNotAllowed"


def test_examples_in_the_openapi_description_are_valid_requests():
    schema = client().get("/openapi.json").json()
    examples = schema["components"]["schemas"]["SearchRequest"]["examples"]
    assert len(examples) == 4
    for example in examples:
        assert client().post("/search", json=example).json()["error"]["message"] == str(PASSED_ON)


def tokens(*counts: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(num_tokens=count) for count in counts]


def test_consecutive_shards_are_grouped_by_size():
    assert split_shards(tokens(5, 5, 5, 5), 2) == [range(0, 2), range(2, 4)]
    assert split_shards(tokens(9, 1, 1, 1), 2) == [range(0, 1), range(1, 4)]
    assert split_shards(tokens(1, 1, 1, 9), 3) == [range(0, 2), range(2, 3), range(3, 4)]
    assert split_shards(tokens(0, 0, 7), 3) == [range(0, 1), range(1, 2), range(2, 3)]
    assert split_shards(tokens(3), 1) == [range(0, 1)]
    assert split_shards(tokens(3, 4), 4) == [range(0, 1), range(1, 2), range(2, 2), range(2, 2)]


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
        ({"index": "INDEX", "num_groups": "5"}, "num_groups is 5, but INDEX has 4 shards; set num_groups to at most 4"),
        ({"index": "INDEX", "version": "7"}, "INDEX/versions/7/manifest.json: expected the manifest of index, found no such file"),
        ({"index": "INDEX", "encoder": "all-MiniLM-L6-v2"}, "all-MiniLM-L6-v2 has other weights than "),
        ({"index": "s3://bucket/index"}, "s3://bucket/index is not on a disk"),
        ({"index": "INDEX", "replicas": "3", "max_replicas": "2"}, "max_replicas is 2, less than replicas (3); raise it, or leave it out"),
    ],
)
def test_serve_run_reports_an_error_in_one_line_with_exit_code_2(index, arguments, message):
    from ray.serve.scripts import cli

    words = [f"{name}={value.replace('INDEX', str(index))}" for name, value in arguments.items()]
    result = CliRunner().invoke(cli, ["run", "serving.app:build", *words])
    assert result.exit_code == 2
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("Error: " + message.replace("INDEX", str(index)))


def test_the_number_of_replicas_is_fixed_without_autoscaling(index):
    from ray import serve

    fixed = serve.deployment(**scaling(parse({"index": str(index), "replicas": "2"}), 4))(ShardServer)
    assert fixed.num_replicas == 2
    options = scaling(parse({"index": str(index), "max_replicas": "3"}), 4)
    assert options == {"autoscaling_config": {"min_replicas": 1, "max_replicas": 3, "target_ongoing_requests": 4}}
    serve.deployment(**options)(ShardServer)


def test_a_truncated_shard_is_reported_before_deployments_start(tmp_path):
    index = make_index(tmp_path, num_docs=40, num_shards=1)
    codes = next(index.glob("shards/*/codes.npy"))
    codes.write_bytes(codes.read_bytes()[:-10])
    with pytest.raises(ConfigError, match=r"codes\.npy: expected \d+ bytes, found \d+ bytes"):
        build({"index": str(index)})


TOKENS = {"read": ["read-0123456789abcdef"], "admin": ["admin-0123456789abcdef"]}


@pytest.fixture
def guarded(tmp_path) -> TestClient:
    """Return a client of a service that needs tokens."""
    (tmp_path / "tokens.yaml").write_text(yaml.safe_dump(TOKENS))
    access = Access(grants=read_tokens(str(tmp_path / "tokens.yaml")))
    return TestClient(routes(Failing(PASSED_ON), access), raise_server_exceptions=False)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.mark.parametrize("path", ["/search", "/encode", "/rerank", "/explain", "/admin/index"])
def test_without_a_valid_token_only_health_and_the_page_answer(guarded, path):
    for headers in ({}, bearer("read-0123456789abcdeX"), {"Authorization": "Basic cmVhZA=="}):
        reply = guarded.post(path, json={"query": "x"}, headers=headers)
        assert (reply.status_code, reply.json()["error"]["kind"]) == (401, "Unauthenticated")
        assert reply.headers["WWW-Authenticate"] == "Bearer"
    for address in ("/index", "/documents/doc-1"):
        assert guarded.get(address).status_code == 401
    for address in ("/", "/ui/app.js", "/ui/style.css", "/health/live"):
        assert guarded.get(address).status_code == 200


def test_a_reader_reads_and_only_an_admin_administrates(guarded):
    for token in (*TOKENS["read"], *TOKENS["admin"]):
        assert guarded.post("/search", json={"query": "x"}, headers=bearer(token)).json()["error"]["message"] == str(PASSED_ON)
    change = {"action": "load", "version": 2}
    assert guarded.post("/admin/index", json=change, headers=bearer(TOKENS["read"][0])).status_code == 403
    assert guarded.post("/admin/index", json=change, headers=bearer(TOKENS["admin"][0])).json()["error"]["message"] == str(PASSED_ON)


def test_a_service_without_tokens_allows_reading_but_no_administration():
    assert client().post("/search", json={"query": "x"}).json()["error"]["message"] == str(PASSED_ON)
    reply = client().post("/admin/index", json={"action": "roll_back"})
    assert (reply.status_code, reply.json()["error"]["kind"]) == (403, "Forbidden")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("read: [short]", "a token under read is shorter than 16 characters"),
        ("owner: [0123456789abcdef]", "is not a token file"),
        ("- 0123456789abcdef", "is not a token file"),
        ("{", "is not a token file"),
        ("read: []", "lists no token"),
    ],
)
def test_a_malformed_token_file_is_refused(tmp_path, text, message):
    (tmp_path / "tokens.yaml").write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_tokens(str(tmp_path / "tokens.yaml"))


@pytest.mark.parametrize("host", ["0.0.0.0", "192.168.1.4", "::", "search.example.org", ""])
def test_listening_to_a_network_needs_tokens(host):
    with pytest.raises(ConfigError, match="other machines can reach .*; set tokens"):
        check_address(host, Access())
    check_address(host, Access(grants={"00": Grant(role="read")}))


def test_the_service_refuses_to_start_open_to_a_network(index, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["--index", str(index), "--host", "0.0.0.0"])
    assert exit.value.code == 2
    assert capsys.readouterr().err == "error: other machines can reach 0.0.0.0; set tokens to a token file, or listen on 127.0.0.1\n"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_localhost_needs_no_tokens(host):
    check_address(host, Access())


def test_other_origins_are_refused_unless_configured():
    preflight = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    assert "access-control-allow-origin" not in client().options("/search", headers=preflight).headers
    assert "access-control-allow-origin" not in client().post("/search", json={"query": "x"}, headers=preflight).headers
    named = TestClient(routes(Failing(PASSED_ON), Access(origins=("https://good.example",))))
    assert named.options("/search", headers={**preflight, "Origin": "https://good.example"}).headers["access-control-allow-origin"] == (
        "https://good.example"
    )
    assert "access-control-allow-origin" not in named.options("/search", headers=preflight).headers


def test_a_cross_site_form_request_is_not_accepted_as_json():
    reply = client().post("/search", content=b'{"query": "x"}', headers={"Content-Type": "text/plain"})
    assert reply.status_code == 422


def test_every_reply_tells_browsers_to_be_strict():
    for reply in (client().get("/"), client().post("/search", json={"query": "x"})):
        assert "script-src 'self'" in reply.headers["Content-Security-Policy"]
        assert reply.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/", "/health/live", "/nowhere"])
def test_head_gets_the_status_and_headers_of_get_without_the_body(path):
    with client() as asked:
        head, get = asked.head(path), asked.get(path)
    assert head.status_code == get.status_code and head.content == b"" and get.content
    assert head.headers["content-length"] == get.headers["content-length"]


def test_each_request_leaves_one_line_in_the_log(caplog):
    caplog.set_level("INFO", logger="ray.serve")
    client().post("/search", json={"query": "a secret question"})
    [record] = [record for record in caplog.records if record.name == "ray.serve"]
    assert (record.method, record.endpoint, record.status) == ("POST", "/search", 400) and record.ms >= 0
    assert record.message.startswith("POST /search 400 ")
    assert "secret" not in caplog.text


@pytest.mark.parametrize("file", sorted((REPOSITORY / "serving" / "config").glob("*.yaml")), ids=lambda file: file.stem)
def test_ray_serve_and_the_application_accept_the_configuration_files(file):
    from ray.serve.schema import ServeDeploySchema

    deployed = ServeDeploySchema.model_validate(yaml.safe_load(file.read_text()))
    [application] = deployed.applications
    config = parse(application.args)
    if config.tokens is None:
        check_address(deployed.http_options.host, Access())
