"""Postings follow from the codes."""

import numpy as np
import pytest

from ray_lir.index import postings


def group(codes: np.ndarray, num_centroids: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the posting lists of token numbers, and their offsets."""
    offsets = postings.offsets_of(codes, num_centroids)
    return postings.by_centroid(codes, offsets, np.arange, np.empty(len(codes), np.int64)), offsets


def test_tokens_by_centroid_by_hand():
    tokens, offsets = group(np.array([2, 0, 2, 0, 3], np.uint16), 5)
    assert tokens.tolist() == [1, 3, 0, 2, 4]
    assert offsets.tolist() == [0, 2, 2, 4, 5, 5]


@pytest.mark.parametrize(("num_centroids", "dtype"), [(60_000, np.uint16), (70_000, np.uint32), (1 << 18, np.uint32)])
def test_posting_lists_hold_tokens_in_ascending_order(num_centroids, dtype, monkeypatch):
    monkeypatch.setattr(postings, "BLOCK_TOKENS", 70_000)
    codes = np.random.default_rng(1).integers(0, num_centroids, 200_000).astype(dtype)
    tokens, offsets = group(codes, num_centroids)
    np.testing.assert_array_equal(tokens, np.argsort(codes.astype(np.int64), kind="stable"))
    np.testing.assert_array_equal(np.diff(offsets), np.bincount(codes, minlength=num_centroids))
    parts = postings.by_centroid(codes, offsets, np.arange, np.empty(len(codes), np.int64), part_tokens=30_000)
    np.testing.assert_array_equal(parts, tokens)


def test_no_tokens():
    tokens, offsets = group(np.zeros(0, np.uint16), 3)
    assert (tokens.tolist(), offsets.tolist()) == ([], [0, 0, 0, 0])
