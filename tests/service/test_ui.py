"""The search page in a headless Chromium, over the whole service in this process."""

import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from fastapi.testclient import TestClient

from ray_lir.base.errors import ShardUnavailable
from serving.http.access import Access, read_tokens
from serving.http.routes import routes
from serving.service import Service
from tests.support.local_service import LocalTransport, local_service, raising
from tests.support.served_index import QUERIES, make_index

QUERY = QUERIES[1]
TOKEN = "0123456789abcdef-read"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (it is in the dev extra)")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("there is no Chromium here; Debian's packages are chromium and chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    running = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    running.set_window_size(1100, 900)
    yield running
    running.quit()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> tuple[Service, LocalTransport]:
    """Its first document's title is an attack on the page."""
    folder = tmp_path_factory.mktemp("page")
    return local_service(make_index(folder, first_title=ATTACK), 2)


ATTACK = "<img src=x onerror=\"document.body.dataset.attacked='yes'\"> king & bridge"


@pytest.fixture(scope="module")
def listen() -> Iterator[Callable[[FastAPI], str]]:
    """Serves an application on a free port; returns its address."""
    started: list[tuple[uvicorn.Server, threading.Thread]] = []

    def listen(app: FastAPI) -> str:
        listening = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        started.append((server, thread))
        return f"http://127.0.0.1:{listening.getsockname()[1]}/"

    yield listen
    for server, thread in started:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def url(service: tuple[Service, LocalTransport], listen: Callable[[FastAPI], str]) -> str:
    return listen(routes(service[0]))


def until(seen: Callable[[], Any], what: str) -> Any:
    end = time.monotonic() + 20
    while not (value := seen()):
        assert time.monotonic() < end, f"the page never showed {what}"
        time.sleep(0.05)
    return value


def all_of(browser: Any, selector: str) -> list[Any]:
    return browser.find_elements("css selector", selector)


def one(browser: Any, selector: str) -> Any:
    return browser.find_element("css selector", selector)


def ask(browser: Any, url: str, query: str = QUERY) -> list[Any]:
    browser.get(f"{url}?engine=exact")
    until(lambda: all_of(browser, "#engine option:nth-child(2)"), "the engines")
    one(browser, "#query").send_keys(query, "\n")
    return until(lambda: all_of(browser, ".hit"), "results")


def marked(browser: Any) -> list[str]:
    return [mark.text.lower() for mark in all_of(browser, "mark.on") if mark.is_displayed()]


def test_a_search_shows_results_with_scores_time_coverage_and_index_facts(browser, url):
    hits = ask(browser, url)
    assert len(hits) == 10
    assert "score" in one(browser, ".hit .facts").text
    status = one(browser, "#status").text
    assert status.startswith("10 documents in ") and "exact" in status and "index version 1" in status
    assert one(browser, "#index summary").text == "400 documents, version 1"
    one(browser, "#timings summary").click()
    assert "stage 1 of exact" in one(browser, "#timings dl").text
    assert "?q=" in browser.current_url


def test_each_word_of_the_query_shows_its_match_on_hover_and_on_focus(browser, url):
    from selenium.webdriver.common.action_chains import ActionChains

    ask(browser, url, "the bridge on the river")
    words = all_of(browser, ".word")
    assert [word.text for word in words] == ["the", "bridge", "on", "the", "river", "special tokens"]
    assert all_of(browser, ".hit mark.m5") and not marked(browser)
    ActionChains(browser).move_to_element(words[4]).perform()
    assert marked(browser)
    ActionChains(browser).move_to_element(one(browser, "#query")).perform()
    assert not marked(browser)
    browser.execute_script("arguments[0].focus()", words[1])
    assert marked(browser)


def test_the_page_is_used_with_the_keyboard_alone(browser, url):
    from selenium.webdriver.common.keys import Keys

    browser.get(url)
    until(lambda: all_of(browser, "#engine option:nth-child(2)"), "the engines")
    keyboard = browser.switch_to.active_element
    assert keyboard.get_attribute("id") == "query"
    keyboard.send_keys("river", Keys.ENTER)
    until(lambda: all_of(browser, ".hit"), "results")
    seen = []
    for _ in range(6):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        seen.append(browser.switch_to.active_element.get_attribute("class") or browser.switch_to.active_element.get_attribute("id"))
    assert seen == ["", "engine", "quality", "k", "filter", "word on"]
    one(browser, ".word").send_keys("/")
    assert browser.switch_to.active_element.get_attribute("id") == "query"


def test_engine_and_number_of_results_follow_the_choice_and_back_goes_back(browser, url):
    ask(browser, url)
    one(browser, "#k option:first-child").click()
    until(lambda: len(all_of(browser, ".hit")) == 5, "five results")
    one(browser, "#engine").send_keys("plaid")
    until(lambda: "plaid" in one(browser, "#status").text, "plaid's answer")
    browser.back()
    until(lambda: "exact" in one(browser, "#status").text, "the search before")


