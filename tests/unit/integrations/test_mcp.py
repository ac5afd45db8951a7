"""The MCP server, asked by the official client: in this process, over standard input and output, and over HTTP."""

import asyncio
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from jobs.mcp import McpJob, run
from ray_lir import ConfigError, Index
from ray_lir.integrations.mcp import make_server
from ray_lir.integrations.source import Source
from tests.support.repository import REPOSITORY
from tests.unit.integrations.conftest import DOCUMENTS, QUERY


def ask(server: Any, question: Callable[[Client], Awaitable[Any]]) -> Any:
    async def asked() -> Any:
        async with Client(server) as client:
            return await question(client)

    return asyncio.run(asyncio.wait_for(asked(), 200))


def call(server: Any, tool: str, **arguments: Any) -> Any:
    """The structured content of a tool's result; the text of its error."""
    result = ask(server, lambda client: client.call_tool(tool, arguments))
    return result.content[0].text if result.is_error else result.structured_content


@pytest.fixture
def server(place: str) -> Any:
    return make_server([Source.of(place)])


def test_tools_read_only_and_have_typed_schemas(server: Any):
    tools = {tool.name: tool for tool in ask(server, lambda client: client.list_tools()).tools}
    assert set(tools) == {"search", "explain", "get_document", "list_indexes"}
    assert all(tool.annotations.read_only_hint and tool.description for tool in tools.values())
    inputs = tools["search"].input_schema
    assert inputs["required"] == ["query"] and inputs["properties"]["k"]["maximum"] == 100
    result = tools["search"].output_schema["$defs"]["Result"]
    assert {"doc_id", "score", "title", "snippet", "metadata", "words"} == set(result["required"])


def test_search_finds_what_the_index_finds(index: Index, server: Any):
    found = call(server, "search", query=QUERY, k=2, where="year >= 2019")
    hits = index.search(QUERY, k=2)
    assert [(each["doc_id"], each["score"], each["snippet"]) for each in found["results"]] == [
        (hit.doc_id, hit.score, hit.snippet.text) for hit in hits
    ]
    first = found["results"][0]
    document = index.get(first["doc_id"])
    assert first["metadata"] == document["metadata"] and first["words"]
    assert all(document[word["field"]][word["start"] : word["end"]] == word["word"] for word in first["words"])
    assert [each["doc_id"] for each in call(server, "search", query=QUERY, where="lang = de, year > 2020")["results"]] == ["sea"]


def test_a_document_is_read_and_explained(server: Any, place: str):
    assert call(server, "get_document", doc_id="atp") == {
        "doc_id": "atp",
        **{name: DOCUMENTS[0][name] for name in ("title", "text", "metadata")},
    }
    trace = call(server, "explain", query=QUERY, doc_id="sea", where="lang = en", engine="exact")
    assert (trace["rank"], trace["dropped_at"]) == (None, "filters") and trace["reason"]
    [entry] = call(server, "list_indexes")["indexes"]
    assert (entry["name"], entry["num_docs"], entry["version"]) == (place, 4, 1)


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("search", {"query": QUERY, "where": "year >"}, "where: expected a value"),
        ("search", {"query": QUERY, "engine": "best"}, "unknown engine 'best'"),
        ("search", {"query": QUERY, "index": "other"}, "there is no index 'other'; the indexes are"),
        ("search", {"query": ""}, "query"),
        ("search", {"query": QUERY, "k": 0}, "k"),
        ("get_document", {"doc_id": "nothing"}, "there is no document 'nothing'"),
        ("explain", {"query": QUERY, "doc_id": "nothing"}, "no document 'nothing'"),
        ("add_documents", {"documents": [{"doc_id": "new", "text": "new"}]}, "add_documents"),
    ],
)
def test_an_invalid_call_is_an_error_that_the_assistant_can_read(server: Any, tool: str, arguments: dict[str, Any], message: str):
    assert message in call(server, tool, **arguments)


def test_writes_are_offered_only_on_request(index: Index, tmp_path: Path, url: str):
    shutil.copytree(index.path, tmp_path / "index")
    server = make_server([Source.of(tmp_path / "index")], allow_writes=True)
    tools = {tool.name: tool for tool in ask(server, lambda client: client.list_tools()).tools}
    assert not tools["add_documents"].annotations.read_only_hint and tools["delete_documents"].annotations.destructive_hint
    added = call(
        server, "add_documents", documents=[{"doc_id": "new", "text": "A tower.", "metadata": {"year": 1}}, {"doc_id": "sea", "text": "b"}]
    )
    assert added == {"version": 2, "num_docs": 5, "num_added": 2, "num_replaced": 1, "num_deleted": 0, "num_unknown": 0}
    assert [each["doc_id"] for each in call(server, "search", query="tower", where="year = 1")["results"]] == ["new"]
    assert call(server, "delete_documents", doc_ids=["new", "nothing"])["num_unknown"] == 1
    assert "there is no document" in call(server, "get_document", doc_id="new")
    with pytest.raises(ConfigError, match="a service is changed over its own API"):
        make_server([Source.of(url)], allow_writes=True)


def test_several_indexes_have_names(index: Index, tmp_path: Path, url: str):
    shutil.copytree(index.path, tmp_path / "index")
    server = make_server([Source.of(index), Source.of(tmp_path / "index"), Source.of(url)])
    names = [entry["index"] for entry in call(server, "list_indexes")["indexes"]]
    assert names[:2] == ["index", "index-2"] and len(set(names)) == 3
    assert {call(server, "search", query=QUERY, index=name)["index"] for name in names} == set(names)


def test_an_assistant_starts_the_command_and_talks_over_standard_input(index: Index):
    command = StdioServerParameters(command=sys.executable, args=["-m", "jobs", "mcp", "--index", index.path], cwd=REPOSITORY)
    [first, *_] = call(command, "search", query=QUERY, k=1)["results"]
    assert first["doc_id"] == index.search(QUERY, k=1)[0].doc_id


def test_the_command_serves_over_http(index: Index):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["--index", index.path, "--transport", "http", "--port", str(port)]
    with subprocess.Popen([sys.executable, "-m", "jobs", "mcp", *words], cwd=REPOSITORY, stderr=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 200
            while time.monotonic() < deadline and process.poll() is None:
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.1)
            [first, *_] = call(f"http://127.0.0.1:{port}/mcp", "search", query=QUERY, k=1)["results"]
            assert first["doc_id"] == index.search(QUERY, k=1)[0].doc_id
        finally:
            process.terminate()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give --index or --service"),
        ({"index": "nowhere", "transport": "http", "host": "0.0.0.0"}, "not an address of this machine"),
        ({"index": "nowhere"}, "no LATEST file"),
    ],
)
def test_a_wrong_command_is_a_one_line_error(fields: dict[str, Any], message: str):
    with pytest.raises(Exception, match=message):
        run(McpJob(**fields))
