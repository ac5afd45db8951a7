"""Back-pressure of encoding: how full Ray's object store gets if the corpus is larger and is read faster than it is encoded.

    python -m bench.faults.backpressure [--megabytes 350] [--work DIR]

The texts are long and the encoder reads only their first tokens, so much text is in flight and little is computed. Ten times
a second the script asks Ray for the bytes in the object stores of a head and one machine, and for the bytes spilled to disk.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from ray._private.internal_api import get_memory_info_reply, get_state_from_address

from bench.machine import machine
from tests.fixtures.tiny import WORDS, bert
from tests.support.clusters import Machines, machines
from tests.support.corpora import write_rows

OUTPUT = Path("bench/results/backpressure.json")
WORDS_PER_TEXT, DOCS_PER_PART, FILES = 4000, 256, 5
MEGABYTE = 1_000_000


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.faults.backpressure", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=350)
    parser.add_argument("--work", type=Path, default=Path("runs/backpressure"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=options.work) as folder, machines(1) as cluster:
        made = Path(folder).resolve()
        bert(made / "checkpoint")
        size = write_corpus(made / "corpus", options.megabytes * MEGABYTE)
        report = {"machine": machine(), "corpus_mb": round(size / MEGABYTE, 1), **_measure(cluster, made)}
    OUTPUT.write_text(json.dumps(report, indent=1) + "\n")
    OUTPUT.with_suffix(".md").write_text(table(report))
    print(json.dumps(report))
    print(table(report), file=sys.stderr)


def write_corpus(folder: Path, num_bytes: int) -> int:
    """Write several files of synthetic texts; return their bytes."""
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, WORDS_PER_TEXT)) for _ in range(50)]
    rows = [{"_id": str(number), "text": texts[number % len(texts)]} for number in range(num_bytes // len(texts[0]))]
    for number in range(FILES):
        write_rows(folder / f"{number}.jsonl", rows[number::FILES])
    return sum(path.stat().st_size for path in folder.iterdir())


def _measure(cluster: Machines, made: Path) -> dict[str, Any]:
    words = ["--corpus", made / "corpus", "--output", made / "out", "--encoder.checkpoint", made / "checkpoint"]
    words += ["--encoder.document_length", 64, "--docs_per_part", DOCS_PER_PART]
    log, state = made / "log", get_state_from_address(cluster.head.gcs_address)
    start, used = time.monotonic(), []
    with open(log, "w") as stderr:
        process = cluster.start("encode", *words, stderr=stderr)
    while process.poll() is None:
        stats = get_memory_info_reply(state).store_stats
        used.append(stats.object_store_bytes_used)
        time.sleep(0.1)
    result, _ = process.communicate()
    if process.returncode:
        sys.exit(f"the job ended with status {process.returncode}:\n{log.read_text()[-3000:]}")
    stats = get_memory_info_reply(state).store_stats
    return {
        "num_docs": json.loads(result.splitlines()[-1])["num_docs"],
        "store_mb": round(stats.object_store_bytes_avail / MEGABYTE, 1),
        "through_store_mb": round(stats.cumulative_created_bytes / MEGABYTE, 1),
        "peak_mb": round(max(used) / MEGABYTE, 1),
        "spilled_mb": round(stats.spilled_bytes_total / MEGABYTE, 1),
        "looks": len(used),
        "seconds": round(time.monotonic() - start, 1),
    }


def table(report: dict[str, Any]) -> str:
    """Return the report as a Markdown table."""
    return (
        f"{report['machine']['cpu']}, {report['machine']['cores']} cores; object stores of a head and one machine, summed.\n\n"
        "| corpus | object stores | total written to them | peak in them | spilled to disk | seconds |\n"
        "|---|---|---|---|---|---|\n"
        f"| {report['corpus_mb']:g} MB, {report['num_docs']:,} documents | {report['store_mb']:g} MB | {report['through_store_mb']:g} MB "
        f"| {report['peak_mb']:g} MB | {report['spilled_mb']:g} MB | {report['seconds']:g} |\n"
    )


if __name__ == "__main__":
    main()
