"""Writes under faults and load: SIGKILL at random under a steady load, and the time until a write is visible at several rates.

    python -m bench.faults.writes [--kills 100] [--pause_s 5] [--seconds 30] [--only kills|rates|writer]

Two runs kill processes: one kills random processes of a service on Ray, and one kills a writer alone. That writer is killed a random time
after its start, so that every step of publishing and compacting is interrupted.

The index has 400 documents and a tiny encoder, so Ray's and the system's part of the times dominates. Every write carries an idempotency
key and is repeated with it until it is acknowledged.

* No acknowledged write is lost: at the end the index holds exactly what the acknowledged writes leave.
* None is applied twice: each version is replayed from the log. It added and deleted what the batches between its log position and that of
  the version before say.
* Readers never see half of a batch: each batch adds or deletes a pair of documents, and every search for a pair finds both or neither.
* The final index answers like one that is built anew from the same documents with the same codec.
"""

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import uuid
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import ray
import torch
from ray import serve

from bench.machine import machine
from ray_lir.base.config import IndexConfig
from ray_lir.base.errors import Conflict
from ray_lir.building.build import build_index
from ray_lir.encoder.encoder import Encoder
from ray_lir.index.manifest import Change, IndexManifest, change_in
from ray_lir.index.versions import latest_version, read_version
from ray_lir.search.searcher import Searcher
from ray_lir.storage.manifest import MANIFEST, read_manifest
from ray_lir.storage.write_log import LoggedWrite, WriteLog, read_batches
from serving.app import build
from serving.workers.writer import MaintenanceOptions, Writer, last_operations
from tests.fixtures.tiny import WORDS
from tests.support.served_index import QUERIES, make_index, serve_started

OUTPUT = Path("bench/results/writes.json")
PARTS = ("Writer", "Gateway", "QueryEncoder", "ShardGroup-0")
TOKEN = "admin-0123456789abcdef"
CLIENTS, PAIRS = 4, 40
"""Clients that write, and pairs of documents of each client."""
RATES = (1, 10, 100)
RECOVERY_S = 30.0
ENGINES = ("exact", "scan", "plaid", "warp")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.faults.writes", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--pause_s", type=float, default=5.0, help="mean seconds between two kills")
    parser.add_argument("--seconds", type=float, default=30.0, help="seconds of each rate")
    parser.add_argument("--most_s", type=float, default=3600.0, help="longest time of the kills of a service, in seconds")
    parser.add_argument("--only", choices=["kills", "rates", "writer"])
    options = parser.parse_args()
    report = json.loads(OUTPUT.read_text()) if OUTPUT.exists() else {}
    report |= {"machine": machine()}
    if options.only in (None, "writer"):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
            report["writer"] = _killed_writers(Path(folder), options.kills)
    if options.only != "writer":
        _measure_service(options, report)
    report["load_average"] = round(os.getloadavg()[1], 1)  # of the last five minutes, the benchmark's own processes included
    OUTPUT.write_text(json.dumps(report, indent=1) + "\n")
    OUTPUT.with_suffix(".md").write_text(table(report))
    print(table(report), file=sys.stderr)


def _measure_service(options: argparse.Namespace, report: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False)
        index = str(make_index(Path(folder), num_docs=400, num_shards=1))
        (Path(folder) / "tokens.yaml").write_text(f"admin: [{TOKEN}]\n")
        with serve_started() as url:
            arguments = {
                "index": index,
                "tokens": f"{folder}/tokens.yaml",
                "writes": True,
                "num_groups": 1,
                "encoder_cpus": 0.1,
                "max_requests": 256,
            }
            serve.run(build(arguments))
            if options.only != "kills":
                report["rates"] = asyncio.run(_rates(url, options.seconds))
                print(json.dumps(report["rates"]), flush=True)
            if options.only != "rates":
                report["kills"] = asyncio.run(_under_kills(url, Path(index), options.kills, options.pause_s, options.most_s))
                report["kills"] |= _compared(Path(index), Path(folder))
                print(json.dumps(report["kills"]), flush=True)


