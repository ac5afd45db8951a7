"""Filters and updates: search part of an index, add, replace and delete documents, and see why a document was not found."""

from pathlib import Path
from tempfile import TemporaryDirectory

import ray_lir

corpus = Path(__file__).parent / "data" / "corpus.jsonl"
query = "light"


def show(title: str, hits: ray_lir.Hits) -> None:
    """Print the titles and metadata of hits on one line."""
    found = [f"{hit.title} ({hit.metadata['topic']}, {hit.metadata['year']})" for hit in hits]
    print(f"{title}: {', '.join(found)}")


with TemporaryDirectory() as folder:
    index = ray_lir.Index.create(f"{folder}/index", str(corpus))  # a file is read without loading it into memory
    show("all documents", index.search(query, k=3))
    show("physics since 1900", index.search(query, k=3, where="topic = physics and year >= 1900"))
    show("the same as a dict", index.search(query, k=3, where={"topic": "physics", "year": {">=": 1900}}))

    more = {"title": "Lighthouse", "text": "The light of a lighthouse warns ships.", "metadata": {"topic": "geography", "year": 1852}}
    update = index.add([{"_id": "g21", **more}, {"_id": "p11", **more, "title": "Beacon"}])  # p11 is in the index: it is replaced
    print(f"version {update.version}: {update.change.num_added} added, {update.change.num_replaced} of them in place of another")
    show("after adding", index.search(query, k=3))

    index.delete(["g21", "p11"])
    index.compact()  # a version without the deleted documents
    show("after deleting", index.search(query, k=3))
    print(f"{len(index)} documents are left. Was p01 found for 'light'? {index.explain(query, 'p01', k=3).reason}")
