"""A teacher's scores of training rows: MaxSim of another checkpoint."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ray_lir.base.config import EncoderConfig
from ray_lir.encoder.encoder import Encoder
from ray_lir.evaluation.oracle import maxsim


def add_scores(teacher: EncoderConfig, examples: Path, first: int) -> Iterator[dict[str, Any]]:
    """Yield training rows with a score for each document.

    Args:
        teacher: Checkpoint of the teacher and lengths of texts.
        examples: Rows `{"query": text, "documents": [texts]}`.
        first: Row to begin with; earlier rows were scored before.
    """
    encoder = Encoder.load(teacher)
    for line in examples.read_text().splitlines()[first:]:
        row = json.loads(line)
        scores = maxsim(encoder.encode_queries([row["query"]]), encoder.encode_documents(row["documents"]))
        yield row | {"scores": scores[0].astype(float).round(5).tolist()}
