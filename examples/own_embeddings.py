"""Bring your own embeddings: index and search the token vectors of any model, of any dimension, without torch.

The "model" here is a toy: a word's vector is made from its trigrams, 96 numbers, so that similar spellings match.
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from zlib import crc32

import numpy as np

import ray_lir

DIM = 96


def embed(text: str) -> np.ndarray:
    """Return [words, DIM] float32: one vector of length 1 for each word of a text."""
    vectors = []
    for word in text.lower().replace(".", " ").replace(",", " ").split():
        trigrams = [f"<{word}>"[start : start + 3] for start in range(len(word))]
        vectors.append(np.sum([np.random.default_rng(crc32(trigram.encode())).normal(size=DIM) for trigram in trigrams], axis=0))
    matrix = np.array(vectors, np.float32)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True)


corpus = Path(__file__).parent / "data" / "corpus.jsonl"
documents = [json.loads(line) for line in corpus.read_text().splitlines()]
texts = [document["text"] for document in documents]
embeddings = ray_lir.TokenEmbeddings.of([embed(text) for text in texts], [document["_id"] for document in documents])

with TemporaryDirectory() as folder:
    metadata = [document["metadata"] for document in documents]
    manifest = ray_lir.build_index(embeddings, f"{folder}/index", texts=texts, metadata=metadata)
    print(f"{manifest.num_docs} documents, {manifest.num_tokens} vectors of {embeddings.dim} dimensions")
    searcher = ray_lir.Searcher.open(f"{folder}/index")
    query = "earthquake and volcano"  # singular: the texts have plurals
    [top] = searcher.search(ray_lir.TokenEmbeddings.of([embed(query)]), k=3, filters="topic = geography")
    print(f"Query: {query}")
    for score, document in zip(top.scores, searcher.documents(top.documents), strict=True):
        print(f"  {score:5.2f}  {document['text']}")
