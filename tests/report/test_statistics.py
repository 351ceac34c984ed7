"""Statistics against rliable, scipy and numbers worked out by hand."""

import warnings

import numpy as np
import pytest
import scipy.stats

from comarl.reporting import statistics

SCORES = np.random.default_rng(0).normal(size=(10, 3)) + np.array([0.0, 1.0, 5.0])
OTHERS = np.random.default_rng(1).normal(size=(7, 3)) + np.array([0.5, 1.0, 4.0])


@pytest.fixture(scope="module")
def rliable():
    with warnings.catch_warnings():  # of its own dependencies
        warnings.simplefilter("ignore")
        from rliable import library, metrics
    return library, metrics


@pytest.mark.parametrize("runs", [1, 2, 3, 4, 5, 7, 10])
def test_mean_median_and_iqm_are_those_of_rliable(rliable, runs):
    scores = SCORES[:runs]
    assert statistics.mean(scores) == pytest.approx(rliable[1].aggregate_mean(scores), abs=1e-12)
    assert statistics.median(scores) == pytest.approx(
        rliable[1].aggregate_median(scores), abs=1e-12
    )
    assert statistics.iqm(scores) == pytest.approx(rliable[1].aggregate_iqm(scores), abs=1e-12)


def test_the_iqm_leaves_out_the_lowest_and_the_highest_quarter():
    assert (
        statistics.iqm(np.array([[-1000.0], [1.0], [2.0], [3.0], [4.0], [5.0], [6.0], [1000.0]]))
        == 3.5
    )
    # A quarter of three runs is no run
    assert statistics.iqm(np.array([[1.0], [2.0], [6.0]])) == 3.0


def test_the_probability_of_improvement_is_that_of_rliable_also_with_ties_and_unequal_seeds(
    rliable,
):
    expected = rliable[1].probability_of_improvement
    for x, y in [
        (SCORES, OTHERS),
        (OTHERS, SCORES),
        (SCORES.round(), OTHERS.round()),
        (SCORES, SCORES),
    ]:
        assert statistics.probability_of_improvement(x, y) == pytest.approx(
            expected(x, y), abs=1e-12
        )


def test_the_probability_of_improvement_counts_a_tie_as_half():
    # pairs of (2, 3) with (1, 3): 2>1, 2<3, 3>1, 3=3
    assert (
        statistics.probability_of_improvement(np.array([[2.0], [3.0]]), np.array([[1.0], [3.0]]))
        == 2.5 / 4
    )


@pytest.mark.parametrize("name", ["iqm", "mean", "median"])
def test_the_bootstrap_interval_is_that_of_rliable_within_monte_carlo_error(rliable, name):
    expected = getattr(rliable[1], f"aggregate_{name}")
    np.random.seed(0)  # rliable draws from the global generator
    _, intervals = rliable[0].get_interval_estimates(
        {"x": SCORES}, lambda x: np.array([expected(x)]), reps=4000
    )
    interval = statistics.bootstrap_interval(getattr(statistics, name), SCORES, reps=4000)
    np.testing.assert_allclose(interval, intervals["x"][:, 0], atol=0.05)
    assert np.diff(interval)[0] > 0.5  # so that the tolerance is a small part of it


def test_the_bootstrap_of_two_algorithms_is_that_of_rliable_within_monte_carlo_error(rliable):
    np.random.seed(0)
    expected = lambda x, y: np.array([rliable[1].probability_of_improvement(x, y)])
    _, intervals = rliable[0].get_interval_estimates({"x": [SCORES, OTHERS]}, expected, reps=1000)
    interval = statistics.bootstrap_interval(
        statistics.probability_of_improvement, SCORES, OTHERS, reps=4000
    )
    np.testing.assert_allclose(interval, intervals["x"][:, 0], atol=0.03)


def test_the_bootstrap_gives_the_same_interval_again_and_another_with_another_seed():
    first, again, other = (
        statistics.bootstrap_interval(statistics.iqm, SCORES, reps=200, seed=s) for s in (0, 0, 1)
    )
    assert first == again
    assert first != other


def test_the_bootstrap_resamples_within_a_task_and_never_across():
    scores = np.array([[0.0, 100.0], [0.0, 100.0], [0.0, 100.0]])
    assert statistics.bootstrap_interval(statistics.mean, scores, reps=100) == (50.0, 50.0)


def test_one_seed_has_no_interval():
    assert np.isnan(statistics.bootstrap_interval(statistics.mean, np.array([[3.0]]))).all()
    assert np.isnan(
        statistics.bootstrap_interval(statistics.probability_of_improvement, SCORES, SCORES[:1])
    ).all()
    assert np.isnan(statistics.t_interval(np.array([3.0]))).all()
    low, high, name = statistics.band(np.array([[1.0, 2.0]]))
    assert np.isnan([low, high]).all() and low.shape == (2,) and name == "no interval"


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_the_t_interval_is_scipys_for_any_number_of_seeds(n):
    values = SCORES[:n, 0]
    expected = scipy.stats.t.interval(0.95, n - 1, loc=values.mean(), scale=scipy.stats.sem(values))
    np.testing.assert_allclose(statistics.t_interval(values), expected, rtol=1e-12)


def test_the_t_interval_of_two_seeds_has_one_degree_of_freedom():
    # mean 1, s = sqrt(2), standard error 1, t(0.975, 1) = 12.7062
    np.testing.assert_allclose(
        statistics.t_interval(np.array([0.0, 2.0])), (1 - 12.7062, 1 + 12.7062), rtol=1e-5
    )


def test_the_t_interval_of_three_seeds_by_hand():
    # mean 2, s = 1, standard error 1 / sqrt(3), t(0.975, 2) = 4.30265
    half = 4.30265 / np.sqrt(3)
    np.testing.assert_allclose(
        statistics.t_interval(np.array([1.0, 2.0, 3.0])), (2 - half, 2 + half), rtol=1e-5
    )


def test_few_seeds_are_shaded_by_their_range_and_five_by_the_interval():
    few, many = SCORES.T[:3, :4], SCORES[:5]
    low, high, name = statistics.band(few)
    np.testing.assert_array_equal([low, high], [few.min(0), few.max(0)])
    assert name == "min-max range"
    low, high, name = statistics.band(many)
    np.testing.assert_array_equal([low, high], statistics.t_interval(many))
    assert name == "95 % t interval"


def test_episodes_are_averaged_to_one_number_per_evaluation():
    means = statistics.mean_over_episodes(((1.0, 2.0, 6.0), (5.0,), ()))
    np.testing.assert_array_equal(means, [3.0, 5.0, np.nan])


def test_curves_are_interpolated_and_cut_at_the_seed_that_took_the_fewest_steps():
    steps = [np.array([10.0, 20.0, 40.0]), np.array([5.0, 30.0])]
    grid, curves = statistics.on_common_grid(
        steps, [np.array([0.0, 10.0, 30.0]), np.array([0.0, 100.0])]
    )
    # From where both have begun to where the first one ends
    np.testing.assert_array_equal(grid, [10, 20, 30])
    np.testing.assert_allclose(curves, [[0, 10, 20], [20, 60, 100]])


def test_curves_whose_ranges_do_not_meet_have_no_common_grid():
    grid, curves = statistics.on_common_grid(
        [np.array([1.0, 2.0]), np.array([3.0])], [np.ones(2), np.ones(1)]
    )
    assert grid.shape == (0,) and curves.shape == (2, 0)
