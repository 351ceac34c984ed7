import jax
import jax.numpy as jnp
import numpy as np

from comarl.ops.information import jensen_shannon_gap, value_weights


def test_the_gap_equals_a_double_loop(slow):
    scores = 3 * np.random.default_rng(0).normal(size=(6, 6))
    gap = jax.jit(jensen_shannon_gap)(jnp.asarray(scores, jnp.float32))
    np.testing.assert_allclose(gap, slow.gaps(scores), atol=1e-5)


def test_the_gap_by_hand():
    """Row 0: mismatched log(1 + 3) - log 2, matched log 2 - log(1 + 1/2); row 1: 0 and log 2 - log(1 + 4)."""
    scores = jnp.log(jnp.array([[2.0, 3.0], [1.0, 0.25]]))
    expected = [np.log(4 / 2) - np.log(2 / 1.5), np.log(2 / 2) - np.log(2 / 5)]
    np.testing.assert_allclose(jensen_shannon_gap(scores), expected, rtol=1e-5)


def test_scores_of_zero_have_no_gap():
    np.testing.assert_allclose(jensen_shannon_gap(jnp.zeros((5, 5))), np.zeros(5), atol=1e-6)


def test_scores_that_tell_pairs_apart_have_a_negative_gap_bounded_by_two_log_two():
    gap = jensen_shannon_gap(jnp.where(jnp.eye(4, dtype=bool), 40.0, -40.0))
    np.testing.assert_allclose(gap, np.full(4, -2 * np.log(2)), rtol=1e-5)


def test_the_gap_stays_finite_at_extreme_scores():
    value, gradient = jax.value_and_grad(lambda s: jensen_shannon_gap(s).mean())(jnp.full((3, 3), 1e4))
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_value_weights_run_from_0_at_the_worst_state_to_1_at_the_best():
    weights = value_weights(jnp.array([3.0, -1.0, 1.0, 7.0]))
    np.testing.assert_allclose(weights, [0.5, 0.0, 0.25, 1.0], atol=1e-6)


def test_value_weights_of_equal_values_are_finite():
    weights = value_weights(jnp.full(5, 2.5))
    assert np.isfinite(weights).all() and np.all((weights >= 0) & (weights <= 1))
