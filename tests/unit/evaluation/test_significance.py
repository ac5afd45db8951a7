"""Statistics of paired comparisons, against scipy and numbers computed by hand."""

import numpy as np
import pytest
from scipy import stats

from ray_lir.base.errors import ConfigError
from ray_lir.evaluation.significance import (
    MINIMUM_QUERIES,
    bootstrap_interval,
    bootstrap_means,
    compare,
    holm,
    is_equivalent,
    is_non_inferior,
    minimum_detectable_difference,
    randomisation_test,
)


def sample(seed, size, shift=0.0, spread=0.1):
    return np.random.default_rng(seed).normal(shift, spread, size)


def scipy_p(differences, resamples=np.inf):
    return stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", vectorized=True, n_resamples=resamples, rng=np.random.default_rng(5)
    ).pvalue


@pytest.mark.parametrize("size", [2, 5, 12])
@pytest.mark.parametrize("shift", [0.0, 0.08])
def test_few_queries_give_the_exact_p(size, shift):
    differences = sample(size, size, shift)
    assert randomisation_test(differences) == pytest.approx(scipy_p(differences), abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 0.02, 0.04])
def test_many_queries_give_the_p_of_scipy(shift):
    differences = sample(1, 60, shift)
    assert randomisation_test(differences) == pytest.approx(scipy_p(differences, 20_000), abs=0.015)


def test_thousands_of_queries():
    assert randomisation_test(sample(2, 5000), 200) > 0.005


def test_p_by_hand():
    assert randomisation_test(np.array([1.0, 2.0, 3.0])) == 2 / 8  # only the signs +++ and --- give as large a difference
    assert randomisation_test(np.array([1.0, -1.0])) == 1
    assert randomisation_test(np.zeros(50)) == 1
    assert randomisation_test(np.array([0.5] * 5 + [0.0] * 1000)) == 2 / 2**5  # queries with equal scores have no sign
    assert randomisation_test(np.full(100, 0.3)) == 1 / 10_001


def test_sum_order_does_not_change_p():
    differences = np.array([0.1, 0.2, 0.3, -0.3, 0.6])
    assert randomisation_test(differences) == randomisation_test(differences[::-1].copy())


def test_false_findings_are_as_frequent_as_the_level():
    found = sum(randomisation_test(sample(seed, 30), 999, seed) <= 0.05 for seed in range(400))
    assert 8 <= found <= 36  # 20 expected, standard deviation 4.4


def test_bootstrap_means_have_the_standard_error():
    differences = sample(3, 200, 0.03)
    means = bootstrap_means(differences)
    assert means.mean() == pytest.approx(differences.mean(), abs=3e-4)
    assert means.std() == pytest.approx(differences.std() / np.sqrt(200), rel=0.05)


@pytest.mark.parametrize("size", [8, 20, 300])
def test_intervals_agree_with_student(size):
    differences = sample(4, size, 0.02)
    error = differences.std(ddof=1) / np.sqrt(size)
    expected = stats.t.interval(0.95, size - 1, differences.mean(), error)
    assert bootstrap_interval(differences) == pytest.approx(expected, abs=0.5 * error)
    assert np.ptp(bootstrap_interval(differences)) == pytest.approx(np.ptp(expected), rel=0.12)


def test_intervals_cover_the_true_mean():
    inside = 0
    for seed in range(300):
        low, high = bootstrap_interval(sample(seed, 25, 0.05), resamples=1000, seed=seed)
        inside += low <= 0.05 <= high
    assert 274 <= inside <= 297  # 285 expected


def test_collections_have_equal_weight():
    first, second = [np.zeros(2), np.zeros(8)], [np.ones(2), np.zeros(8)]
    result = compare(first, second)
    assert result.difference == 0.5 and result.queries == 10 and result.changed == 2
    assert result.p == 2 / 4


def test_resampling_stays_within_a_collection():
    groups = [np.full(3, 1.0), np.full(30, -1.0)]
    assert np.all(bootstrap_means(groups) == 0)


def test_a_clear_difference():
    first = sample(6, 200, 0.5)
    result = compare(first, first + sample(7, 200, 0.1, 0.05))
    assert result.is_different and not result.is_equivalent and result.is_non_inferior
    assert result.low < result.difference < result.high
    worse = compare(first, first - 0.1)
    assert worse.is_different and not worse.is_non_inferior and worse.difference == pytest.approx(-0.1)


