"""Long documents: encode them in windows, and find a sentence anywhere in them."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import ray_lir

corpus = Path(__file__).parent / "data" / "corpus.jsonl"
rows = [json.loads(line) for line in corpus.read_text().splitlines()]
topics = sorted({row["metadata"]["topic"] for row in rows})
texts = [" ".join(row["text"] for row in rows if row["metadata"]["topic"] == topic) for topic in topics]
documents = [{"_id": topic, "title": topic.capitalize(), "text": text} for topic, text in zip(topics, texts, strict=True)]
query = "where does the energy of a cell come from?"

with TemporaryDirectory() as folder:
    encoder = ray_lir.EncoderConfig(windows={"length": 64, "stride": 48, "repeat_title": True})
    index = ray_lir.Index.create(f"{folder}/index", documents, encoder)
    hit = index.search(query, k=1)[0]
    print(f"{len(index)} documents of up to {max(map(len, texts))} characters. Query: {query}")
    print(f"Found in {hit.doc_id}, characters {hit.passage.start} to {hit.passage.end}: {hit.snippet.text}")
