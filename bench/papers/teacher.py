"""A teacher's scores of training rows: MaxSim of another checkpoint."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ray_lir.base.config import EncoderConfig
from ray_lir.encoder.encoder import Encoder

ROWS_AT_ONCE = 64
"""Rows with texts that are encoded together."""


def add_scores(teacher: EncoderConfig, examples: Path, first: int) -> Iterator[dict[str, Any]]:
    """Yield training rows with a score for each document. Every passage is encoded once and stays in memory in float16.

    Args:
        teacher: Checkpoint of the teacher, with scorer maxsim, and lengths of texts.
        examples: Rows `{"query": text, "documents": [texts]}`.
        first: Row to begin with; earlier rows were scored before.
    """
    encoder = Encoder.load(teacher)
    passages: dict[str, np.ndarray] = {}
    lines = examples.read_text().splitlines()[first:]
    for start in range(0, len(lines), ROWS_AT_ONCE):
        rows = [json.loads(line) for line in lines[start : start + ROWS_AT_ONCE]]
        if new := [text for text in dict.fromkeys(text for row in rows for text in row["documents"]) if text not in passages]:
            passages |= dict(zip(new, encoder.encode_documents(new), strict=True))
        queries = encoder.encode_queries([row["query"] for row in rows])
        for row, query in zip(rows, queries, strict=True):
            yield row | {"scores": [_maxsim(query, passages[text]) for text in row["documents"]]}


def _maxsim(query: np.ndarray, passage: np.ndarray) -> float:
    return round(float((query.astype(np.float32) @ passage.astype(np.float32).T).max(1).sum()), 5)
