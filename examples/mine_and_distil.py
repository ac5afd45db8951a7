"""Mine and distil: find hard negatives with an index, score them with a teacher, and train a student with 64 dimensions.

The teacher is the index's own encoder with 384 dimensions. For a cross-encoder as teacher, add `--cross_encoder NAME` to `ray-lir mine`.
Needs `pip install 'ray_lir[cluster]'`.
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray_lir

DATA = Path(__file__).parent / "data"


def job(*words: str) -> dict[str, Any]:
    """Run `ray-lir WORDS` and return its result."""
    command = [Path(sys.executable).with_name("ray-lir"), *words]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


with TemporaryDirectory() as folder:
    teacher = ray_lir.Index.create(f"{folder}/teacher", str(DATA))
    tuples = f"{folder}/tuples.jsonl"
    mined = job("mine", "--index", f"{folder}/teacher", "--dataset", str(DATA), "--output", tuples, "--num_negatives", "3", "--depth", "20")
    print(f"mined: {mined}")

    rows = [json.loads(line) for line in Path(tuples).read_text().splitlines()]
    queries = {row["_id"]: row["text"] for row in map(json.loads, (DATA / "queries.jsonl").read_text().splitlines())}
    rankings = teacher.search([queries[row["query_id"]] for row in rows], k=len(teacher), engine="exact", matches=False)
    for row, hits in zip(rows, rankings, strict=True):
        scores = {hit.doc_id: hit.score for hit in hits}
        row["scores"] = [scores[doc_id] for doc_id in row["document_ids"]]
    Path(tuples).write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"one of {len(rows)} scored tuples: {rows[0]}")

    student = ray_lir.EncoderConfig(projection="pca:64")  # where the student starts: 64 principal directions of the corpus
    ray_lir.encode_corpus(str(DATA), f"{folder}/start", student)
    settings = "--max_steps 6 --batch_size 4 --num_negatives 3 --contrastive_weight 0 --distillation_weight 1".split()
    start = ["--encoder.checkpoint", f"{folder}/start/checkpoint", "--encoder.document_length", "64"]
    trained = job("train", "--dataset", str(DATA), "--examples", tuples, "--output", f"{folder}/student", *start, *settings)
    print(f"distilled for {trained['steps']} steps; loss {trained['final_loss']:.4f}")

    index = ray_lir.Index.create(f"{folder}/student-index", str(DATA), encoder=trained["checkpoint"])
    query = "why does a siren change its pitch"
    print(f"{query}? {index.search(query, k=1)[0].text} ({index.manifest.dim} dimensions a token instead of {teacher.manifest.dim})")
