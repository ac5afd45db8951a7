"""The search page in a headless Chromium, with the whole service in this process."""

import asyncio
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
from serving.handlers.writes import WriteOptions
from serving.http.access import Access, read_tokens
from serving.http.routes import routes
from serving.service import Service
from tests.support.local_service import LocalTransport, local_service, raising, sleeping
from tests.support.served_index import QUERIES, delete, make_index

QUERY = QUERIES[1]
TOKEN = "0123456789abcdef-read"
WRITE_TOKEN = "0123456789abcdef-write"


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


def metadata(row: int) -> dict[str, Any]:
    day = f"2024-{row % 12 + 1:02}-15T10:00"
    return {
        "row": row,
        "lang": ("en", "de", "fr")[row % 3],
        "tags": ["a", "b"][: row % 2 + 1],
        "open": row % 4 == 0,
        "day": day,
        "name": f"n{row}",
    }


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> tuple[Service, LocalTransport]:
    """Return an index with a first title that holds script code. Version 2 lacks every third document."""
    index = make_index(tmp_path_factory.mktemp("page"), first_title=ATTACK, metadata=metadata)
    delete(index, every=3)
    return local_service(index, 2)


ATTACK = "<img src=x onerror=\"document.body.dataset.attacked='yes'\"> king & bridge"


@pytest.fixture(scope="module")
def listen() -> Iterator[Callable[[FastAPI], str]]:
    """Serve an application on a free port; yield its address."""
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
    until(lambda: all_of(browser, ".start"), "the start")
    one(browser, "#query").send_keys(query, "\n")
    return until(lambda: all_of(browser, ".hit[data-id]"), "results")


def show(browser: Any, address: str) -> list[Any]:
    """Opens a link to a search."""
    browser.get(address)
    return until(lambda: all_of(browser, ".hit[data-id]"), "results")


def status(browser: Any, side: str = "a") -> str:
    return browser.execute_script(f"return document.querySelector('#side-{side} .status').textContent")


def ids(browser: Any, side: str = "a") -> list[str]:
    """The shown documents, read at one moment: the page may replace them while a list of elements is walked."""
    return browser.execute_script(f"return [...document.querySelectorAll('#side-{side} .hit[data-id]')].map((hit) => hit.dataset.id)")


def marked(browser: Any) -> list[str]:
    return [mark.text.lower() for mark in all_of(browser, "mark.on") if mark.is_displayed()]


def test_a_search_shows_results_with_scores_time_coverage_and_index_facts(browser, url):
    hits = ask(browser, url)
    assert len(hits) == 10
    assert "score" in one(browser, ".hit .facts").text
    shown = status(browser)
    assert shown.startswith("10 documents in ") and "exact" in shown and "index version 1" in shown
    assert one(browser, "#size").text == "400 documents, version 1"
    one(browser, ".timings summary").click()
    assert "stage 1 of exact" in one(browser, ".timings dl").text
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
    words[4].click()
    ActionChains(browser).move_to_element(one(browser, "#query")).perform()
    assert marked(browser)  # a click keeps them shown


def test_the_page_is_used_with_the_keyboard_alone(browser, url):
    from selenium.webdriver.common.keys import Keys

    browser.get(url)
    until(lambda: all_of(browser, ".start"), "the start")
    keyboard = browser.switch_to.active_element
    assert keyboard.get_attribute("id") == "query"
    keyboard.send_keys("river", Keys.ENTER)
    until(lambda: all_of(browser, ".hit[data-id]"), "results")
    seen = []
    for _ in range(9):
        browser.switch_to.active_element.send_keys(Keys.TAB)
        active = browser.switch_to.active_element
        seen.append(active.get_attribute("id") or active.get_attribute("class"))
    assert seen == ["primary", "engine", "quality", "k", "show-filters", "compare", "word on", "word special on", "score"]
    assert one(browser, ".breakdown").is_displayed()  # the focus on a score shows its parts
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not one(browser, ".breakdown").is_displayed()
    one(browser, ".word").send_keys("/")
    assert browser.switch_to.active_element.get_attribute("id") == "query"


def test_engine_and_number_of_results_follow_the_choice_and_back_goes_back(browser, url):
    ask(browser, url)
    one(browser, "#k option:first-child").click()
    until(lambda: len(ids(browser)) == 5, "five results")
    one(browser, "#engine").send_keys("plaid")
    until(lambda: "plaid" in status(browser), "plaid's answer")
    browser.back()
    until(lambda: "exact" in status(browser), "the search before")


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
    one(browser, "#show-filters").click()
    one(browser, "#filter").send_keys(filter, "\n")
    until(lambda: len(ids(browser)) == len(rows), "the filtered results")
    assert sorted(int(doc_id.removeprefix("doc-")) for doc_id in ids(browser)) == rows
    browser.refresh()
    until(lambda: len(ids(browser)) == len(rows), "the same after a reload")
    one(browser, "#doc-id").send_keys("doc-300", "\n")
    until(lambda: "left out by the filter" in one(browser, "#reason").text, "what the filter did")


