"""Collections that are a part of another one: the documents that a split judges, with its queries."""

import json
import os
import shutil
from pathlib import Path

from ray_lir.corpus.datasets import load_dataset
from ray_lir.corpus.records import read_documents


def write_part(collection: Path, split: str, folder: Path) -> None:
    """Write the judged documents, the queries and the judgements of a split in the BEIR layout.

    Args:
        collection: Folder of the whole collection.
        split: Name of the split.
        folder: Folder to write; it appears once it is complete.
    """
    dataset = load_dataset(str(collection), split)
    judged = set().union(*dataset.qrels.values())
    attempt = folder.with_suffix(".attempt")
    shutil.rmtree(attempt, ignore_errors=True)
    (attempt / "qrels").mkdir(parents=True)
    with (attempt / "corpus.jsonl").open("w") as file:
        for each in read_documents(dataset.corpus):
            if each.doc_id in judged:
                file.write(json.dumps({"_id": each.doc_id, "title": each.title, "text": each.text}) + "\n")
    with (attempt / "queries.jsonl").open("w") as file:
        file.writelines(json.dumps({"_id": query, "text": text}) + "\n" for query, text in dataset.queries.items())
    rows = [f"{query}\t{document}\t{grade}\n" for query, grades in dataset.qrels.items() for document, grade in grades.items()]
    (attempt / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(rows))
    os.replace(attempt, folder)
