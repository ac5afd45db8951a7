"""Training data in Arrow files equals the same data in Python lists for any order of rows; texts use no private memory."""

import random
import re
import subprocess
import sys

import numpy as np
import pytest

from ray_lir.base.config import digest
from ray_lir.base.errors import FormatError
from ray_lir.training import data, data_files, examples, judgements
from ray_lir.training.data import TrainingData, batches
from ray_lir.training.data_files import Numbering, TextFile, open_texts
from ray_lir.training.examples import read_examples
from ray_lir.training.judgements import from_judgements
from tests.support.corpora import write_rows


@pytest.fixture
def small_blocks(monkeypatch):
    """Use blocks of 7 rows, so that small data has many."""
    for module in (data, data_files, examples, judgements):
        monkeypatch.setattr(module, "ROWS_AT_ONCE", 7)


def made_up_rows(scored: bool, count: int = 150) -> list[dict]:
    choose = random.Random(0)
    rows = []
    for _ in range(count):
        documents = [f"document {choose.randrange(60)}" for _ in range(choose.randrange(2, 5))]
        row = {"query": f"query {choose.randrange(30)}", "documents": documents}
        rows.append(row | {"scores": [choose.random() for _ in documents]} if scored else row)
    return rows


def in_lists(rows: list[dict]) -> tuple[list, list, list, list | None]:
    """Return queries, documents, lists and scores of rows, grouped with dictionaries."""
    by_query: dict[str, list[dict]] = {}
    for row in rows:
        by_query.setdefault(row["query"], []).append(row)
    documents = list(dict.fromkeys(document for group in by_query.values() for row in group for document in row["documents"]))
    lists = [[[documents.index(document) for document in row["documents"]] for row in group] for group in by_query.values()]
    scores = [[row["scores"] for row in group] for group in by_query.values()] if "scores" in rows[0] else None
    return list(by_query), documents, lists, scores


@pytest.mark.parametrize("scored", [False, True])
def test_rows_of_a_query_are_grouped_wherever_they_are(tmp_path, small_blocks, scored):
    rows = made_up_rows(scored)
    found, expected = read_examples(write_rows(tmp_path / "rows.jsonl", rows)), in_lists(rows)
    assert (list(found.queries), list(found.documents), found.lists_by_query(), found.scores_by_query() or None) == expected
    assert found.digest({"dev": 1}) == digest([*expected, {"dev": 1}]) != found.digest()
    in_memory = TrainingData.of(*expected)
    assert in_memory.digest() == found.digest() == digest([*expected, None])
    for left, right, _ in zip(batches(in_memory, 9, 3, 1), batches(found, 9, 3, 1), range(12), strict=False):
        assert all(np.array_equal(getattr(left, name), getattr(right, name)) for name in ("queries", "documents", "excluded"))
        assert left.teacher is right.teacher is None or np.array_equal(left.teacher, right.teacher)


def test_ids_follow_the_order_of_the_corpus(tmp_path, small_blocks):
    rows = made_up_rows(scored=True)
    named = [{"query_id": row["query"], "document_ids": row["documents"], "scores": row["scores"]} for row in rows]
    queries, documents, lists, scores = in_lists(rows)
    corpus = random.Random(1).sample([f"document {number}" for number in range(90)], 90)
    write_rows(tmp_path / "corpus.jsonl", [{"_id": document, "text": f"text of {document}"} for document in corpus])
    write_rows(
        tmp_path / "queries.jsonl", [{"_id": query, "text": f"text of {query}"} for query in random.Random(2).sample(queries, len(queries))]
    )
    found = read_examples(write_rows(tmp_path / "rows.jsonl", named), str(tmp_path))
    in_corpus = [document for document in corpus if document in documents]
    expected = [[[in_corpus.index(documents[number]) for number in each] for each in group] for group in lists]
    assert (found.lists_by_query(), found.scores_by_query()) == (expected, scores)
    assert list(found.queries) == [f"text of {query}" for query in queries]
    assert list(found.documents) == [f"text of {document}" for document in in_corpus]


def test_judgements_in_many_blocks(small_blocks):
    qrels = {f"q{number}": {f"d{other}": other % 3 for other in range(number, number + 5)} for number in range(40)}
    corpus = [(f"d{number}", f"text {number}") for number in range(60)]
    found = from_judgements({query: query for query in qrels}, qrels, corpus)
    texts = [[[found.documents[number] for number in each] for each in group] for group in found.lists_by_query()]
    assert texts == [[[f"text {document[1:]}"] for document, grade in grades.items() if grade] for grades in qrels.values()]


def test_numbers_follow_the_first_occurrence_of_each_text():
    choose = random.Random(5)
    numbering, expected = Numbering(), {}
    for _ in range(200):
        texts = [str(choose.randrange(3000)) for _ in range(choose.randrange(1, 60))]
        before = len(expected)
        for text in texts:
            expected.setdefault(text, len(expected))
        numbers, new = numbering.number(texts)
        assert numbers.tolist() == [expected[text] for text in texts] and new == list(expected)[before:]
    assert len(numbering) == len(expected)
    assert numbering.find(["3000", next(iter(expected))]).tolist() == [-1, 0]


def test_half_of_a_surrogate_pair_is_a_one_line_error(tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", [{"query": "q", "documents": ["A", "B"]}, {"query": "q", "documents": ["\ud800", "B"]}])
    with pytest.raises(FormatError, match="rows.jsonl:2.*half of a surrogate pair"):
        read_examples(path)


def test_reading_mapped_texts_uses_no_private_memory(tmp_path):
    with TextFile(tmp_path / "texts.arrow") as file:
        file.extend(f"{number} {'x' * 2000}" for number in range(50_000))  # 100 MB
    assert len(open_texts(tmp_path / "texts.arrow")) == 50_000
    program = (
        "import re, sys\nfrom pathlib import Path\nfrom ray_lir.training.data_files import open_texts\n"
        "def dirty(): return int(re.search(r'Private_Dirty: *(\\d+)', Path('/proc/self/smaps_rollup').read_text())[1])\n"
        "texts = open_texts(Path(sys.argv[1]))\ntexts[0]\nbefore = dirty()\n"
        "for number in range(50_000): assert texts[number].startswith(f'{number} ')\nprint(dirty() - before)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path / "texts.arrow")], capture_output=True, text=True, check=True)
    assert int(re.findall(r"\d+", done.stdout)[-1]) < 20_000  # KB