def test_a_meaningless_filter_is_refused(browser, url):
    ask(browser, url)
    one(browser, "#show-filters").click()
    for filter, message in (("row", "after the field"), ("{", "starts like JSON"), ('{"op": "like", "field": "row"}', "filters.where")):
        one(browser, "#filter").clear()
        one(browser, "#filter").send_keys(filter, "\n")
        until(
            lambda message=message: message in browser.execute_script("return document.querySelector('.failed')?.textContent ?? ''"),
            message,
        )


@pytest.mark.parametrize(
    ("parameters", "meets"),
    [
        ("min:row=20&max:row=50", lambda each: 20 <= each["row"] <= 50),
        ("is:lang=de&is:lang=fr", lambda each: each["lang"] in ("de", "fr")),
        ("is:tags=b", lambda each: "b" in each["tags"]),
        ("is:open=true&max:row=99", lambda each: each["open"] and each["row"] <= 99),
        ("min:day=2024-03-15&max:day=2024-04-15", lambda each: "2024-03-15" <= each["day"] < "2024-04-16"),
        ("has:name=n17", lambda each: "n17" in each["name"]),
        ("is:lang=en&filter=row < 30 or row > 380", lambda each: each["lang"] == "en" and not 30 <= each["row"] <= 380),
    ],
)
def test_metadata_fields_are_filters_that_the_url_keeps(browser, url, parameters, meets):
    show(browser, f"{url}?q=river&engine=exact&k=50&{parameters}")
    rows = [row for row in range(400) if meets(metadata(row))]
    assert len(ids(browser)) == min(50, len(rows))
    assert {int(doc_id.removeprefix("doc-")) for doc_id in ids(browser)} <= set(rows)
    assert one(browser, "#num-filters").text.startswith("(") and one(browser, "#filters").is_displayed()


def test_an_empty_answer_offers_to_remove_the_filters(browser, url):
    browser.get(f"{url}?q=river&min:row=9999")
    until(lambda: all_of(browser, ".empty"), "that nothing was found")
    assert "No document meets the filters" in one(browser, ".empty").text
    one(browser, ".empty button").click()
    until(lambda: len(ids(browser)) == 10, "results without filters")
    assert "9999" not in browser.current_url


def test_a_score_shows_its_parts_and_their_sum(browser, url):
    from selenium.webdriver.common.action_chains import ActionChains

    show(browser, f"{url}?q=the bridge on the river&engine=exact")
    score = one(browser, ".hit .score")
    ActionChains(browser).move_to_element(score).perform()
    panel = one(browser, ".breakdown")
    assert panel.is_displayed() and score.get_attribute("aria-expanded") == "true"
    words = [each.text for each in all_of(browser, ".breakdown:not([hidden]) tbody th")]
    assert words == ["the", "bridge", "on", "the", "river", "special tokens", "sum"]
    parts = [float(each.text) for each in all_of(browser, ".breakdown:not([hidden]) td.sum")]
    assert sum(parts[:-1]) == pytest.approx(parts[-1], abs=0.005)
    assert parts[-1] == pytest.approx(float(score.text), abs=0.01)
    ActionChains(browser).move_to_element(one(browser, "#query")).perform()
    assert not panel.is_displayed()


def test_two_engines_versions_or_queries_are_compared_side_by_side(browser, url, service):
    from ray_lir.api.admin import IndexChange

    def change(action: str, **options: Any) -> None:
        asyncio.run(service[0].change_index(IndexChange(action=action, **options)))
        service[0]._changing = asyncio.Lock()  # a lock belongs to the event loop that first waited for it

    ask(browser, url)
    one(browser, "#compare").click()
    until(lambda: ids(browser, "b"), "the other side")
    until(lambda: "same 10 documents in the same order" in one(browser, "#summary").text, "that auto and exact agree")
    one(browser, "#query2").send_keys("token", "\n")
    until(lambda: "are on both sides" in one(browser, "#summary").text, "that the queries differ")
    both = set(ids(browser)) & set(ids(browser, "b"))
    assert f"{len(both)} of 10 documents" in one(browser, "#summary").text
    assert len(all_of(browser, "#side-a .badge.only")) == 10 - len(both)
    before = (ids(browser), ids(browser, "b"))
    browser.refresh()
    until(lambda: "are on both sides" in one(browser, "#summary").text, "the same after a reload")
    assert (ids(browser), ids(browser, "b")) == before
    change("load", version=2)
    try:
        show(browser, f"{url}?q=river&engine=exact&engine2=exact&version=1&version2=2&compare=1")
        until(lambda: "are on both sides" in one(browser, "#summary").text, "that the versions differ")
        assert "index version 1" in status(browser) and "index version 2" in status(browser, "b")
    finally:
        change("roll_back")


