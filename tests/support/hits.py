"""Comparison of hits."""

from collections.abc import Sequence

import numpy as np

from ray_lir.engines.plan import TopK


def assert_same_hits(found: Sequence[TopK], expected: Sequence[TopK]) -> None:
    """Assert that two searches gave the same documents with the same bits of the scores, in the same order."""
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(left.documents, right.documents)
        np.testing.assert_array_equal(left.scores, right.scores)
