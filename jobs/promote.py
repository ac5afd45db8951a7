"""Makes a version of an index answer all requests, after measuring that it is as good as the current one."""

import gzip
import hashlib
import json
import logging
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Self

from pydantic import AliasChoices, Field, model_validator

from ray_lir import storage
from ray_lir.api.search import MAX_QUERY_CHARACTERS
from ray_lir.base.config import canonical_json, digest
from ray_lir.base.errors import ConfigError, Overloaded, RayLirError
from ray_lir.corpus.datasets import Dataset, has_queries_as_documents, load_dataset
from ray_lir.evaluation import metrics
from ray_lir.evaluation.promotion import (
    DEPTH,
    Check,
    GateLimits,
    check_documents,
    check_encoder,
    check_measure,
    check_overlap,
)
from ray_lir.index.versions import read_version
from ray_lir.storage.manifest import manifest_digest

from .cli import main, readable
from .connection import ServiceJob, connect, state
from .gate import LocalVersions, ServedVersions, Versions

logger = logging.getLogger("ray_lir.promote")

REFUSED = 3
"""Exit code if the version is refused."""
REPORT = "promotion.json"
"""Name of the report, in the folder of the version."""
CANARY_PAUSE_S = 0.5
CANARY_QUERIES = 64
MEASURE_DEPTH = 100
"""Documents to find for each query if the measure has no cutoff."""
MAX_LOGGED = 1000
"""Logged queries that are searched: a sample at equal distances if the log has more."""


