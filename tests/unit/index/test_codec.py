"""The residual codec: buckets, packing and reconstruction."""

import numpy as np
import pytest
from safetensors.numpy import load, save

from ray_lir.base.config import CodecConfig
from ray_lir.base.errors import ConfigError, FormatError
from ray_lir.building.codec_training import fit_codec
from ray_lir.index.codec import ResidualCodec, check_dimensions, fit_buckets, fit_trellis, load_codec, random_rotation
from ray_lir.index.residuals import byte_widths, decompress, normalize, pack, residual_values, unpack
from ray_lir.kernels import select
from ray_lir.kernels.reference import REFERENCE
from tests.support.golden_files import golden

KERNELS = select("auto")
RESIDUAL_BYTES = CodecConfig(buckets="trellis", residual_bytes=3)
GOLDEN_PACKED = [[133, 68, 41, 164, 109], [139, 142, 95, 216, 232], [172, 120, 153, 228, 2]]
GOLDEN_PAIRS = [58, 47, 57]
GOLDEN_DECODED = [[0.73194, 0.284062, 0.007361], [-0.200516, 0.127056, 0.167775], [-0.184254, -0.195116, 0.234534]]


@pytest.mark.parametrize("nbits", [1, 2, 4])
def test_quantile_buckets_match_the_golden_vectors(nbits):
    g = golden("codec")
    cutoffs, weights = fit_buckets(g["heldout_residuals"], CodecConfig(nbits=nbits, buckets="quantile"))
    np.testing.assert_allclose(cutoffs, g[f"cutoffs_{nbits}"], atol=2e-5)
    np.testing.assert_allclose(weights, g[f"weights_{nbits}"], atol=2e-5)


@pytest.mark.parametrize("nbits", [1, 2, 4])
def test_codes_packing_and_reconstruction_match_the_golden_vectors(nbits):
    g = golden("codec")
    codec = ResidualCodec(g["centroids"], g[f"cutoffs_{nbits}"], g[f"weights_{nbits}"])
    codes, _ = REFERENCE.assign(g["x"], codec.centroids_f32)
    np.testing.assert_array_equal(codes, g["codes"])
    packed, scales, norms = REFERENCE.compress(g["x"], codes, codec)
    np.testing.assert_array_equal(packed, g[f"packed_natural_{nbits}"])
    np.testing.assert_array_equal(unpack(packed, nbits), g[f"buckets_{nbits}"])
    np.testing.assert_allclose(norms, np.linalg.norm(g["x"] - g["centroids"][codes], axis=1), atol=2e-5)
    restored = codec.centroids_f32[codes] + residual_values(packed, codec.weights)
    np.testing.assert_allclose(restored, g[f"reconstructed_{nbits}"], atol=2e-5)
    unit = decompress(codes, packed, scales, codec)
    np.testing.assert_allclose(unit, g[f"reconstructed_unit_{nbits}"], atol=2e-5)


@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
def test_unpacking_inverts_packing(nbits):
    buckets = np.random.default_rng(0).integers(0, 2**nbits, (50, 16)).astype(np.uint8)
    packed = pack(buckets, nbits)
    assert packed.shape == (50, 2 * nbits)
    np.testing.assert_array_equal(unpack(packed, nbits), buckets)


def test_the_first_dimension_is_in_the_highest_bits():
    np.testing.assert_array_equal(pack(np.array([[0x3, 0xA]], np.uint8), 4), [[0x3A]])
    np.testing.assert_array_equal(pack(np.array([[1, 0, 0, 0, 0, 0, 0, 1]], np.uint8), 1), [[0b10000001]])


def test_lloyd_max_with_one_bit_gives_the_textbook_quantizer_of_a_normal():
    values = np.random.default_rng(0).normal(size=(4000, 100))
    cutoffs, weights = fit_buckets(values, CodecConfig(nbits=1))
    np.testing.assert_allclose(cutoffs, [0], atol=0.01)
    np.testing.assert_allclose(weights, [-np.sqrt(2 / np.pi), np.sqrt(2 / np.pi)], atol=0.01)


