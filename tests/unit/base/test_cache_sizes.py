"""Cache sizes as Linux reports them, and blocks of kernels for made-up sizes."""

import numpy as np
import pytest

from ray_lir.base import cache_sizes
from ray_lir.base.cache_sizes import CacheSizes
from ray_lir.kernels import native


def write_caches(folder, *caches):
    for number, (level, kind, size) in enumerate(caches):
        (folder / f"index{number}").mkdir()
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (folder / f"index{number}" / name).write_text(f"{text}\n")


@pytest.mark.parametrize(
    ("caches", "expected"),
    [
        ([(1, "Data", "48K"), (1, "Instruction", "64K"), (2, "Unified", "2M"), (3, "Unified", "32768K")], CacheSizes(48 << 10, 2 << 20)),
        ([(1, "Instruction", "64K"), (2, "Unified", "512K")], CacheSizes(second=512 << 10)),
        ([(1, "Data", "0K"), (2, "Unified", "unknown"), ("", "Data", "")], CacheSizes()),
        ([], CacheSizes()),
    ],
)
def test_sizes_that_are_missing_or_damaged_are_the_defaults(caches, expected, tmp_path, monkeypatch):
    write_caches(tmp_path, *caches)
    monkeypatch.setattr(cache_sizes, "CACHES", tmp_path)
    assert cache_sizes.cache_sizes.__wrapped__() == expected


def test_without_files_the_sizes_are_the_defaults(tmp_path, monkeypatch):
    monkeypatch.setattr(cache_sizes, "CACHES", tmp_path / "missing")
    assert cache_sizes.cache_sizes.__wrapped__() == CacheSizes()


@pytest.mark.parametrize(
    ("first", "dim", "tokens", "rows"),
    [(32, 128, 24, 32), (32, 384, 24, 16), (48, 384, 24, 32), (32, 768, 32, 8), (1, 128, 32, 8), (1 << 20, 2048, 32, 32)],
)
def test_blocks_fit_the_first_level_cache(first, dim, tokens, rows, monkeypatch):
    monkeypatch.setattr(native, "cache_sizes", lambda: CacheSizes(first << 10))
    assert native.block_rows.__wrapped__(dim, tokens) == rows


@pytest.mark.skipif(not native.available(), reason="the compiled kernels are not installed")
@pytest.mark.parametrize("instruction_set", native.instruction_sets())
def test_scores_are_equal_to_the_bit_for_any_size_of_blocks(instruction_set):
    rng = np.random.default_rng(0)
    offsets = np.array([0, 1, 70, 70, 103, 300])
    codes = rng.integers(0, 40, 300).astype(np.uint16)
    shard = (
        codes,
        rng.integers(0, 256, (300, 32)).astype(np.uint8),
        rng.random((300, 2)).astype(np.float16).view(np.uint16),
        None,
        None,
        offsets,
    )
    query, ones, buckets = rng.normal(size=(37, 64)).astype(np.float32), np.ones(37, np.float32), np.linspace(-1, 1, 16, dtype=np.float32)
    module, every = native.module(), np.arange(5)
    table = module.centroid_scores(instruction_set, query, rng.integers(-8000, 8000, (40, 64)).astype(np.int16), 1)
    bytes_table, distinct = module.byte_table(instruction_set, table), module.distinct_codes(codes, offsets, 40)

    def scores(rows: int) -> list[np.ndarray]:
        exact = module.residual_maxsim(instruction_set, [query], [ones], [table], *shard, buckets, every, rows, 1)
        return [exact, module.nearest_maxsim(instruction_set, query, ones, *bytes_table, *shard, *distinct, buckets, every, rows, 1)]

    expected = scores(32)
    assert np.isfinite(expected[0]).sum() == np.isfinite(expected[1]).sum() == 4
    for rows in (1, 3, 8, 16, 31):
        for made, array in zip(scores(rows), expected, strict=True):
            np.testing.assert_array_equal(made, array)
    with pytest.raises(ValueError, match="1 to 32 rows"):
        scores(33)