def test_text_of_documents_is_never_rendered_as_html(browser, url):
    text = httpx.get(f"{url}documents/doc-0").json()["text"]
    ask(browser, url, f"{ATTACK} {text}")
    titles = [title.text for title in all_of(browser, ".hit h3")]
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
        notice = one(browser, ".notice").text
        assert "Only 49% of the documents could be searched" in notice and "ShardGroup-1 is gone" in notice
        calls.faults["QueryEncoder"] = raising(ShardUnavailable("QueryEncoder is gone"))
        one(browser, "#query").send_keys("\n")
        failed = until(lambda: all_of(browser, ".failed"), "the error")[0]
        assert failed.get_attribute("role") == "alert" and "QueryEncoder is gone" in failed.text
        calls.faults.clear()
        one(browser, ".failed button").click()
        until(lambda: ids(browser), "results")
        assert not all_of(browser, ".failed")
    finally:
        calls.faults.clear()


def test_a_slow_search_says_so_and_can_be_cancelled(browser, url, service):
    _, calls = service
    ask(browser, url)
    calls.faults["QueryEncoder"] = sleeping(20, "plan")
    try:
        one(browser, "#query").send_keys("\n")
        until(lambda: all_of(browser, ".skeleton"), "that it searches")
        assert one(browser, "#side-a").get_attribute("aria-busy") == "true"
        until(lambda: "Still searching" in status(browser), "that it takes long")
        one(browser, ".status button").click()
        until(lambda: status(browser) == "Cancelled", "that it ended")
        assert not all_of(browser, ".skeleton") and one(browser, "#side-a").get_attribute("aria-busy") is None
    finally:
        calls.faults.clear()


def test_an_unreachable_service_is_reported(browser, url):
    ask(browser, url)
    browser.execute_cdp_cmd("Network.enable", {})
    offline = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    browser.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": True, **offline})
    try:
        one(browser, "#query").send_keys("\n")
        until(lambda: all_of(browser, ".failed") and "cannot be reached" in one(browser, ".failed").text, "the error")
    finally:
        browser.execute_cdp_cmd("Network.emulateNetworkConditions", {"offline": False, **offline})
        browser.get_log("browser")


STATES = {
    "start": ("", ".start"),
    "results": ("?q=the bridge on the river", ".hit[data-id]"),
    "filters": ("?q=river&is:lang=en&min:row=3", ".hit[data-id]"),
    "empty": ("?q=river&min:row=9999", ".empty"),
    "error": ("?q=river&filter=row", ".failed"),
    "compared": ("?q=river&q2=bridge&compare=1&why=doc-3", "#reason td"),
}


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("state", STATES)
def test_axe_finds_no_barrier_in_any_state_and_theme(browser, url, state, theme):
    axe = pytest.importorskip("axe_playwright_python", reason="it carries axe-core (dev extra)")
    address, selector = STATES[state]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]})
    try:
        browser.get(url + address)
        until(lambda: all_of(browser, selector), state)
        if all_of(browser, ".hit .score"):
            browser.execute_script("document.querySelector('.hit .score').focus(); document.querySelector('.hit .score').click()")
        browser.execute_script((Path(axe.__file__).parent / "axe.min.js").read_text())
        results = browser.execute_async_script("axe.run({resultTypes: ['violations']}).then(arguments[arguments.length - 1])")
        assert [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in results["violations"]] == []
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_the_theme_is_chosen_and_kept(browser, url):
    browser.get(url)
    button = one(browser, "#theme")
    background = "return getComputedStyle(document.body).backgroundColor"
    button.click()
    assert button.text == "Theme: light"
    light = browser.execute_script(background)
    button.click()
    assert browser.execute_script(background) != light
    browser.refresh()
    assert one(browser, "#theme").text == "Theme: dark"
    one(browser, "#theme").click()
    assert one(browser, "#theme").text == "Theme: system"