class PromoteJob(ServiceJob, GateLimits):
    """Makes a version of an index answer all requests, after measuring that it is as good as the current one.

    With --version, the version and the current one answer the judged queries of --dataset and the logged queries of --queries. The version
    is promoted if it passes every check. Otherwise it is refused, and the exit code is 3. The report is written beside the version.
    Without --version, the canary of the service is promoted unmeasured. The environment variable RAY_LIR_TOKEN must hold an admin token.
    """

    url: str = Field("http://127.0.0.1:8000", validation_alias=AliasChoices("url", "service"))
    """Address of the service. --service is another name."""
    version: int | None = Field(None, ge=1)
    """Version to promote. None: the canary of the service, without measuring it."""
    index: str | None = None
    """Folder of an index that no service serves: LATEST then names the version. None: use the service."""
    current: int | None = Field(None, ge=1)
    """With --index: version to compare with. None: the one in LATEST, or the one before --version if LATEST names it."""
    dataset: str | None = None
    """Folder or URL in the BEIR layout, or the name of a BEIR dataset to download: the judged queries."""
    split: str = "test"
    """Split of the judgements: qrels/SPLIT.tsv."""
    measure: str = "nDCG@10"
    """Measure that decides, in the notation of ir-measures."""
    queries: str | None = None
    """Logged queries, for the overlap: one text a line, or JSON lines with `query` or `text`."""
    canary: float | None = Field(None, gt=0, lt=1)
    """Fraction of the requests that the version answers before it is promoted, once it has passed the other checks. None: no canary."""
    canary_s: float = Field(60, gt=0)
    """Seconds for which it is a canary. Meanwhile both versions answer the same queries: errors and slow answers end it."""
    max_slowdown: float = Field(2.0, ge=1)
    """Largest accepted ratio of the median times of both versions while the version is a canary."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.version is None:
            unused = sorted(self.model_fields_set - {"url", "name"})
            if unused:
                raise ValueError(f"--{unused[0]} is for a version that is measured; add --version")
        elif self.dataset is None:
            raise ValueError("--version needs --dataset, the judged queries; `ray-lir load` serves a version unmeasured")
        if self.index is not None and (self.canary is not None or self.name is not None):
            raise ValueError("--canary and --name are for a service; leave out --index")
        if self.index is None and self.current is not None:
            raise ValueError("--current is for --index; a service compares with the version that it serves")
        return self


def run(job: PromoteJob) -> dict[str, Any]:
    """Promote or refuse a version and return the report.

    Raises:
        ConfigError: A setting, the dataset or the log is wrong. Nothing has changed.
        Conflict: The version cannot be opened, or the served versions were changed meanwhile.
        RayLirError: The service does not answer.
    """
    if job.version is None:
        with connect(job) as client:
            return state(client.promote())
    assert job.dataset is not None
    dataset = load_dataset(job.dataset, job.split)
    logged = _logged(job.queries) if job.queries else {}
    with _versions(job, job.version) as versions:
        report = _measured(job, versions, dataset, logged)
        if job.canary is not None and isinstance(versions, ServedVersions) and _passed(report):
            _observe(job, job.canary, versions, logged or dataset.queries, report)
        report["promoted"] = _passed(report)
        if report["promoted"]:
            report["state"] = versions.promote()
        return _kept(versions, report)


def _versions(job: PromoteJob, version: int) -> AbstractContextManager[Versions]:
    if job.index is not None:
        return nullcontext(LocalVersions(job.index, version, job.current))
    return _served(job, version)


def show(report: dict[str, Any], job: PromoteJob) -> None:
    """Print the report as text."""
    if "checks" not in report:
        from .cli import show_fields

        return show_fields(report)
    print(f"version {report['version']} {'is promoted' if report['promoted'] else 'is refused'}; version {report['current']} was current")
    for check in report["checks"]:
        print(f"{'ok' if check['passed'] else 'FAILED':>6}  {check['name']}: {check['message']}")
    print(f"report  {readable(report['report'] or report['report_reason'])}")


@contextmanager
def _served(job: PromoteJob, version: int) -> Iterator[ServedVersions]:
    with connect(job) as client, ServedVersions.open(client, version) as versions:
        yield versions


def _measured(job: PromoteJob, versions: Versions, dataset: Dataset, logged: dict[str, str]) -> dict[str, Any]:
    """The report with every check that needs no traffic."""
    name = _measure_name(job.measure)
    current, candidate = versions.current, versions.candidate
    checks = [check_encoder(current, candidate, job), check_documents(current, candidate, job)]
    before, after = (_values(versions, facts.version, dataset, name) for facts in (current, candidate))
    measured = check_measure(name, before, after, job.margin)
    checks.append(measured.check)
    report: dict[str, Any] = {
        "version": candidate.version,
        "current": current.version,
        "promoted": False,
        "checks": [],
        "measure": {"dataset": dataset.name, "split": dataset.split, **measured.numbers},
        "documents": {"current": current.num_docs, "candidate": candidate.num_docs},
        "encoder": {"current": current.fingerprint, "candidate": candidate.fingerprint},
        "digests": {
            "current_manifest": current.manifest,
            "candidate_manifest": candidate.manifest,
            "judged_queries": digest(dataset.queries),
            "judgements": digest(dataset.qrels),
        },
    }
    if logged:
        hits = [
            {query_id: [doc_id for doc_id, _ in found] for query_id, found in versions.rank(facts.version, logged, DEPTH).items()}
            for facts in (current, candidate)
        ]
        overlap = check_overlap(hits[0], hits[1], job.min_overlap)
        checks.append(overlap.check)
        report["overlap"] = overlap.numbers
        report["digests"]["logged_queries"] = digest(logged)
    report["checks"] = [check.model_dump() for check in checks]
    for check in checks:
        logger.log(logging.INFO if check.passed else logging.WARNING, "%s: %s", check.name, check.message)
    return report


def _measure_name(text: str) -> str:
    """The measure in ir-measures' spelling. Raises ConfigError if it is not one measure."""
    names = metrics.parse_measures(text)
    if len(names) != 1:
        raise ConfigError(f"--measure is {text!r}; give one measure, such as nDCG@10")
    return names[0]


def _values(versions: Versions, version: int, dataset: Dataset, measure: str) -> dict[str, float]:
    """The measure of each judged query."""
    ignores = has_queries_as_documents(dataset.name)
    depth = metrics.cutoff(measure) or MEASURE_DEPTH
    found = versions.rank(version, dataset.queries, depth + ignores)
    run = metrics.without_identical_ids(found) if ignores else found
    return metrics.evaluate({query_id: hits[:depth] for query_id, hits in run.items()}, dataset.qrels, [measure])[measure]


