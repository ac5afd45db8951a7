"""Five-line search: text in, hits out."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import ray_lir

corpus = Path(__file__).parent / "data" / "corpus.jsonl"
documents = [json.loads(line) for line in corpus.read_text().splitlines()]

with TemporaryDirectory() as folder:
    index = ray_lir.Index.create(f"{folder}/index", documents)
    print(f"{len(index)} documents. Query: where does the energy of a cell come from?")
    for hit in index.search("where does the energy of a cell come from?", k=3):
        print(f"  {hit.score:6.2f}  {hit.title}: {hit.text}")