def test_a_small_difference_with_many_queries_is_different_and_equivalent():
    result = compare(np.zeros(2000), sample(8, 2000, 0.004, 0.03))
    assert result.is_different and result.is_equivalent and is_equivalent(np.zeros(2000), sample(8, 2000, 0.004, 0.03))


def test_noise_is_neither_difference_nor_equivalence():
    result = compare(np.zeros(40), sample(9, 40, 0.0, 0.2))
    assert not result.is_different and not result.is_equivalent and not result.is_non_inferior
    assert result.minimum_detectable > result.margin


@pytest.mark.parametrize("alpha", [0.05, 0.01])
@pytest.mark.parametrize("shift", [0.0, 0.004, 0.008])
@pytest.mark.parametrize("size", [25, 400])
def test_equivalence_agrees_with_the_interval(size, shift, alpha):
    for seed in range(6):
        differences = sample(seed, size, shift, 0.03)
        low, high = bootstrap_interval(differences, 2 * alpha)
        result = compare(np.zeros(size), differences, alpha=alpha)
        if min(abs(low + 0.01), abs(high - 0.01)) > 2e-4:  # a quantile interpolates between resamples
            assert result.is_equivalent == (low > -0.01 and high < 0.01)
        if abs(low + 0.01) > 2e-4:
            assert result.is_non_inferior == (low > -0.01)


def test_few_equal_queries_are_no_equivalence():
    few, enough = np.zeros(MINIMUM_QUERIES - 1), np.zeros(MINIMUM_QUERIES)
    assert not is_equivalent(few, few) and not is_non_inferior(few, few)
    assert is_equivalent(enough, enough) and is_non_inferior(enough, enough)


def test_one_query_decides_nothing():
    result = compare(np.array([0.2]), np.array([0.9]))
    assert (result.low, result.high) == (-np.inf, np.inf) and result.p == 1 and result.minimum_detectable == np.inf
    assert not result.is_equivalent and not result.is_different


def test_equal_seeds_give_equal_results():
    first, second = sample(1, 80), sample(2, 80)
    assert compare(first, second, seed=3) == compare(first, second, seed=3)
    assert compare(first, second, seed=3) != compare(first, second, seed=4)


def test_exchanging_samples_changes_the_sign():
    first, second = sample(1, 80), sample(2, 80)
    one, other = compare(first, second), compare(second, first)
    assert one.difference == -other.difference and one.p == other.p
    assert (one.low, one.high) == pytest.approx((-other.high, -other.low), abs=1e-3)


def test_minimum_detectable_difference_by_hand():
    differences = np.array([0.1, -0.1] * 50)
    deviation = 0.1 * np.sqrt(100 / 99)
    assert minimum_detectable_difference(differences) == pytest.approx((1.959964 + 0.841621) * deviation / 10, rel=1e-5)


def test_power_at_the_minimum_detectable_difference():
    found = 0
    for seed in range(200):
        noise = sample(seed, 50)
        found += randomisation_test(noise + 2.8016 * 0.1 / np.sqrt(50), 499, seed) <= 0.05
    assert 140 <= found <= 177  # 160 expected


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1, 1] and holm([]) == []


@pytest.mark.parametrize(
    ("first", "second", "settings", "message"),
    [
        (np.zeros(3), np.zeros(4), {}, "same queries"),
        ([np.zeros(3)], [np.zeros(3), np.zeros(2)], {}, "same queries"),
        (np.zeros(0), np.zeros(0), {}, "at least one query"),
        (np.array([np.nan]), np.zeros(1), {}, "finite"),
        (np.zeros(3), np.zeros(3), {"margin": 0}, "margin"),
        (np.zeros(3), np.zeros(3), {"alpha": 0.7}, "alpha"),
        (np.zeros(3), np.zeros(3), {"resamples": 0}, "resamples"),
    ],
)
def test_wrong_input_is_a_one_line_error(first, second, settings, message):
    with pytest.raises(ConfigError, match=message) as error:
        compare(first, second, **settings)
    assert "\n" not in str(error.value)
