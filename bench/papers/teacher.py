"""A teacher's scores of training rows: MaxSim of another checkpoint, or a cross-encoder."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ray_lir.base.config import EncoderConfig
from ray_lir.encoder.cross_encoder import CrossEncoder, is_cross_encoder
from ray_lir.encoder.encoder import Encoder

ROWS_AT_ONCE = 64
"""Rows with texts that are encoded together."""


def add_scores(teacher: str, query_length: int, passage_length: int, examples: Path, first: int) -> Iterator[dict[str, Any]]:
    """Yield training rows with a score for each document.

    Args:
        teacher: Checkpoint of the teacher: the folder of a cross-encoder, or a checkpoint that scores by MaxSim.
        query_length: Tokens of a query.
        passage_length: Tokens of a passage.
        examples: Rows `{"query": text, "documents": [texts]}`.
        first: Row to begin with; earlier rows were scored before.
    """
    lines = examples.read_text().splitlines()[first:]
    blocks = ([json.loads(line) for line in lines[start : start + ROWS_AT_ONCE]] for start in range(0, len(lines), ROWS_AT_ONCE))
    scores = _pair_scores if is_cross_encoder(Path(teacher)) else _maxsim_scores
    for rows, found in scores(teacher, query_length, passage_length, blocks):
        for row, values in zip(rows, found, strict=True):
            yield row | {"scores": [round(float(value), 5) for value in values]}


Rows = list[dict[str, Any]]
Scored = Iterator[tuple[Rows, list[np.ndarray]]]
"""Rows, and for each the scores of its documents."""


def _pair_scores(teacher: str, query_length: int, passage_length: int, blocks: Iterable[Rows]) -> Scored:
    model = CrossEncoder.load(teacher, query_length + passage_length, "cpu")
    for rows in blocks:
        scores = model.scores([(row["query"], text) for row in rows for text in row["documents"]])
        yield rows, np.split(scores, np.cumsum([len(row["documents"]) for row in rows])[:-1])


def _maxsim_scores(teacher: str, query_length: int, passage_length: int, blocks: Iterable[Rows]) -> Scored:
    """Every passage is encoded once and stays in memory in float16."""
    encoder = Encoder.load(EncoderConfig(checkpoint=teacher, query_length=query_length, document_length=passage_length))
    passages: dict[str, np.ndarray] = {}
    for rows in blocks:
        if new := [text for text in dict.fromkeys(text for row in rows for text in row["documents"]) if text not in passages]:
            passages |= dict(zip(new, encoder.encode_documents(new), strict=True))
        queries = encoder.encode_queries([row["query"] for row in rows])
        yield (
            rows,
            [np.array([_maxsim(query, passages[text]) for text in row["documents"]]) for row, query in zip(rows, queries, strict=True)],
        )


def _maxsim(query: np.ndarray, passage: np.ndarray) -> float:
    return float((query.astype(np.float32) @ passage.astype(np.float32).T).max(1).sum())