def _killed_writers(folder: Path, kills: int) -> dict[str, Any]:
    """Append writes while a writer publishes and compacts; kill it and start the next one."""
    torch.set_num_threads(1)  # a forked process must not need the threads of this one
    index = make_index(folder, num_docs=400, num_shards=1)
    log = WriteLog(str(index), lambda: 0)
    writer = Writer(str(index), None, MaintenanceOptions(max_deltas=4, keep_versions=10**6))
    rng, state, appended = random.Random(1), dict[str, str](), 0

    def append() -> None:
        nonlocal appended
        body, ids, text = _pair(rng, "writer")
        documents = tuple({"_id": each["_id"], "title": "", "text": text, "metadata": {}} for each in body.get("documents", ()))
        log.append([LoggedWrite(body_digest="", answer={}, delete=tuple(body.get("delete", ())), documents=documents)])
        state.update(dict.fromkeys(ids, text))
        appended += 1

    for _ in range(kills):
        child = _forked(writer, until_published=None)
        end = time.monotonic() + rng.uniform(0.02, 2.5)
        while time.monotonic() < end:
            append()
            time.sleep(0.05)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    os.waitpid(_forked(writer, until_published=log.last), 0)
    live = _live(Searcher.open(str(index)))
    expected = {doc_id: text for doc_id, text in state.items() if text}
    written = {doc_id: text for doc_id, text in live.items() if doc_id.startswith("client-")}
    return {
        "kills": {"writer alone": kills},
        "acknowledged_writes": appended,
        "versions": latest_version(str(index)) - 1,
        "compactions": sum(_change(index, number).kind == "compact" for number in range(2, latest_version(str(index)) + 1)),
        "lost": sum(written.get(doc_id) != text for doc_id, text in expected.items()),
        "not_deleted": len(set(written) - set(expected)),
        "replayed_versions": _replayed(index),
        **_compared(index, folder),
    }


def _forked(writer: Writer, until_published: int | None) -> int:
    """The process of a writer that publishes and compacts, until it has published a position, or is killed."""
    child = os.fork()
    if child:
        return child
    while until_published is None or read_version(writer.root).log_position < until_published:
        with suppress(Conflict):
            writer._publish()
            writer._maintain(())
        time.sleep(0.01)
    os._exit(0)


def _change(index: Path, number: int) -> Change:
    return change_in(read_version(str(index), number))


def _client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=20, limits=httpx.Limits(max_connections=300)
    )


async def _rates(url: str, seconds: float) -> dict[str, Any]:
    async with _client(url) as client:
        await _until_ready(client)
        found = {"0": {"search_ms": await _searching(client, seconds)}}
        for rate in RATES:
            searching = asyncio.create_task(_searching(client, seconds))
            found[str(rate)] = await _writing(client, rate, seconds) | {"search_ms": await searching}
        return found


async def _searching(client: httpx.AsyncClient, seconds: float) -> dict[str, float]:
    """Median and 95th percentile of a client that searches five times a second, in milliseconds."""
    took, end = [], time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.perf_counter()
        reply = await client.post("/search", json={"query": random.choice(QUERIES), "k": 10})
        reply.raise_for_status()
        took.append(1000 * (time.perf_counter() - start))
        await asyncio.sleep(0.2)
    return _percentiles(took)


