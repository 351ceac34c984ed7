import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.ops.information import jensen_shannon_gap, team_gaps, value_weights


def test_the_gap_equals_a_double_loop(reference):
    scores = 3 * np.random.default_rng(0).normal(size=(6, 6))
    gap = jax.jit(jensen_shannon_gap)(jnp.asarray(scores, jnp.float32))
    np.testing.assert_allclose(gap, reference.gaps(scores), atol=1e-5)


def test_the_gap_by_hand():
    """Row 0: mismatched log(1 + 3) - log 2, matched log 2 - log(1 + 1/2); row 1: 0 and log 2 -
    log(1 + 4)."""
    scores = jnp.log(jnp.array([[2.0, 3.0], [1.0, 0.25]]))
    expected = [np.log(4 / 2) - np.log(2 / 1.5), np.log(2 / 2) - np.log(2 / 5)]
    np.testing.assert_allclose(jensen_shannon_gap(scores), expected, rtol=1e-5)


def test_scores_of_zero_have_no_gap():
    np.testing.assert_allclose(jensen_shannon_gap(jnp.zeros((5, 5))), np.zeros(5), atol=1e-6)


def test_scores_that_tell_pairs_apart_have_a_negative_gap_bounded_by_two_log_two():
    gap = jensen_shannon_gap(jnp.where(jnp.eye(4, dtype=bool), 40.0, -40.0))
    np.testing.assert_allclose(gap, np.full(4, -2 * np.log(2)), rtol=1e-5)


def test_the_gap_stays_finite_at_extreme_scores():
    value, gradient = jax.value_and_grad(lambda s: jensen_shannon_gap(s).mean())(
        jnp.full((3, 3), 1e4)
    )
    assert np.isfinite(value) and np.isfinite(gradient).all()


def test_value_weights_run_from_0_at_the_worst_state_to_1_at_the_best():
    weights = value_weights(jnp.array([3.0, -1.0, 1.0, 7.0]))
    np.testing.assert_allclose(weights, [0.5, 0.0, 0.25, 1.0], atol=1e-6)


def test_value_weights_of_equal_values_are_finite():
    weights = value_weights(jnp.full(5, 2.5))
    assert np.isfinite(weights).all() and np.all((weights >= 0) & (weights <= 1))


def test_weights_of_what_a_mask_leaves_out_are_0_and_it_has_no_part_in_the_scale():
    values = jnp.array([[3.0, -1.0, 900.0], [-900.0, 1.0, 7.0]])
    mask = jnp.array([[True, True, False], [False, True, True]])
    np.testing.assert_allclose(
        value_weights(values, mask), [[0.5, 0.0, 0.0], [0.0, 0.25, 1.0]], atol=1e-6
    )


def test_weights_under_a_mask_of_equal_values_or_of_nothing_are_finite():
    for mask in (jnp.array([True, False]), jnp.array([False, False])):
        weights = value_weights(jnp.array([2.0, 5.0]), mask)
        assert np.isfinite(weights).all() and np.all((weights >= 0) & (weights <= 1))


def test_a_teams_gap_by_hand():
    """Three episodes, of which the second is over, of two agents. exp(scores) are written down, sp
    is log(1 + .).

    Of state 0 the only counterexamples are the agents of episode 2: mean(log 4, log 8) - log 2; its
    own agents match it at log 2 - log(1 + 1/1) and log 2 - log(1 + 1/4). What its own or the dead
    episode's agents score elsewhere is no matter.
    """
    e = np.full((3, 3, 2), 1e9)
    e[0, 2], e[0, 0] = (3, 7), (1, 4)
    e[2, 0], e[2, 2] = (1, 3), (2, 0.5)
    gaps = team_gaps(jnp.log(jnp.asarray(e, jnp.float32)), jnp.array([True, False, True]))
    log = np.log
    first, last = (log(4) + log(8)) / 2 - log(2), (log(2) + log(4)) / 2 - log(2)
    own = [[log(2) - log(1 + 1 / x) for x in pair] for pair in ((1, 4), (2, 0.5))]
    expected = [[first - x for x in own[0]], [0.0, 0.0], [last - x for x in own[1]]]
    np.testing.assert_allclose(gaps, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mask", [(1, 1, 1, 1), (1, 0, 1, 1), (0, 1, 0, 1)])
def test_a_teams_gaps_equal_the_loops(reference, mask):
    scores = 3 * np.random.default_rng(0).normal(size=(4, 4, 3))
    mask = np.array(mask, bool)
    gaps = jax.jit(team_gaps)(jnp.asarray(scores, jnp.float32), jnp.asarray(mask))
    np.testing.assert_allclose(gaps, reference.team_gaps(scores, mask), atol=1e-5)


def test_with_one_agent_a_teams_gap_is_the_gap():
    scores = jnp.asarray(np.random.default_rng(1).normal(size=(5, 5)), jnp.float32)
    gaps = team_gaps(scores[..., None], jnp.ones(5, bool))
    np.testing.assert_allclose(gaps[:, 0], jensen_shannon_gap(scores), atol=1e-6)


def test_agents_of_one_episode_are_no_counterexamples_to_each_other():
    scores = jnp.asarray(np.random.default_rng(2).normal(size=(3, 3, 2)), jnp.float32)
    before = np.asarray(team_gaps(scores, jnp.ones(3, bool)))
    after = np.asarray(team_gaps(scores.at[1, 1, 0].add(5.0), jnp.ones(3, bool)))
    np.testing.assert_array_equal(before != after, [[False, False], [True, False], [False, False]])


def test_the_last_live_episode_has_no_gap_and_what_is_over_gets_no_gradient():
    scores = jnp.asarray(np.random.default_rng(3).normal(size=(3, 3, 2)), jnp.float32)
    np.testing.assert_array_equal(
        team_gaps(scores, jnp.array([False, True, False])), np.zeros((3, 2))
    )
    slope = jax.grad(lambda s: team_gaps(s, jnp.array([True, True, False])).sum())(
        scores.at[2].set(1e30)
    )
    assert (
        np.isfinite(slope).all()
        and not slope[2].any()
        and not slope[:, 2].any()
        and slope[:2, :2].all()
    )
