"""Requests generated from the OpenAPI description: every reply is one that the description declares."""

from collections.abc import Iterator

import hypothesis
import pytest
from fastapi.testclient import TestClient
from starlette import testclient

from serving.handlers.writes import WriteOptions
from serving.http.access import Access, read_tokens
from serving.http.routes import routes
from tests.support.local_service import local_service
from tests.support.served_index import make_index

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed (it is in the dev extra)")

WITH_PARAMETERS = (
    "POST /search",
    "POST /encode",
    "POST /rerank",
    "POST /explain",
    "GET /documents",
    "GET /documents/{doc_id}",
    "POST /documents",
    "PUT /documents",
    "PUT /documents/{doc_id}",
    "DELETE /documents",
    "DELETE /documents/{doc_id}",
    "POST /admin/index",
)
WITHOUT = ("GET /index", "GET /health", "GET /health/live", "GET /health/ready")
OPERATIONS = WITH_PARAMETERS + WITHOUT
CASES = [(label, "positive") for label in OPERATIONS] + [(label, "negative") for label in WITH_PARAMETERS]
CHECKS = (
    schemathesis.checks.status_code_conformance,
    schemathesis.checks.content_type_conformance,
    schemathesis.checks.response_schema_conformance,
)
ADMIN = "admin-0123456789abcdef"


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    folder = tmp_path_factory.mktemp("fuzzed")
    service, _ = local_service(make_index(folder, num_docs=60, num_shards=2), 2, writes=WriteOptions())
    (folder / "tokens.yaml").write_text(f"admin: [{ADMIN}]\n")
    access = Access(grants=read_tokens(str(folder / "tokens.yaml")))
    with TestClient(routes(service, access), headers={"Authorization": f"Bearer {ADMIN}"}) as client:
        yield client


@pytest.fixture(scope="module")
def operations(client: TestClient) -> dict:
    schema = schemathesis.openapi.from_asgi("/openapi.json", client.app)
    return {operation.label: operation for operation in (result.ok() for result in schema.get_all_operations())}


def test_every_route_is_described_and_tried(operations):
    assert set(operations) == set(OPERATIONS)


@pytest.mark.parametrize(("label", "mode"), CASES)
def test_every_answer_is_one_that_the_description_declares(client, operations, label, mode):
    operation = operations[label]

    @hypothesis.given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode)))
    @hypothesis.settings(
        max_examples=40, deadline=None, derandomize=True, database=None, suppress_health_check=list(hypothesis.HealthCheck)
    )
    def check(case) -> None:
        try:
            reply = client.request(**case.as_transport_kwargs())
        except (testclient.httpx.InvalidURL, UnicodeEncodeError):  # the test's client cannot send such a request
            hypothesis.reject()
        case.validate_response(reply, checks=CHECKS)
        in_a_hurry = isinstance(case.body, dict) and "deadline_ms" in case.body  # a deadline of one millisecond may be too short
        assert reply.status_code < 500 or (reply.status_code == 503 and in_a_hurry), reply.text

    check()