async def _writing(client: httpx.AsyncClient, rate: int, seconds: float) -> dict[str, Any]:
    """Put documents at a rate, each in a request of its own, and wait for the time at which searches see it."""
    waiting: dict[int, list[float]] = {}
    visible: list[float] = []
    acknowledged: list[float] = []
    refused = 0
    running = True

    async def watch() -> None:
        while running or waiting:
            position = (await client.get("/index")).json()["writes"]["log_position"]
            now = time.perf_counter()
            for known in [each for each in waiting if each <= position]:
                visible.extend(now - answered for answered in waiting.pop(known))
            await asyncio.sleep(0.05)

    async def put(number: int) -> None:
        nonlocal refused
        start = time.perf_counter()
        reply = await client.put(f"/documents/rate-{rate}-{number}", json={"text": " ".join(random.choices(WORDS, k=20))})
        if reply.status_code != 202:
            refused += 1
            return
        acknowledged.append(1000 * (time.perf_counter() - start))
        waiting.setdefault(reply.json()["position"], []).append(time.perf_counter())

    watching = asyncio.create_task(watch())
    began = time.perf_counter()
    tasks = []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(0.0, began + number / rate - time.perf_counter()))
        tasks.append(asyncio.create_task(put(number)))
    await asyncio.gather(*tasks)
    running = False
    await watching
    return {"writes": len(visible), "refused": refused, "answer_ms": _percentiles(acknowledged), "visible_s": _percentiles(visible)}


def _percentiles(values: list[float]) -> dict[str, float]:
    return {f"p{percent}": round(float(np.percentile(values, percent)), 2) for percent in (50, 95)} if values else {}


async def _under_kills(url: str, index: Path, kills: int, pause_s: float, most_s: float) -> dict[str, Any]:
    archive = index.parent / "archive"
    archive.mkdir()
    state: dict[str, str] = {}
    counts: Counter[str] = Counter()
    keys: list[tuple[dict[str, Any], str, dict[str, Any]]] = []
    stop = asyncio.Event()
    async with _client(url) as client:
        await _until_ready(client)
        before = (await client.get("/index")).json()
        tasks = [asyncio.create_task(_writer(client, number, state, keys, counts, stop)) for number in range(CLIENTS)]
        tasks += [asyncio.create_task(_reader(client, counts, stop)), asyncio.create_task(_archiver(index, archive, stop))]
        killed = await _kill(client, kills, pause_s, most_s)
        stop.set()
        await asyncio.gather(*tasks)
        await _until_ready(client)
        last = max(answer["position"] for _, _, answer in keys)
        while (await _facts(client))["writes"]["log_position"] < last:
            await asyncio.sleep(0.2)
        repeated = [await _acknowledged(client, body, key, Counter()) == answer for body, key, answer in keys[-300:]]
        after = await _facts(client)
    _archive(index, archive)
    searcher = Searcher.open(str(index))
    live = _live(searcher)
    expected = {doc_id: text for doc_id, text in state.items() if text}
    written = {doc_id: text for doc_id, text in live.items() if doc_id.startswith("client-")}
    return {
        "kills": killed,
        "acknowledged_writes": len(keys),
        "versions": after["version"] - before["version"],
        "lost": sum(written.get(doc_id) != text for doc_id, text in expected.items()),
        "not_deleted": len(set(written) - set(expected)),
        "replayed_versions": _replayed(archive),
        "repeated_requests_with_the_first_answer": f"{sum(repeated)} of {len(repeated)}",
        "unpublished_at_end": after["writes"]["unpublished"],
        **{name: counts[name] for name in ("retries", "searches", "failed_searches", "half_visible")},
    }


async def _writer(
    client: httpx.AsyncClient, number: int, state: dict[str, str], keys: list[Any], counts: Counter[str], stop: asyncio.Event
) -> None:
    """Add, replace and delete pairs of documents, each pair by one request, as fast as five requests a second."""
    rng = random.Random(number)
    while not stop.is_set():
        body, ids, text = _pair(rng, str(number))
        key = uuid.uuid4().hex
        answer = await _acknowledged(client, body, key, counts)
        keys.append((body, key, answer))
        state.update(dict.fromkeys(ids, text))
        await asyncio.sleep(0.2)


