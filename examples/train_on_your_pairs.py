"""Train on your own pairs: a query and a text that answers it, one JSON object a line. Needs `pip install 'ray_lir[cluster]'`.

A few steps on 24 pairs show the way and change little; docs/training.md has settings for real data.
"""

import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import ray_lir

DATA = Path(__file__).parent / "data"
RAY_LIR = Path(sys.executable).with_name("ray-lir")


def read(name: str) -> list[dict]:
    """Return the rows of a file of JSON lines."""
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def judgements(split: str) -> dict[str, str]:
    """Return the relevant document of each query."""
    rows = [line.split("\t") for line in (DATA / "qrels" / f"{split}.tsv").read_text().splitlines()[1:]]
    return {query_id: doc_id for query_id, doc_id, _ in rows}


def mean_reciprocal_rank(encoder: str, folder: str) -> float:
    """Return the mean of 1 / rank of the relevant document, over the test queries."""
    index = ray_lir.Index.create(folder, documents, encoder=encoder)
    relevant = judgements("test")
    rankings = index.search([queries[query_id] for query_id in relevant], k=len(index), matches=False)
    ranks = [[hit.doc_id for hit in hits].index(doc_id) + 1 for hits, doc_id in zip(rankings, relevant.values(), strict=True)]
    return sum(1 / rank for rank in ranks) / len(ranks)


documents = read("corpus.jsonl")
queries = {query["_id"]: query["text"] for query in read("queries.jsonl")}
texts = {document["_id"]: f"{document['title']} {document['text']}" for document in documents}

with TemporaryDirectory() as folder:
    pairs = [{"query": queries[query_id], "positive": texts[doc_id]} for query_id, doc_id in judgements("train").items()]
    Path(folder, "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    settings = "--max_steps 6 --batch_size 8 --learning_rate 5e-5 --temperature 1.0 --encoder.document_length 64".split()
    command = [RAY_LIR, "train", "--examples", f"{folder}/pairs.jsonl", "--output", f"{folder}/trained", *settings]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])
    print(f"trained on {len(pairs)} pairs for {result['steps']} steps in {result['seconds']:.0f} s; loss {result['final_loss']:.3f}")
    before = mean_reciprocal_rank("all-MiniLM-L6-v2", f"{folder}/before")
    after = mean_reciprocal_rank(result["checkpoint"], f"{folder}/after")
    print(f"mean reciprocal rank on {len(judgements('test'))} other queries: {before:.3f} before, {after:.3f} after")