@pytest.mark.parametrize("nbits", [1, 2, 4, 8])
def test_lloyd_max_has_less_error_than_equal_quantiles(nbits):
    values = np.random.default_rng(0).normal(size=(500, 100)).astype(np.float32)

    def error(buckets: str) -> float:
        cutoffs, weights = fit_buckets(values, CodecConfig(nbits=nbits, buckets=buckets, rotation=False, token_scale=False))
        return float(((values - weights[np.searchsorted(cutoffs, values)]) ** 2).mean())

    assert error("lloyd_max") < (0.9 if nbits > 1 else 1) * error("quantile")


def test_more_bits_give_a_smaller_error():
    rng = np.random.default_rng(0)
    centroids = normalize(rng.normal(size=(16, 32)).astype(np.float32)).astype(np.float16)
    vectors = normalize(centroids[rng.integers(0, 16, 500)].astype(np.float32) + 0.1 * rng.normal(size=(500, 32)).astype(np.float32))
    codes, _ = REFERENCE.assign(vectors, centroids.astype(np.float32))
    errors = []
    for nbits in (1, 2, 4, 8):
        codec = ResidualCodec(centroids, *fit_buckets(vectors - centroids[codes], CodecConfig(nbits=nbits)), token_scale=True)
        packed, scales, _ = REFERENCE.compress(vectors, codes, codec)
        errors.append(np.abs(decompress(codes, packed, scales, codec) - vectors).mean())
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.003


def test_rotation_keeps_dot_products_and_token_scales_reduce_the_error():
    rng = np.random.default_rng(0)
    vectors = normalize(rng.normal(size=(600, 32)) * np.linspace(0.05, 2, 32)).astype(np.float32)
    rotation = random_rotation(32, 0)
    turned_vectors = REFERENCE.rotate(vectors, rotation)
    np.testing.assert_allclose(turned_vectors @ turned_vectors.T, vectors @ vectors.T, atol=1e-6)

    def error(vectors: np.ndarray, token_scale: bool) -> float:
        centroids = vectors[:20].astype(np.float16)
        codes, _ = REFERENCE.assign(vectors, centroids.astype(np.float32))
        config = CodecConfig(nbits=2, rotation=False, token_scale=token_scale)
        codec = ResidualCodec(centroids, *fit_buckets(vectors - centroids[codes], config), token_scale=token_scale)
        packed, scales, _ = REFERENCE.compress(vectors, codes, codec)
        return float(((decompress(codes, packed, scales, codec) - vectors) ** 2).sum(axis=1).mean())

    assert error(turned_vectors, True) < 0.9 * error(vectors, True) < 0.9 * error(vectors, False)


def test_quantile_buckets_use_no_rotation_and_scales_by_default():
    assert (CodecConfig().rotation, CodecConfig().token_scale) == (True, True)
    papers = CodecConfig(buckets="quantile", token_scale=True)
    assert (papers.rotation, papers.token_scale) == (False, True)


def test_constant_residuals_do_not_break_the_buckets():
    cutoffs, weights = fit_buckets(np.zeros((10, 10), np.float32), CodecConfig(nbits=4))
    assert (cutoffs == 0).all() and (weights == 0).all()


def test_dimensions_that_do_not_fill_bytes_are_refused_with_the_fix():
    with pytest.raises(ConfigError, match="multiple of 8"):
        check_dimensions(9, 2)


def test_a_saved_codec_loads_unchanged_and_a_truncated_one_is_named(tmp_path):
    g = golden("codec")
    codec = ResidualCodec(g["centroids"].astype(np.float16), g["cutoffs_2"].astype(np.float32), g["weights_2"].astype(np.float32))
    url = str(tmp_path / "codec.safetensors")
    (tmp_path / "codec.safetensors").write_bytes(codec.to_bytes())
    loaded = load_codec(url)
    assert loaded.nbits == 2 and loaded.num_centroids == 8
    for name in ("centroids", "cutoffs", "weights"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(codec, name))
    (tmp_path / "codec.safetensors").write_bytes((tmp_path / "codec.safetensors").read_bytes()[:-40])
    with pytest.raises(FormatError, match="codec"):
        load_codec(url)