def _pair(rng: random.Random, name: str) -> tuple[dict[str, Any], list[str], str]:
    """A request that adds, replaces or deletes a pair of documents, their ids, and their text; empty if they are deleted."""
    stem = f"client-{name}-{rng.randrange(PAIRS)}"
    ids = [f"{stem}-a", f"{stem}-b"]
    text = "" if rng.random() < 0.3 else " ".join(rng.choices(WORDS, k=12))
    return ({"documents": [{"_id": doc_id, "text": text} for doc_id in ids]} if text else {"delete": ids}), ids, text


async def _acknowledged(client: httpx.AsyncClient, body: dict[str, Any], key: str, counts: Counter[str]) -> dict[str, Any]:
    while True:
        try:
            reply = await client.post("/documents", json=body, headers={"Idempotency-Key": key})
            if reply.status_code == 202:
                return reply.json()
            if reply.status_code not in (429, 500, 502, 503, 504):
                raise RuntimeError(reply.text)
        except httpx.HTTPError:
            pass
        counts["retries"] += 1
        await asyncio.sleep(0.2)


async def _reader(client: httpx.AsyncClient, counts: Counter[str], stop: asyncio.Event) -> None:
    rng = random.Random(99)
    while not stop.is_set():
        stem = f"client-{rng.randrange(CLIENTS)}-{rng.randrange(PAIRS)}"
        body = {
            "query": QUERIES[0],
            "k": 2,
            "engine": "exact",
            "filters": {"ids": {"include": [f"{stem}-a", f"{stem}-b"]}},
            "deadline_ms": 5000,
        }
        try:
            reply = await client.post("/search", json=body)
            if reply.status_code == 200:
                counts["searches"] += 1
                counts["half_visible"] += len(reply.json()["results"][0]) == 1
            else:
                counts["failed_searches"] += 1
        except httpx.HTTPError:
            counts["failed_searches"] += 1
        await asyncio.sleep(0.05)


async def _archiver(index: Path, archive: Path, stop: asyncio.Event) -> None:
    while not stop.is_set():
        await asyncio.to_thread(_archive, index, archive)
        await asyncio.sleep(5)


def _archive(index: Path, archive: Path) -> None:
    """Keep the batches of the log and the manifests, which the service removes after some minutes."""
    for file in [*index.glob("writes/*.json"), *index.glob(f"versions/*/{MANIFEST}")]:
        copy = archive / file.relative_to(index)
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


async def _kill(client: httpx.AsyncClient, kills: int, pause_s: float, most_s: float) -> dict[str, int]:
    """SIGKILL processes of random parts that are running, for at most `most_s` seconds; return how many of each."""
    rng, killed, end = random.Random(1), Counter[str](), time.monotonic() + most_s
    while sum(killed.values()) < kills and time.monotonic() < end:
        await asyncio.sleep(pause_s * rng.uniform(0.5, 1.5))
        part = rng.choice(PARTS)
        actors = await asyncio.to_thread(lambda: list(ray._private.state.actors().values()))
        pids = [each["Pid"] for each in actors if f"#{part}#" in each["Name"] and each["State"] == "ALIVE"]
        if pids:
            os.kill(pids[0], signal.SIGKILL)
            killed[part] += 1
            print(f"killed {sum(killed.values())} of {kills}: {part}", file=sys.stderr, flush=True)
            await _until_published(client)
    return dict(killed)


async def _until_published(client: httpx.AsyncClient) -> None:
    """Wait until the service has published more writes, so that kills also meet a service that publishes; at most RECOVERY_S."""
    with suppress(TimeoutError):
        async with asyncio.timeout(RECOVERY_S):
            before = (await _facts(client))["writes"]["log_position"]
            while (await _facts(client))["writes"]["log_position"] <= before:
                await asyncio.sleep(0.2)


async def _until_ready(client: httpx.AsyncClient) -> None:
    while True:
        try:
            if (await client.get("/health")).status_code == 200 and (await client.get("/index")).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        await asyncio.sleep(0.5)


