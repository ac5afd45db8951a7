"""Jobs on an object store with faults: requests, failures, retries, and what a concurrent reader sees.

    python -m bench.faults.s3 [--shares 0 0.02 0.05 0.1]

Corpus, embeddings, index and an update are on moto's S3 server behind a proxy. The proxy gives this fraction of requests a
fault of a random kind: an error, a late answer, or half of one. Meanwhile a reader requests published names (manifests and
LATEST) without the proxy, and compares every listed file with its digest. Jobs run in this process with the code that runs on Ray.
"""

import argparse
import hashlib
import json
import logging
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import boto3
import pytest

from bench.faults.small_jobs import NUM_CENTROIDS, make_inputs
from bench.machine import machine
from jobs.update import UpdateJob
from jobs.update import run as update
from ray_lir import storage
from ray_lir.base.config import ClusteringConfig, EncoderConfig, IndexConfig
from ray_lir.building.build import build_index
from ray_lir.encoder.corpus_encoder import encode_corpus
from tests.support.faulty_proxy import FAULTS, Faults, faulty_proxy
from tests.support.s3_servers import as_endpoint, make_bucket, moto_server

OUTPUT = Path("bench/results/s3_faults.json")
NUM_DOCS, NUM_QUERIES = 1200, 50
DELAY_S = 0.5
INDEX = IndexConfig(num_shards=4, clustering=ClusteringConfig(num_centroids=NUM_CENTROIDS))


class Reader:
    """Reads published manifests repeatedly, and records incomplete files.

    Attributes:
        looks: Number of times that all names were requested.
        manifests: Published manifests found, each checked once.
        files: Listed files that were compared with their digests.
        partial: Names of missing, truncated or changed files.
    """

    def __init__(self, endpoint: str, bucket: str):
        self._s3 = boto3.client("s3", endpoint_url=endpoint, aws_access_key_id="reader", aws_secret_access_key="reader")
        self._bucket = bucket.removeprefix("s3://")
        self._seen: set[str] = set()
        self.looks = self.manifests = self.files = 0
        self.partial: list[str] = []

    def watch(self, until: Event) -> None:
        """Look repeatedly until the event is set, and once more."""
        last = False
        while not last:
            last = until.is_set()  # look once more after the jobs have ended
            self.look()
            time.sleep(0.02)

    def look(self) -> None:
        """Check every newly published manifest and its files."""
        self.looks += 1
        for root, pattern in (("embeddings", "embeddings/manifest.json"), ("index", "index/versions/")):
            for key in self._keys(pattern):
                if key.endswith("manifest.json") and key not in self._seen:
                    self._seen.add(key)
                    self.manifests += 1
                    self._check(root, key)
        if self._keys("index/LATEST"):
            number = self._get("index/LATEST").decode().strip()
            if not self._keys(f"index/versions/{number}/manifest.json"):
                self.partial.append(f"LATEST says {number}")

    def _check(self, root: str, key: str) -> None:
        try:
            manifest = json.loads(self._get(key))
        except ValueError:
            self.partial.append(key)
            return
        for name, sha256 in listed(manifest):
            self.files += 1
            found = self._keys(f"{root}/{name}")
            if not found or hashlib.sha256(self._get(f"{root}/{name}")).hexdigest() != sha256:
                self.partial.append(f"{root}/{name}")

    def _keys(self, prefix: str) -> list[str]:
        return [each["Key"] for each in self._s3.list_objects_v2(Bucket=self._bucket, Prefix=prefix).get("Contents", [])]

    def _get(self, key: str) -> bytes:
        return self._s3.get_object(Bucket=self._bucket, Key=key)["Body"].read()


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.faults.s3", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.02, 0.05, 0.1])
    parser.add_argument("--work", type=Path, default=Path("runs/s3_faults"))
    options = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    options.work.mkdir(parents=True, exist_ok=True)
    make_inputs(options.work.resolve(), NUM_DOCS, NUM_QUERIES)
    report: dict[str, Any] = {"machine": machine(), "num_docs": NUM_DOCS, "delay_s": DELAY_S, "runs": []}
    digests = []
    for share in options.shares:
        measured, digest = measure(options.work.resolve(), share)
        digests.append(digest)
        report["runs"].append(measured | {"equal": digest == digests[0]})
        print(json.dumps(report["runs"][-1]), flush=True)
        OUTPUT.write_text(json.dumps(report, indent=1) + "\n")
        OUTPUT.with_suffix(".md").write_text(table(report))
    print(table(report), file=sys.stderr)
    if any(run["partial"] or not run["equal"] for run in report["runs"]):
        sys.exit("a file was lost or incomplete")