def trellis_codec(nbits: int, memory: int, dim: int, rng: np.random.Generator) -> ResidualCodec:
    table = rng.normal(size=(256 << memory, 8 // nbits)).astype(np.float32)
    return ResidualCodec(np.zeros((1, dim), np.float16), np.zeros(0, np.float32), table, token_scale=True)


@pytest.mark.parametrize("memory", [0, 1, 4])
@pytest.mark.parametrize("nbits", [1, 2])
def test_a_trellis_finds_the_nearest_of_all_pairs_of_bytes(nbits, memory):
    rng = np.random.default_rng(memory)
    dim = 16 // nbits
    codec = trellis_codec(nbits, memory, dim, rng)
    residuals = rng.normal(size=(5, dim)).astype(np.float32)
    packed, _, _ = REFERENCE.compress(residuals, np.zeros(5, np.int64), codec)
    pairs = np.stack(np.meshgrid(np.arange(256), np.arange(256), indexing="ij"), axis=-1).reshape(-1, 2).astype(np.uint8)
    values = residual_values(pairs, codec.weights)
    np.testing.assert_array_equal(values[:, : dim // 2], codec.weights[pairs[:, 0]])
    np.testing.assert_array_equal(values[:, dim // 2 :], codec.weights[pairs[:, 0].astype(int) % 2**memory * 256 + pairs[:, 1]])
    scaled = residuals / np.sqrt(np.square(residuals).mean(axis=1, keepdims=True))
    for row in range(5):
        best = pairs[np.square(values - scaled[row]).sum(axis=1).argmin()]
        np.testing.assert_array_equal(packed[row], best)


@pytest.mark.parametrize(("nbits", "fraction"), [(1, 0.9), (2, 0.8)])
def test_a_trellis_has_less_error_than_lloyd_max(nbits, fraction):
    rng = np.random.default_rng(0)
    sample, values = rng.normal(size=(2, 3000, 32)).astype(np.float32)
    codes, zeros = np.zeros(len(values), np.int64), np.zeros((1, 32), np.float16)

    def error(cutoffs: np.ndarray, weights: np.ndarray) -> float:
        codec = ResidualCodec(zeros, cutoffs, weights, token_scale=True)
        packed, _, norms = KERNELS.compress(values, codes, codec)
        return float(np.square(values - residual_values(packed, weights) * norms[:, None] / np.sqrt(32)).mean())

    scalar = error(*fit_buckets(sample, CodecConfig(nbits=nbits)))
    assert error(np.zeros(0, np.float32), fit_trellis(sample, nbits, KERNELS)) < fraction * scalar


def test_fitting_a_trellis_ignores_zeros_and_gives_the_same_bits_again():
    sample = np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)
    with_zeros = np.concatenate([np.zeros((3, 16), np.float32), sample])
    first = fit_trellis(sample, 2, KERNELS, memory=1)
    np.testing.assert_array_equal(fit_trellis(with_zeros, 2, KERNELS, memory=1), first)
    assert first.shape == (512, 4) and np.isfinite(fit_trellis(np.zeros((4, 16), np.float32), 2, KERNELS, memory=1)).all()


def test_trellis_codecs_are_read_back_and_damaged_ones_are_refused(tmp_path):
    codec = trellis_codec(2, 3, 32, np.random.default_rng(0))
    path = tmp_path / "codec.safetensors"
    path.write_bytes(codec.to_bytes())
    again = load_codec(str(path))
    assert (again.nbits, again.dim, again.has_trellis) == (2, 32, True)
    np.testing.assert_array_equal(again.weights, codec.weights)
    bad = codec.weights.copy()
    bad[5, 1] = np.nan
    cutoffs = np.zeros(3, np.float32)
    none = codec.cutoffs
    for weights, cuts in ((codec.weights[:300], none), (codec.weights[:, :3], none), (bad, none), (codec.weights, cutoffs)):
        path.write_bytes(save({"centroids": codec.centroids, "cutoffs": cuts, "weights": weights.copy(), "token_scale": np.array([True])}))
        with pytest.raises(FormatError):
            load_codec(str(path))


@pytest.mark.parametrize("settings", [{"nbits": 4}, {"nbits": 8}, {"nbits": 2, "token_scale": False}])
def test_a_trellis_needs_one_or_two_bits_and_token_scales(settings):
    assert CodecConfig(buckets="trellis", nbits=1).rotation
    with pytest.raises(ValueError, match="nbits 1 or 2, and token_scale"):
        CodecConfig(buckets="trellis", **settings)


def near_centroids(dim: int, num_vectors: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return unit vectors [T, D] near centroids, the centroid of each [T], and the centroids [16, D] float16."""
    centroids = normalize(rng.normal(size=(16, dim)).astype(np.float32)).astype(np.float16)
    codes = rng.integers(0, 16, num_vectors)
    noise = 0.5 / np.sqrt(dim) * rng.normal(size=(num_vectors, dim)).astype(np.float32)
    return normalize(centroids[codes].astype(np.float32) + noise), codes, centroids


@pytest.mark.parametrize(
    ("dim", "num_bytes", "widths"), [(16, 2, [8, 8]), (16, 3, [6, 5, 5]), (20, 9, [3, 3, 2, 2, 2, 2, 2, 2, 2]), (16, 8, 8 * [2])]
)
def test_bytes_of_a_residual_have_equally_many_dimensions_or_one_fewer(dim, num_bytes, widths):
    assert byte_widths(dim, num_bytes).tolist() == widths
    rng = np.random.default_rng(0)
    table, packed = rng.normal(size=(512, widths[0])), rng.integers(0, 256, (4, num_bytes)).astype(np.uint8)
    values = residual_values(packed, table, dim)
    for token in range(4):
        before, expected = 0, []
        for byte, width in zip(packed[token].tolist(), widths, strict=True):
            expected += table[256 * (before % 2) + byte, :width].tolist()
            before = byte
        np.testing.assert_array_equal(values[token], expected)


def test_more_residual_bytes_have_less_error_and_beat_buckets_of_the_same_bytes():
    vectors, codes, centroids = near_centroids(64, 1200, np.random.default_rng(0))

    def error(config: CodecConfig) -> tuple[float, float]:
        codec = fit_codec(vectors, codes, centroids, None, None, config, KERNELS)
        packed, scales, _ = KERNELS.compress(vectors, codes, codec)
        stored = codec.stored_scales(scales)
        decoded = decompress(codes, packed, stored, codec)
        np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), 1, atol=0.05)
        return float(np.square(decoded - vectors).sum(axis=1).mean()), packed.shape[1] + stored.nbytes / len(stored)

    errors = [error(CodecConfig(buckets="trellis", residual_bytes=num_bytes)) for num_bytes in (8, 11, 19)]
    scalar = [error(CodecConfig(nbits=nbits)) for nbits in (1, 2)]
    assert [size for _, size in errors] == [9, 12, 20] and [size for _, size in scalar] == [12, 20]
    assert errors[0][0] < 0.9 * scalar[0][0] and errors[1][0] < 0.65 * scalar[0][0] and errors[2][0] < 0.6 * scalar[1][0]


def test_residual_bytes_have_fixed_bytes():
    """Another arithmetic, order of bits or choice of pairs would make existing indexes unreadable."""
    codec = residual_bytes_codec()
    vectors = np.sin(np.arange(36, dtype=np.float32).reshape(3, 12) ** 1.5) + 3 * codec.centroids_f32[[0, 1, 1]]
    vectors /= np.sqrt(np.square(vectors).sum(axis=1, keepdims=True))
    for kernels in (REFERENCE, KERNELS):
        packed, scales, norms = kernels.compress(vectors, np.array([0, 1, 1]), codec)
        assert packed.tolist() == GOLDEN_PACKED
        assert codec.stored_scales(scales).tolist() == GOLDEN_PAIRS
        np.testing.assert_allclose(norms, np.linalg.norm(vectors - codec.centroids_f32[[0, 1, 1]], axis=1), rtol=1e-6)
    decoded = decompress(np.array([0, 1, 1]), packed, codec.stored_scales(scales), codec)
    np.testing.assert_allclose(decoded[:, :3], GOLDEN_DECODED, atol=1e-6)


def residual_bytes_codec() -> ResidualCodec:
    """Return a codec without random numbers: 12 dimensions in 5 bytes of 3, 3, 2, 2 and 2 dimensions, and 2 centroids."""
    table = np.sin(np.arange(1536, dtype=np.float64).reshape(512, 3) * 1.7).astype(np.float32) * 2
    steps = np.arange(256)
    pairs = np.stack([0.5 + steps % 16 / 32, 0.05 + steps // 16 / 32], axis=1).astype(np.float32)
    centroids = np.zeros((2, 12), np.float16)
    centroids[0, 0] = centroids[1, 5] = 1
    return ResidualCodec(centroids, np.zeros(0, np.float32), table, token_scale=True, residual_bytes=5, scale_pairs=pairs)


def test_codecs_with_residual_bytes_are_read_back_and_damaged_ones_are_refused(tmp_path):
    codec, path = residual_bytes_codec(), tmp_path / "codec.safetensors"
    path.write_bytes(codec.to_bytes())
    again = load_codec(str(path))
    assert (again.nbits, again.dim, again.packed_bytes) == (2, 12, 5)
    np.testing.assert_array_equal(again.scale_pairs, codec.scale_pairs)
    arrays = load(codec.to_bytes())
    damages = {
        "scale_pairs": (None, codec.scale_pairs[:100], np.full((256, 2), np.nan, np.float32)),
        "residual_bytes": (None, np.array([0]), np.array([7]), np.array([13]), np.array([-5]), np.array([5], np.int32)),
        "weights": (codec.weights[:, :2].copy(), codec.weights[0]),
    }
    for name, values in damages.items():
        for value in values:
            path.write_bytes(save({key: array for key, array in (arrays | {name: value}).items() if array is not None}))
            with pytest.raises(FormatError):
                load_codec(str(path))


def test_residual_bytes_need_a_trellis_and_fit_the_dimensions():
    assert CodecConfig(buckets="trellis", residual_bytes=19).nbits == 4
    for settings in ({"buckets": "lloyd_max"}, {"buckets": "trellis", "token_scale": False}):
        with pytest.raises(ValueError, match="residual_bytes needs buckets trellis"):
            CodecConfig(residual_bytes=19, **settings)
    for num_bytes in (15, 65):
        with pytest.raises(ConfigError, match=f"residual_bytes is {num_bytes}; with 128 dimensions choose 16 to 64"):
            check_dimensions(128, 2, num_bytes)


def test_equal_vectors_and_few_vectors_can_be_fitted():
    for vectors in (np.eye(16, dtype=np.float32)[:1], np.repeat(np.eye(16, dtype=np.float32)[:1], 5, axis=0)):
        codec = fit_codec(vectors, np.zeros(len(vectors), int), vectors[:1].astype(np.float16), None, None, RESIDUAL_BYTES, KERNELS)
        packed, scales, _ = KERNELS.compress(vectors, np.zeros(len(vectors), int), codec)
        decoded = decompress(np.zeros(len(vectors), int), packed, codec.stored_scales(scales), codec)
        np.testing.assert_allclose(decoded, vectors, atol=1e-3)


@pytest.mark.parametrize("nbits", [1, 2, 4])
def test_decoded_residuals_are_as_long_as_the_residuals(nbits):
    rng = np.random.default_rng(0)
    centroids = normalize(rng.normal(size=(8, 32)).astype(np.float32)).astype(np.float16)
    vectors = normalize(rng.normal(size=(100, 32)).astype(np.float32))
    codes, _ = REFERENCE.assign(vectors, centroids.astype(np.float32))
    codec = ResidualCodec(centroids, *fit_buckets(vectors - centroids[codes], CodecConfig(nbits=nbits)), token_scale=True)
    packed, scales, norms = REFERENCE.compress(vectors, codes, codec)
    decoded = residual_values(packed, codec.weights) * (scales[:, 1:] / scales[:, :1])
    np.testing.assert_allclose(np.linalg.norm(decoded, axis=1), norms, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(decompress(codes, packed, scales, codec), axis=1), 1, rtol=1e-5)