def _observe(job: PromoteJob, fraction: float, versions: ServedVersions, queries: Mapping[str, str], report: dict[str, Any]) -> None:
    """Serve the version as a canary for a while, and add a check of its errors and times to the report."""
    texts = list(queries.values())[:CANARY_QUERIES]
    seconds: dict[int, list[float]] = {versions.current.version: [], versions.candidate.version: []}
    errors: list[str] = []
    versions.set_traffic(fraction)
    end = time.monotonic() + job.canary_s
    while time.monotonic() < end and not errors:
        text = texts[sum(map(len, seconds.values())) // 2 % len(texts)]
        for version, taken in seconds.items():
            start = time.perf_counter()
            try:
                versions.client.search(text, k=DEPTH, version=version)
                taken.append(time.perf_counter() - start)
            except Overloaded as error:
                time.sleep(min(error.retry_after_s, job.canary_s))
            except RayLirError as error:
                errors.append(f"version {version}: {error}")
        time.sleep(min(CANARY_PAUSE_S, max(0.0, end - time.monotonic())))
    check = _canary_check(seconds[versions.current.version], seconds[versions.candidate.version], errors, job.max_slowdown)
    report["canary"] = {
        "traffic_fraction": fraction,
        "seconds": job.canary_s,
        "queries": {str(version): len(taken) for version, taken in seconds.items()},
        "median_ms": {str(version): round(1000 * statistics.median(taken), 2) for version, taken in seconds.items() if taken},
        "errors": errors,
    }
    report["checks"].append(check.model_dump())


def _canary_check(current: list[float], candidate: list[float], errors: list[str], max_slowdown: float) -> Check:
    if errors:
        return Check(name="canary", passed=False, message=errors[0])
    if not current or not candidate:
        return Check(name="canary", passed=False, message="the service answered no query in that time; give a larger --canary_s")
    slowdown = statistics.median(candidate) / statistics.median(current)
    message = f"no errors; a median query takes {1000 * statistics.median(candidate):.1f} ms, {slowdown:.2f} times as long as before"
    return Check(name="canary", passed=slowdown <= max_slowdown, message=message)


def _passed(report: dict[str, Any]) -> bool:
    return all(check["passed"] for check in report["checks"])


def _kept(versions: Versions, report: dict[str, Any]) -> dict[str, Any]:
    """Write the report beside the version, if this machine reaches it, and return it with its place."""
    place = storage.join(versions.root, "versions", str(versions.candidate.version), REPORT)
    content = canonical_json(report)
    why = None
    try:
        if manifest_digest(read_version(versions.root, versions.candidate.version)) != versions.candidate.manifest:
            why = f"{versions.root} is another index on this machine"
        else:
            storage.write_bytes(place, content)
    except (RayLirError, OSError) as error:
        why = f"it cannot be written to {place}: {error}"
    kept = {"report": None, "report_reason": why} if why else {"report": place, "report_sha256": hashlib.sha256(content).hexdigest()}
    return report | kept


def _logged(path: str) -> dict[str, str]:
    """The distinct queries of a log, by the number of their first line.

    Raises:
        ConfigError: The log cannot be read, or holds no query.
    """
    with storage.wrap_errors("read", path):
        data = storage.read_bytes(path)
    data = gzip.decompress(data) if path.endswith(".gz") else data
    try:
        lines = data.decode().splitlines()
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text; give one query a line, or JSON lines with query or text") from None
    texts: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        text = _query_of(line, f"{path}:{number}")
        if text:
            texts.setdefault(text[:MAX_QUERY_CHARACTERS], number)
    if not texts:
        raise ConfigError(f"{path} holds no query; give one query a line, or JSON lines with query or text")
    found = list(texts.items())
    step = max(1, -(-len(found) // MAX_LOGGED))
    return {str(number): text for text, number in found[::step]}


def _query_of(line: str, place: str) -> str:
    line = line.strip()
    if not line.startswith("{"):
        return line
    try:
        row = json.loads(line)
    except ValueError:
        raise ConfigError(f"{place} is not JSON; give one query a line, or JSON lines with query or text") from None
    text = row.get("query", row.get("text"))
    if not isinstance(text, str):
        raise ConfigError(f"{place} has no text under query or text")
    return text.strip()


if __name__ == "__main__":
    result = main(PromoteJob, run, show=show)
    if result.get("promoted") is False:
        failed = "; ".join(f"{check['name']}: {check['message']}" for check in result["checks"] if not check["passed"])
        print(f"refused: version {result['version']} is not promoted, version {result['current']} stays: {failed}", file=sys.stderr)
        sys.exit(REFUSED)
