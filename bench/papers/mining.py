"""Training data of the experiment: sampled question-passage pairs with BM25 negatives, and a teacher's scores."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.sparse import csc_matrix

from bench.papers.profiles import TRAINING_SETS
from ray_lir.corpus.analysis import Analyzer
from ray_lir.corpus.datasets import Dataset, load_dataset
from ray_lir.corpus.records import document_text, read_documents

K1, B = 0.9, 0.4
SKIP, DEPTH = 1, 50
"""Negatives are drawn from the BM25 ranks after SKIP up to DEPTH; the best one may be a positive without a judgement."""
Row = dict[str, list[str] | str]


class Bm25:
    """BM25 over texts in memory.

    Args:
        texts: Documents.
    """

    def __init__(self, texts: Sequence[str]):
        self._analyzer = Analyzer("english")
        self._terms: dict[str, int] = {}
        rows, columns, counts = [], [], []
        lengths = np.zeros(len(texts))
        for row, text in enumerate(texts):
            found = Counter(self._analyzer.terms(text))
            lengths[row] = found.total()
            for term, count in found.items():
                rows.append(row)
                columns.append(self._terms.setdefault(term, len(self._terms)))
                counts.append(count)
        documents, counted = np.array(rows), np.array(counts, float)
        frequency = np.bincount(columns, minlength=len(self._terms))
        inverse = np.log1p((len(texts) - frequency + 0.5) / (frequency + 0.5))
        saturated = counted / (counted + K1 * (1 - B + B * lengths[documents] / lengths.mean()))
        self._weights = csc_matrix((saturated * inverse[columns], (documents, columns)), (len(texts), len(self._terms)), np.float32)

    def best(self, query: str, depth: int) -> np.ndarray:
        """Return the numbers of the best documents, best first, [<= depth] int64; ties go to the lower number."""
        scores = np.zeros(self._weights.shape[0], np.float32)
        for term in self._analyzer.terms(query):
            if (column := self._terms.get(term)) is not None:
                start, end = self._weights.indptr[column], self._weights.indptr[column + 1]
                scores[self._weights.indices[start:end]] += self._weights.data[start:end]
        order = np.argsort(-scores, kind="stable")[:depth]
        return order[scores[order] > 0]


Relevant = dict[str, set[str]]
"""Query id to the ids of its positives."""


def _judged(data: Path) -> list[tuple[Dataset, Relevant]]:
    """Return the training split of each collection, and the positives of its queries."""
    every = [load_dataset(str(data / name), "train") for name in TRAINING_SETS]
    return [(each, {query: {doc for doc, grade in found.items() if grade > 0} for query, found in each.qrels.items()}) for each in every]


def _sampled(every: list[tuple[Dataset, Relevant]], most_passages: int | None, seed: int) -> Iterator[tuple[Dataset, Relevant]]:
    """Yield the collections with the queries of a sample of their passages. A query with a positive outside the sample is left out."""
    total = sum(len(set().union(*relevant.values())) for _, relevant in every)
    fraction = min(1.0, (most_passages or total) / total)
    for place, (judged, relevant) in enumerate(every):
        passages = sorted(set().union(*relevant.values()))
        chosen = set(np.random.default_rng([seed, place]).permutation(passages)[: round(fraction * len(passages))].tolist())
        yield judged, {query: found for query, found in relevant.items() if found <= chosen}


def training_rows(data: Path, number: int, negatives: int, seed: int, first: int = 0, most_passages: int | None = None) -> Iterator[Row]:
    """Yield sampled training pairs with negatives: `{"query": text, "documents": [positive, negatives...]}`.

    Negatives come from the passages that training questions of the same collection have as positives, so that no passage is used that only
    test questions ask for.

    Args:
        data: Folder of the collections in TRAINING_SETS.
        number: Pairs over all collections; all pairs if there are fewer.
        negatives: Negatives of each pair; random ones if BM25 finds fewer.
        seed: Seed of the sample and of the choice of negatives.
        first: Row to begin with; earlier rows were made before.
        most_passages: Passages to use over all collections, a random sample of each in proportion to its size; None: all.
    """
    pairs: list[tuple[int, str, str]] = []
    passages: list[list[str]] = []
    ids: list[list[str]] = []
    positives: list[dict[str, set[str]]] = []
    for place, (judged, relevant) in enumerate(_sampled(_judged(data), most_passages, seed)):
        used = set().union(*relevant.values())
        texts = {each.doc_id: document_text(each.title, each.text) for each in read_documents(judged.corpus) if each.doc_id in used}
        pairs += [(place, judged.queries[query], document) for query, found in relevant.items() for document in sorted(found)]
        passages.append(list(texts.values()))
        ids.append(list(texts))
        positives.append({judged.queries[query]: found for query, found in relevant.items()})
    engines = [Bm25(texts) for texts in passages]
    numbers = [{name: number for number, name in enumerate(names)} for names in ids]
    sample = np.random.default_rng(seed).permutation(len(pairs))[:number]
    for row in range(first, len(sample)):
        place, query, document = pairs[sample[row]]
        found = engines[place].best(query, DEPTH + len(positives[place][query]))
        hard = [each for each in found if ids[place][each] not in positives[place][query]][SKIP:DEPTH]
        all_but_positive = np.delete(np.arange(len(ids[place])), numbers[place][document])
        hard = hard if len(hard) >= negatives else all_but_positive
        drawn = np.sort(np.random.default_rng([seed, row]).choice(len(hard), negatives, replace=False))
        chosen = [numbers[place][document], *(hard[each] for each in drawn)]
        yield {"query": query, "documents": [passages[place][each] for each in chosen]}
