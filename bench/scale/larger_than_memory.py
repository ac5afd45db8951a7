"""Search of indexes larger than memory: latency, bytes read and page faults in a process limited to a tenth of the index.

    python -m bench.scale.larger_than_memory make --work runs/larger --tokens 12e6 100e6 [--nbits 2]
    python -m bench.scale.larger_than_memory measure --work runs/larger --tokens 12e6 100e6 [--output bench/results/larger_than_memory.json]
    python -m bench.scale.larger_than_memory build --work runs/larger --tokens 12e6

`make` writes indexes with the format's own writers, from made-up codes and residuals. Tokens are drawn around centroids: a document has
four topics, a topic has 48 centroids, and both have lognormal popularity. Documents therefore repeat centroids, and cluster sizes vary.
Residuals are random bytes. Documents have 32 to 224 tokens and 256 characters. Queries are 32 tokens of a document with noise (cosine .96).

`measure` runs each engine in a process of its own, in a control group with a memory limit of a tenth of the index. The page cache of its
files counts; what the process takes before it opens the index (Python and modules) does not.

`build` decodes the tokens of an index that `make` wrote, builds an index of them, and compares with the predictions of `ray-lir plan`.

There are three phases. Cold: before each query, the pages of codes, residuals and scales are dropped from the mapping and from the page
cache. Steady: other queries, and nothing is dropped. Warm: each query again.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

DIM, QUERY_TOKENS, QUERIES, PHASE_QUERIES, K = 128, 32, 60, 30, 10
TOPIC_CENTROIDS = 48
TOPICS_OF_DOCUMENT = (0.5, 0.25, 0.15, 0.1)
SCALES = (0.8, 0.053)
NOISE = 0.3
BLOCK_DOCS = 4096
LEAST_ROOM = 12e9
SCENARIOS = {
    "before": {"residency": "memory", "limited": True, "phases": ("cold",), "queries": 3},
    "disk": {"residency": "disk", "limited": True, "phases": ("cold", "steady", "warm"), "queries": 25},
    "in memory": {"residency": "memory", "limited": False, "phases": ("warm",), "queries": 25},
}
"""before: every array mapped with the system's read-ahead, which was the only way. disk: residency=disk. in memory: without a limit."""


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.scale.larger_than_memory", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=("make", "measure", "build", "search"))
    parser.add_argument("--work", type=Path, default=Path("runs/larger_than_memory"))
    parser.add_argument("--tokens", type=float, nargs="+", default=[12e6, 50e6, 100e6])
    parser.add_argument("--nbits", type=int, default=2)
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS))
    parser.add_argument("--engines", nargs="+", default=["scan", "plaid"])
    parser.add_argument("--queries", type=int, help="queries of each scenario; default: the scenario's own number")
    parser.add_argument("--output", type=Path, default=Path("bench/results/larger_than_memory.json"))
    parser.add_argument("--group", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step == "search":
        _search(options)
        return
    for tokens in map(int, options.tokens):
        index = options.work / f"{tokens // 10**6}M-{options.nbits}"
        if options.step == "make":
            make(index, tokens, options.nbits)
        elif options.step == "build":
            _add(options.output, "builds", ("tokens",), {"tokens": index.name} | _build(index, options.work / "built", options.nbits))
        else:
            _measure(index, options)


def make(index: Path, num_tokens: int, nbits: int) -> None:
    """Write a made-up index and the queries beside it.

    Args:
        index: Folder of the index.
        num_tokens: Number of token vectors.
        nbits: Bits a dimension of a residual.
    """
    from ray_lir.base.config import IndexConfig
    from ray_lir.building.build import TOKENS_PER_SHARD
    from ray_lir.building.clustering import default_num_centroids
    from ray_lir.embeddings.folder import external_contract
    from ray_lir.index.arrays import array_bytes
    from ray_lir.index.manifest import IndexManifest
    from ray_lir.index.versions import version_manifest
    from ray_lir.storage import write_bytes
    from ray_lir.storage.manifest import write_manifest, write_with_digest_name

    needed = num_tokens * (DIM * nbits / 8 + 14)
    free = os.statvfs(index.parent if index.parent.exists() else Path.cwd())
    if free.f_bavail * free.f_frsize - needed < LEAST_ROOM:
        raise SystemExit(f"{index} needs {needed / 1e9:.1f} GB, and {LEAST_ROOM / 1e9:.0f} GB must stay free on the disk")
    start = time.perf_counter()
    rng = np.random.default_rng(0)
    num_centroids = default_num_centroids(num_tokens) // TOPIC_CENTROIDS * TOPIC_CENTROIDS
    codec = _codec(rng, num_centroids, nbits)
    num_shards = -(-num_tokens // TOKENS_PER_SHARD)
    sizes, shards, first = np.zeros(num_centroids, np.int64), [], 0
    for number in range(num_shards):
        entry, found = _write_shard(rng, index, number, first, num_tokens // num_shards, codec)
        sizes += found
        shards.append(entry)
        first += entry.num_docs
    manifest = IndexManifest(
        contract=external_contract(DIM),
        dim=DIM,
        nbits=nbits,
        num_centroids=num_centroids,
        num_docs=first,
        num_tokens=int(sizes.sum()),
        codec=write_with_digest_name(str(index), "codec/codec", ".safetensors", codec.to_bytes()),
        cluster_sizes=write_with_digest_name(str(index), "codec/cluster_sizes", ".npy", array_bytes(sizes)),
        mean_residual_norm=0.6,
        shards=tuple(shards),
        config={"index": IndexConfig().model_dump(mode="json")},
    )
    write_manifest(version_manifest(str(index), 1), manifest)
    write_bytes(str(index / "LATEST"), b"1\n")
    np.save(index.with_suffix(".queries.npy"), _queries(rng, index))
    print(
        f"{index}: {sizes.sum()} tokens, {first} documents, {num_centroids} centroids, {time.perf_counter() - start:.0f} s", file=sys.stderr
    )


def _codec(rng: np.random.Generator, num_centroids: int, nbits: int) -> Any:
    from ray_lir.index.codec import ResidualCodec
    from ray_lir.index.residuals import normalize

    topics = rng.normal(size=(num_centroids // TOPIC_CENTROIDS, DIM)).astype(np.float32)
    centroids = np.repeat(topics, TOPIC_CENTROIDS, axis=0)
    centroids += rng.normal(size=centroids.shape).astype(np.float32)
    ordered = np.sort(rng.normal(size=1 << 16))
    weights = ordered[((np.arange(2**nbits) + 0.5) / 2**nbits * len(ordered)).astype(int)].astype(np.float32)
    return ResidualCodec(normalize(centroids).astype(np.float16), (weights[1:] + weights[:-1]) / 2, weights, token_scale=True)


def _write_shard(rng: np.random.Generator, index: Path, number: int, first: int, num_tokens: int, codec: Any) -> tuple[Any, np.ndarray]:
    """Write a shard block by block, and return its manifest entry and the tokens of each cluster."""
    import pyarrow as pa

    from ray_lir.index import documents
    from ray_lir.index.arrays import write_rows
    from ray_lir.index.manifest import ShardEntry
    from ray_lir.storage.manifest import describe_file

    name = f"shards/shard-{number:05d}"
    folder = index / name
    folder.mkdir(parents=True)
    lengths = rng.integers(32, 225, num_tokens // 100)
    lengths = lengths[: int(np.searchsorted(np.cumsum(lengths), num_tokens)) + 1]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    total, blocks = int(offsets[-1]), range(0, len(lengths), BLOCK_DOCS)
    np.save(folder / "doc_offsets.npy", offsets)
    sizes = np.zeros(codec.num_centroids, np.int64)
    num_topics = codec.num_centroids // TOPIC_CENTROIDS
    of_topics, of_centroids = (_cumulated(np.random.default_rng(1), count) for count in (num_topics, TOPIC_CENTROIDS))

    def codes() -> Iterator[np.ndarray]:
        for start in blocks:
            here = lengths[start : start + BLOCK_DOCS]
            topics = np.searchsorted(of_topics, rng.random((len(here), len(TOPICS_OF_DOCUMENT))))
            column = np.searchsorted(np.cumsum(TOPICS_OF_DOCUMENT[:-1]), rng.random(int(here.sum())))
            centroid = np.searchsorted(of_centroids, rng.random(len(column)))
            found = topics[np.repeat(np.arange(len(here)), here), column] * TOPIC_CENTROIDS + centroid
            np.add(sizes, np.bincount(found, minlength=len(sizes)), out=sizes)
            yield found.astype(codec.code_dtype)

    def rows(make: Callable[[int], np.ndarray]) -> Iterator[np.ndarray]:
        return (make(int(offsets[min(start + BLOCK_DOCS, len(lengths))] - offsets[start])) for start in blocks)

    row_bytes = DIM * codec.nbits // 8
    write_rows(folder / "codes.npy", total, codes())
    write_rows(folder / "residuals.npy", total, rows(lambda n: np.frombuffer(rng.bytes(n * row_bytes), np.uint8).reshape(n, -1)))
    write_rows(folder / "scales.npy", total, rows(lambda n: np.full((n, 2), SCALES, np.float16)))
    tables = []
    for start in blocks:
        ids = [str(first + row) for row in range(start, min(start + BLOCK_DOCS, len(lengths)))]
        tables.append(pa.table({"doc_id": ids, "title": [""] * len(ids), "text": ["x" * 256] * len(ids), "metadata": ["{}"] * len(ids)}))
    documents.write(folder / documents.FILE, tables)
    files = [describe_file(str(index), f"{name}/{path.name}") for path in sorted(folder.iterdir())]
    return ShardEntry(name=name, first_document=first, num_docs=len(lengths), num_tokens=total, files=tuple(files)), sizes


def _cumulated(rng: np.random.Generator, count: int) -> np.ndarray:
    """The cumulated popularity of some items, lognormal with a standard deviation of half an e-fold."""
    weights = np.cumsum(rng.lognormal(sigma=0.5, size=count))
    return weights[:-1] / weights[-1]


def _queries(rng: np.random.Generator, index: Path) -> np.ndarray:
    """Queries [QUERIES, QUERY_TOKENS, DIM] float16: tokens of random documents with noise."""
    from ray_lir.index.residuals import decompress, normalize
    from ray_lir.search.searcher import Searcher

    searcher = Searcher.open(index, residency="disk")
    found = []
    for _ in range(QUERIES):
        shard = searcher.shards[rng.integers(len(searcher.shards))]
        tokens, _ = shard.tokens(np.array([rng.integers(shard.num_docs)]))
        tokens = np.sort(rng.choice(tokens, QUERY_TOKENS, replace=False))
        vectors = normalize(decompress(shard.codes[tokens], shard.residuals[tokens], shard.scales[tokens], searcher.planner.codec))
        found.append(normalize(vectors + NOISE / np.sqrt(DIM) * rng.normal(size=vectors.shape).astype(np.float32)))
    return np.stack(found).astype(np.float16)


def _measure(index: Path, options: argparse.Namespace) -> None:
    """Run each scenario and engine in a process of its own, and add the results to the report."""
    size = sum(path.stat().st_size for path in index.rglob("*") if path.is_file())
    for scenario in options.scenarios:
        for engine in options.engines:
            _drop_files(index)
            limit = size // 10 if SCENARIOS[scenario]["limited"] else None
            with _control_group(limit) as group:
                command = [
                    sys.executable,
                    "-m",
                    __spec__.name,
                    "search",
                    "--work",
                    str(index),
                    "--scenarios",
                    scenario,
                    "--engines",
                    engine,
                ]
                command += ["--group", str(group or ""), *(["--queries", str(options.queries)] if options.queries else [])]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"TMPDIR": str(options.work)})
            row = {"tokens": index.name, "index_bytes": size, "scenario": scenario, "engine": engine}
            row |= json.loads(done.stdout) if done.returncode == 0 else {"failed": f"exit code {done.returncode}"}
            _add(options.output, "rows", ("tokens", "scenario", "engine"), row)


def _add(output: Path, kind: str, key: tuple[str, ...], row: dict[str, Any]) -> None:
    """Add a row to the report, in the place of an earlier one with the same key."""
    from bench.machine import machine

    report = json.loads(output.read_text()) if output.exists() else {"machine": machine(), "rows": [], "builds": []}
    report[kind] = [each for each in report.get(kind, []) if any(each[name] != row[name] for name in key)] + [row]
    print(json.dumps(row), file=sys.stderr)
    output.write_text(json.dumps(report, indent=1) + "\n")
    output.with_suffix(".md").write_text(table(report))


def _build(index: Path, folder: Path, nbits: int) -> dict[str, Any]:
    """Decode the tokens of a made-up index, build an index of them, and return the processor time and peak memory of both kinds."""
    from ray_lir import storage
    from ray_lir.base.parallel import num_cores
    from ray_lir.embeddings.folder import external_contract, publish_part
    from ray_lir.embeddings.manifest import EmbeddingsManifest
    from ray_lir.embeddings.parquet import Block
    from ray_lir.embeddings.token_embeddings import TokenEmbeddings
    from ray_lir.index.residuals import decompress, normalize
    from ray_lir.planning.sizes import Collection, build_memory, predict_bytes, resident_memory
    from ray_lir.planning.workload import build_seconds
    from ray_lir.search.searcher import Searcher
    from ray_lir.storage.manifest import MANIFEST, write_manifest

    searcher = Searcher.open(index, residency="disk")
    contract, parts = external_contract(DIM), []
    for shard in searcher.shards:
        for first in range(0, shard.num_docs, BLOCK_DOCS // 4):
            rows = np.arange(first, min(first + BLOCK_DOCS // 4, shard.num_docs))
            tokens, offsets = shard.tokens(rows)
            vectors = normalize(decompress(shard.codes[tokens], shard.residuals[tokens], shard.scales[tokens], searcher.planner.codec))
            texts = shard.documents.slice(first, len(rows))
            embeddings = TokenEmbeddings(vectors.astype(np.float16), offsets, texts.column("doc_id").to_pylist())
            parts.append(publish_part(str(folder / "embeddings"), len(parts), [Block(embeddings, texts)], contract.fingerprint))
    counts = {"num_docs": sum(part.num_docs for part in parts), "num_tokens": sum(part.num_tokens for part in parts)}
    manifest = EmbeddingsManifest(contract=contract, dim=DIM, parts=tuple(parts), **counts)
    write_manifest(storage.join(str(folder / "embeddings"), MANIFEST), manifest)
    command = [sys.executable, "-m", "jobs.build_index", "--embeddings", str(folder / "embeddings"), "--output", str(folder / "index")]
    command += ["--where", "here", "--codec.nbits", str(nbits)]
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    measured = sum(path.stat().st_size for path in (folder / "index").rglob("*") if path.is_file())
    subprocess.run(["rm", "-rf", str(folder)], check=True)
    if status:
        raise SystemExit(f"the build ended with status {status}")
    text_bytes = sum(shard.documents.nbytes for shard in searcher.shards) / counts["num_docs"]
    of = Collection.of(counts["num_docs"], counts["num_tokens"] / counts["num_docs"], DIM, nbits, None, text_bytes)
    return {
        "seconds": round(seconds, 1),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 1),
        "predicted_cpu_seconds": round(sum(build_seconds(of).values()), 1),
        "peak_mb": round(usage.ru_maxrss / 1024),
        "predicted_peak_mb": round(build_memory(of, max(part.num_tokens for part in parts), num_cores()) / 2**20),
        "bytes": measured,
        "predicted_bytes": predict_bytes(of).index,
        "predicted_resident_bytes": resident_memory(of),
    }


@contextmanager
def _control_group(limit: int | None) -> Iterator[Path | None]:
    """Yield a new memory control group inside the one of this process; it is removed afterwards.

    Args:
        limit: Its limit in bytes. None: no group.
    """
    if limit is None:
        yield None
        return
    membership = Path("/proc/self/cgroup").read_text()
    one = re.search(r"^\d+:memory:(.*)$", membership, re.M)
    two = re.search(r"^0::(.*)$", membership, re.M)
    if not (one or two):
        raise SystemExit("this system has no memory control groups")
    root = Path("/sys/fs/cgroup/memory" if one else "/sys/fs/cgroup")
    group = root / (one or two)[1].lstrip("/") / f"larger-than-memory-{os.getpid()}"  # type: ignore[index]
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if one else "memory.max")).write_text(str(limit))
        yield group
    finally:
        for _ in range(50):
            try:
                group.rmdir()
                break
            except OSError:  # its last process is still ending
                time.sleep(0.1)


def _drop_files(index: Path) -> None:
    """Drop the pages of an index from the page cache."""
    for path in index.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _search(options: argparse.Namespace) -> None:
    """Search in this process, and print the results."""
    from ray_lir.embeddings.token_embeddings import TokenEmbeddings
    from ray_lir.search.searcher import Searcher

    index, [scenario], [engine] = options.work, options.scenarios, options.engines
    settings = SCENARIOS[scenario]
    limit = _enter(Path(options.group)) if options.group else None
    start = time.perf_counter()
    searcher = Searcher.open(index, residency=settings["residency"])
    opened = time.perf_counter()
    vectors = np.load(index.with_suffix(".queries.npy"))
    if not settings["limited"]:
        for path in index.rglob("*.npy"):
            path.read_bytes()
        searcher = Searcher.open(index, residency=settings["residency"])  # maps the pages that are cached now
    found: dict[str, Any] = {}

    def run(number: int) -> tuple[float, float, int, int]:
        before = _counts()
        started = time.perf_counter()
        [top] = searcher.search(TokenEmbeddings.of([vectors[number]]), K, engine)
        found["params"] = top.params.model_dump() if top.params else {}
        took = 1e3 * (time.perf_counter() - started)
        cpu, read, faults = (after - each for after, each in zip(_counts(), before, strict=True))
        return took, 1e3 * cpu, read, faults

    first, *_ = run(QUERIES - 1)
    found["first_query_ms"] = round(first)
    for phase in settings["phases"]:
        rows = []
        for number in range(options.queries or settings["queries"]):
            query = number + (PHASE_QUERIES if phase == "steady" else 0)
            if phase == "cold":
                _drop(searcher, index)
            if phase == "warm":
                run(query)
            rows.append(run(query))
        found[phase] = _summary(rows)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    found |= {
        "open_seconds": round(opened - start, 2),
        "limit_bytes": limit,
        "peak_rss_bytes": 1024 * int(status["VmHWM"].split()[0]),
        "private_bytes": 1024 * int(status["RssAnon"].split()[0]),
    }
    print(json.dumps(found))


def _enter(group: Path) -> int:
    """Move this process into its control group, which does not count what it has taken so far. Return the limit in bytes."""
    (group / "cgroup.procs").write_text(str(os.getpid()))
    return int(next(group / name for name in ("memory.limit_in_bytes", "memory.max") if (group / name).exists()).read_text())


def _counts() -> tuple[float, int, int]:
    """Processor seconds, bytes read from the disk, and major page faults of this process."""
    read = next(int(line.split()[1]) for line in Path("/proc/self/io").read_text().splitlines() if line.startswith("read_bytes"))
    return time.process_time(), read, resource.getrusage(resource.RUSAGE_SELF).ru_majflt


def _drop(searcher: Any, index: Path) -> None:
    """Drop the pages of token vectors from this process and from the page cache."""
    from ray_lir.base import paging

    for shard in searcher.shards:
        for array in shard.vector_arrays:
            paging.advise(array, 4)  # MADV_DONTNEED
    for path in index.rglob("*.npy"):
        if path.stem in ("codes", "residuals", "scales"):
            with open(path, "rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _summary(rows: list[tuple[float, float, int, int]]) -> dict[str, float]:
    took, cpu, read, faults = (np.array(column) for column in zip(*rows, strict=True))
    return {
        "p10_ms": round(float(np.percentile(took, 10)), 1),
        "p50_ms": round(float(np.percentile(took, 50)), 1),
        "p95_ms": round(float(np.percentile(took, 95)), 1),
        "cpu_ms": round(float(np.median(cpu)), 1),
        "read_mb": round(float(read.mean()) / 1e6, 2),
        "major_faults": round(float(faults.mean()), 1),
    }


def table(report: dict[str, Any]) -> str:
    """Return the report as Markdown."""
    lines = [
        "| index | scenario | engine | limit, MB | phase | p10, ms | p50 | p95 | CPU, ms | read, MB | major faults |",
        "|---|" + "---|" * 10,
    ]
    for row in report["rows"]:
        limit = "none" if not row.get("limit_bytes") else f"{row['limit_bytes'] / 1e6:.0f}"
        for phase in ("cold", "steady", "warm"):
            if phase in row:
                cells = [row[phase].get(name, "") for name in ("p10_ms", "p50_ms", "p95_ms", "cpu_ms", "read_mb", "major_faults")]
                lines.append("| " + " | ".join(map(str, [row["tokens"], row["scenario"], row["engine"], limit, phase, *cells])) + " |")
        if "failed" in row:
            lines.append(f"| {row['tokens']} | {row['scenario']} | {row['engine']} | | {row['failed']} | | | | | | |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