def measure(made: Path, share: float) -> tuple[dict[str, Any], str]:
    """Return the counts of one run, and a digest of all published files."""
    faults, ended = Faults(delay_s=DELAY_S, seed=int(1000 * share)), Event()
    with moto_server() as server, faulty_proxy(server, faults) as url, pytest.MonkeyPatch.context() as patch, as_endpoint(url, patch):
        bucket = make_bucket()
        reader = Reader(server, bucket)
        with ThreadPoolExecutor(1) as thread:
            watching = thread.submit(reader.watch, ended)
            start = time.monotonic()
            try:
                faults.share = share
                run(made, bucket)
            finally:
                faults.share = 0.0
                ended.set()
            seconds = time.monotonic() - start
            watching.result()
        counts = faults.counts()
        seen = {"looks": reader.looks, "manifests": reader.manifests, "files": reader.files, "partial": reader.partial}
        return {"share": share, "seconds": round(seconds, 1), **counts, **seen}, published(bucket)


def run(made: Path, bucket: str) -> None:
    """Encode, build and update on the object store."""
    encoder = EncoderConfig(checkpoint=str(made / "checkpoint"))
    for name in ("collection/corpus.jsonl", "new.jsonl", "gone.txt"):
        storage.write_bytes(f"{bucket}/{name}", (made / name).read_bytes())
    encode_corpus(f"{bucket}/collection/corpus.jsonl", f"{bucket}/embeddings", encoder, docs_per_part=32)
    build_index(f"{bucket}/embeddings", f"{bucket}/index", INDEX)
    change = {"add": f"{bucket}/new.jsonl", "delete": f"{bucket}/gone.txt", "docs_per_part": 32}
    update(UpdateJob(index=f"{bucket}/index", where="here", **change))


def published(bucket: str) -> str:
    """Return the sha256 of all file names and manifests, and check that only listed files exist."""
    fs, root = storage.filesystem(bucket)
    names = sorted(name.removeprefix(root) for name in fs.find(root))
    manifests = [storage.read_bytes(f"{bucket}{name}") for name in names if name.endswith("manifest.json")]
    return hashlib.sha256(b"".join([json.dumps(names).encode(), *manifests])).hexdigest()


def listed(value: Any) -> Iterator[tuple[str, str]]:
    """Return names and digests of the files in a manifest."""
    if isinstance(value, dict) and {"name", "size", "sha256"} <= value.keys():
        yield value["name"], value["sha256"]
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from listed(each)


def table(report: dict[str, Any]) -> str:
    """Return the report as a Markdown table."""
    lines = [
        f"encode, build_index and update of {report['num_docs']:,} documents of synthetic text on moto's S3 server; "
        f"{report['machine']['cpu']}, {report['machine']['cores']} cores. A late answer waits {report['delay_s']:g} s. "
        '"Retried" counts requests that repeat a failed request.',
        "",
        "| fraction of requests with a fault | requests | " + " | ".join(FAULTS) + " | retried | files lost or changed "
        "| checks by a reader | manifests and files compared | incomplete files visible | seconds |",
        "|---|---|" + "---|" * (len(FAULTS) + 6),
    ]
    for run in report["runs"]:
        kinds = " | ".join(str(run[kind]) for kind in FAULTS)
        lines.append(
            f"| {run['share']:.0%} | {run['requests']:,} | {kinds} | {run['repeated']} | {'none' if run['equal'] else 'SOME'} "
            f"| {run['looks']} | {run['manifests']}, {run['files']} | {len(run['partial']) or 'none'} | {run['seconds']:g} |"
        )
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