async def _facts(client: httpx.AsyncClient) -> dict[str, Any]:
    while True:
        try:
            reply = await client.get("/index")
            if reply.status_code == 200:
                return reply.json()
        except httpx.HTTPError:
            pass
        await asyncio.sleep(0.2)


def _live(searcher: Searcher) -> dict[str, str]:
    """The text of each live document, in document order."""
    numbers = np.concatenate([shard.first_document + shard.found_documents for shard in searcher.shards])
    return {each["doc_id"]: each["text"] for each in searcher.documents(numbers)}


def _replayed(archive: Path) -> str:
    """How many versions hold exactly the writes between the log position of the version before and their own."""
    manifests = {int(file.parent.name): read_manifest(str(file), IndexManifest, "") for file in archive.glob(f"versions/*/{MANIFEST}")}
    right = total = 0
    for number, manifest in sorted(manifests.items()):
        before, change = manifests.get(number - 1), manifest.change
        if before is None or change is None or change.kind != "update":
            continue
        total += 1
        position, batches = read_batches(str(archive), before.log_position, 1)
        while position < manifest.log_position:
            position, more = read_batches(str(archive), position, 1)
            batches += more
        operations = last_operations(batches)
        added = sum(row is not None for row in operations.values())
        right += change.num_added == added and change.num_deleted + change.num_unknown == len(operations) - added
    return f"{right} of {total}"


def _compared(index: Path, folder: Path) -> dict[str, Any]:
    """Whether the index answers like one that is built anew from its live documents with its codec."""
    searcher = Searcher.open(str(index))
    encoder = Encoder.for_contract(searcher.manifest.contract)
    numbers = np.concatenate([shard.first_document + shard.found_documents for shard in searcher.shards])
    rows = searcher.documents(numbers)
    texts = [f"{row['title']} {row['text']}".strip() for row in rows]
    embedded = encoder.encode_documents(texts, [row["doc_id"] for row in rows])
    build_index(
        embedded,
        str(folder / "fresh"),
        IndexConfig(codec_from=str(index)),
        contract=encoder.contract,
        texts=[row["text"] for row in rows],
        titles=[row["title"] for row in rows],
    )
    fresh = Searcher.open(str(folder / "fresh"))
    queries = encoder.encode_queries(QUERIES)
    equal = {}
    for engine in ENGINES:
        found = [
            [list(zip(each.doc_ids(top.documents), top.scores.tolist(), strict=True)) for top in each.search(queries, 10, engine)]
            for each in (searcher, fresh)
        ]
        equal[engine] = found[0] == found[1]
    return {"documents": len(rows), "answers_equal_a_fresh_index": equal}


def table(report: dict[str, Any]) -> str:
    cpu = report["machine"]["cpu"]
    lines = [f"400 documents, a tiny encoder, one shard group; {report['machine']['cores']} cores ({cpu}), shared with other work"]
    lines[0] += f" (load average {report['load_average']})." if "load_average" in report else "."
    lines.append("")
    if rates := report.get("rates"):
        lines += [
            "| documents a second, one a request | answered, p50 / p95 ms | visible, p50 / p95 s | search meanwhile, p50 / p95 ms |",
            "|---|---|---|---|",
        ]
        for rate, found in rates.items():
            cells = [
                " / ".join(map(str, found[name].values())) if name in found else "" for name in ("answer_ms", "visible_s", "search_ms")
            ]
            lines.append(f"| {rate} | {' | '.join(cells)} |")
        lines.append("")
    for kills in (report[name] for name in ("kills", "writer") if name in report):
        total = sum(kills["kills"].values())
        parts = ", ".join(f"{part} {number}" for part, number in sorted(kills["kills"].items()))
        lines += [f"{total} times SIGKILL under load ({parts}):", "", "| measured | value |", "|---|---|"]
        for name, value in kills.items():
            if name != "kills":
                shown: Any = ", ".join(each for each, same in value.items() if same) if isinstance(value, dict) else value
                lines.append(f"| {name.replace('_', ' ')} | {shown} |")
        lines.append("")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
