"""Postings follow from the codes."""

import numpy as np
import pytest

from ray_lir.base import compiled
from ray_lir.index import postings


def group(codes: np.ndarray, num_centroids: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the posting lists of token numbers, and their offsets."""
    offsets = postings.offsets_of(codes, num_centroids)
    [tokens] = postings.by_centroid(codes, offsets, np.arange, np.int64)
    return tokens, offsets


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
    parts = list(postings.by_centroid(codes, offsets, np.arange, np.int64, num_parts=7))
    assert len(parts) == 7 and max(map(len, parts)) < 30_000
    np.testing.assert_array_equal(np.concatenate(parts), tokens)


def test_compiled_lists_are_those_of_the_plain_form():
    rng = np.random.default_rng(2)
    for code_type, value_type in ((np.uint16, np.uint8), (np.uint16, np.float32), (np.uint32, np.uint32), (np.uint32, np.int64)):
        codes = rng.integers(0, 300, 5000).astype(code_type)
        values = rng.integers(0, 256, 5000).astype(value_type)
        offsets = postings.offsets_of(codes, 300)
        found = []
        for append in (postings.append_values, compiled.module().append_postings):
            free, out = offsets[:-1].copy(), np.zeros(5000, value_type)
            for lowest, highest in ((0, 120), (120, 300)):
                append(codes, values, lowest, highest, free, out)
            found.append((free, out))
        np.testing.assert_array_equal(found[0][1], values[np.argsort(codes, kind="stable")])
        for plain, fast in zip(*found, strict=True):
            np.testing.assert_array_equal(fast, plain)


def test_a_list_longer_than_its_offsets_is_refused():
    codes, free = np.zeros(4, np.uint16), np.zeros(1, np.int64)
    with pytest.raises(ValueError, match="a list is longer than its offsets say"):
        compiled.module().append_postings(codes, codes.astype(np.uint32), 0, 1, free, np.zeros(3, np.uint32))


def test_no_tokens():
    tokens, offsets = group(np.zeros(0, np.uint16), 3)
    assert (tokens.tolist(), offsets.tolist()) == ([], [0, 0, 0, 0])