@pytest.mark.parametrize(
    ("filter", "rows"),
    [
        ("row >= 20, row < 25, row != 22", [20, 21, 23, 24]),
        ("row=7", [7]),
        ('{"op": "le", "field": "row", "value": 3}', [0, 1, 2, 3]),
        ('{"where": {"op": "lt", "field": "row", "value": 9}, "ids": {"exclude": ["doc-1", "doc-8"]}}', [0, 2, 3, 4, 5, 6, 7]),
    ],
)
def test_the_page_shows_filtered_hits_and_keeps_the_filter_in_the_url(browser, url, filter, rows):
    ask(browser, url)
    one(browser, "#filter").send_keys(filter, "\n")
    until(lambda: len(all_of(browser, ".hit")) == len(rows), "the filtered results")
    assert sorted(int(hit.get_attribute("data-id").removeprefix("doc-")) for hit in all_of(browser, ".hit")) == rows
    browser.refresh()
    until(lambda: len(all_of(browser, ".hit")) == len(rows), "the same after a reload")
    one(browser, "#doc-id").send_keys("doc-300", "\n")
    until(lambda: "left out by the filter" in one(browser, "#reason").text, "what the filter did")


def test_a_meaningless_filter_is_refused(browser, url):
    ask(browser, url)
    for filter, told in (("row", "after the field"), ("{", "starts like JSON"), ('{"op": "like", "field": "row"}', "filters.where")):
        one(browser, "#filter").clear()
        one(browser, "#filter").send_keys(filter, "\n")
        until(lambda told=told: told in one(browser, "#status").text, told)


def test_text_of_documents_is_never_rendered_as_html(browser, url):
    text = httpx.get(f"{url}documents/doc-0").json()["text"]
    ask(browser, url, f"{ATTACK} {text}")
    titles = [title.text for title in all_of(browser, ".hit h2")]
    assert ATTACK in titles
    assert browser.execute_script("return document.body.dataset.attacked") is None
    assert not all_of(browser, "img")


def test_the_page_loads_nothing_from_other_hosts_without_console_errors(browser, url):
    browser.get_log("performance"), browser.get_log("browser")
    ask(browser, url)
    requested = [entry["message"] for entry in browser.get_log("performance") if '"Network.requestWillBeSent"' in entry["message"]]
    assert requested and all(url in message for message in requested)
    assert browser.get_log("browser") == []


def test_the_page_explains_why_a_document_is_missing(browser, url):
    ask(browser, url)
    shown = {hit.get_attribute("data-id") for hit in all_of(browser, ".hit")}
    missing = next(f"doc-{number}" for number in range(400) if f"doc-{number}" not in shown)
    one(browser, "#doc-id").send_keys(missing, "\n")
    until(lambda: all_of(browser, "#reason td"), "the stages")
    assert "lowest of the 10 that were kept" in one(browser, "#reason").text
    one(browser, "#doc-id").clear()
    one(browser, "#doc-id").send_keys("nobody", "\n")
    until(lambda: "there is no document 'nobody'" in one(browser, "#reason").text, "that there is none")


def test_partial_answers_and_errors_are_shown(browser, url, service):
    _, calls = service
    calls.faults["ShardGroup-1"] = raising(ShardUnavailable("ShardGroup-1 is gone"))
    try:
        ask(browser, url)
        assert "only 49% of the documents could be searched" in one(browser, "#status").text
        calls.faults["QueryEncoder"] = raising(ShardUnavailable("QueryEncoder is gone"))
        one(browser, "#query").send_keys("\n")
        until(lambda: one(browser, "#status").text == "QueryEncoder is gone", "the error")
    finally:
        calls.faults.clear()


def test_the_page_fits_the_width_of_a_phone(browser, url):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True})
    try:
        ask(browser, url)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
        small = [each.text for each in all_of(browser, "#search button, .word") if each.size["height"] < 24]
        assert small == []
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_page_asks_for_the_token_that_a_service_needs(browser, service, listen, tmp_path: Path):
    (tmp_path / "tokens.yaml").write_text(f"read: [{TOKEN}]\n")
    browser.get(listen(routes(local_service(Path(service[0].root), 1)[0], Access(grants=read_tokens(str(tmp_path / "tokens.yaml"))))))
    box = until(lambda: [each for each in all_of(browser, "#token") if each.is_displayed()], "the token's box")[0]
    box.send_keys(TOKEN, "\n")
    until(lambda: all_of(browser, "#engine option:nth-child(2)"), "the engines")
    one(browser, "#query").send_keys("river", "\n")
    shown = [hit.get_attribute("data-id") for hit in until(lambda: all_of(browser, ".hit"), "results")]
    reply = TestClient(routes(local_service(Path(service[0].root), 1)[0])).post("/search", json={"query": "river", "k": 10})
    assert shown == [hit["doc_id"] for hit in reply.json()["results"][0]]