def test_the_page_fits_the_width_of_a_phone(browser, url):
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True})
    try:
        for address in ("?q=the bridge on the river&is:lang=en", "?q=river&q2=bridge&compare=1"):
            show(browser, url + address)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
            small = [each.text for each in all_of(browser, "button, select") if each.is_displayed() and each.size["height"] < 24]
            assert small == []
        one(browser, ".score").click()
        box = one(browser, ".breakdown").rect
        assert box["x"] >= 0 and box["x"] + box["width"] <= 360
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_page_asks_for_the_token_that_a_service_needs(browser, service, listen, tmp_path: Path):
    (tmp_path / "tokens.yaml").write_text(f"read: [{TOKEN}]\n")
    browser.get(listen(routes(local_service(Path(service[0].root), 1)[0], Access(grants=read_tokens(str(tmp_path / "tokens.yaml"))))))
    box = until(lambda: [each for each in all_of(browser, "#token") if each.is_displayed()], "the token's box")[0]
    box.send_keys(TOKEN, "\n")
    until(lambda: all_of(browser, ".start"), "the start")
    one(browser, "#query").send_keys("river", "\n")
    until(lambda: all_of(browser, ".hit[data-id]"), "results")
    shown = ids(browser)
    reply = TestClient(routes(local_service(Path(service[0].root), 1)[0])).post("/search", json={"query": "river", "k": 10})
    assert shown == [hit["doc_id"] for hit in reply.json()["results"][0]]


def test_image_pages_show_their_matches_as_a_heat_map(browser, listen, tmp_path: Path):
    pytest.importorskip("sentence_transformers", reason="image pages need the extra images")
    axe = pytest.importorskip("axe_playwright_python", reason="it carries axe-core (dev extra)")
    import ray_lir
    from ray_lir.encoder.page_encoder import PageEncoder
    from tests.support.page_checkpoint import pages, write_checkpoint

    encoder = PageEncoder.load(str(write_checkpoint(tmp_path / "colpali")), "cpu")
    encoded = encoder.encode_pages(pages(4))
    encoded.metadata[3]["page"]["thumbnail"] = "javascript:alert(1)"
    titles = [f"Page {number}" for number in range(4)]
    ray_lir.build_index(encoded.embeddings, tmp_path / "index", contract=encoder.contract, titles=titles, metadata=encoded.metadata)
    browser.get_log("browser")
    show(browser, f"{listen(routes(local_service(tmp_path / 'index', 1)[0]))}?q=red chart&engine=exact")
    assert len(ids(browser)) == 4 and len(all_of(browser, ".page img")) == 3  # the fourth is not the data URL of a picture
    assert browser.execute_script(
        "return [...document.querySelectorAll('.page img')].every((each) => each.complete && each.naturalWidth > 0)"
    )
    assert all_of(browser, ".heat rect") and "thumbnail" not in one(browser, ".hit").text
    browser.execute_script("arguments[0].focus()", one(browser, ".word"))
    assert all_of(browser, ".heat rect.on")
    browser.execute_script((Path(axe.__file__).parent / "axe.min.js").read_text())
    results = browser.execute_async_script("axe.run({resultTypes: ['violations']}).then(arguments[arguments.length - 1])")
    assert [(each["id"], [node["html"][:200] for node in each["nodes"]]) for each in results["violations"]] == []
    assert browser.get_log("browser") == []


def test_a_document_is_added_by_hand(browser, listen, tmp_path: Path):
    writing, _ = local_service(make_index(tmp_path, num_docs=40, num_shards=2), 2, writes=WriteOptions(visible_s=0.4))
    (tmp_path / "tokens.yaml").write_text(f"read: [{TOKEN}]\nwrite: [{WRITE_TOKEN}]\n")
    browser.get(listen(routes(writing, Access(grants=read_tokens(str(tmp_path / "tokens.yaml"))), writing.running)))
    element = lambda name: browser.find_element("id", name)  # noqa: E731

    def use(token: str) -> None:
        until(element("token").is_displayed, "the field for the token")
        element("token").clear()
        element("token").send_keys(token)
        browser.find_element("css selector", "#access button").click()
        until(lambda: element("add").is_displayed(), "the form")

    use(TOKEN)
    browser.find_element("css selector", "#add summary").click()
    for name, text in {"add-id": "by/hand", "add-title": "Bridge", "add-text": QUERY, "add-metadata": "[1]"}.items():
        element(name).send_keys(text)
    submit = browser.find_element("css selector", "#add button")
    submit.click()
    until(lambda: "must be a JSON object" in element("added").text, "what is wrong")
    element("add-metadata").clear()
    element("add-metadata").send_keys('{"year": 2020}')
    submit.click()
    until(lambda: "this token may only read; send a write or admin token" in element("added").text, "that the token may only read")
    use(WRITE_TOKEN)
    submit.click()
    until(lambda: "Searches see the document, in version 2" in element("added").text, "that the document is visible")
    element("query").send_keys(QUERY + "\n")
    until(lambda: "by/hand" in element("side-a").text, "the document")
