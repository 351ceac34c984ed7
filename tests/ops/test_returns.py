"""TD(lambda) returns against the forward view, summed up term by term, for every way in which an
episode ends."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.ops.returns import lambda_returns, masked_mean, one_step_targets, td_metrics

HORIZON = 6
ENDINGS = ("terminated", "truncated early", "truncated at the horizon")


@functools.partial(jax.jit, static_argnums=4)
def returns(reward, discount, next_value, mask, td_lambda):
    one = functools.partial(lambda_returns, td_lambda=td_lambda)
    return jax.vmap(one)(reward, discount, next_value, mask)


def forward_view(reward, discount, next_value, td_lambda):
    """Sutton & Barto (2018), Eq. 12.3 of an episode without padding: every n-step return and its
    weight in the sum."""
    length, result = len(reward), []
    for t in range(length):
        n_step = []  # returns that take n rewards, then the value of what they led to
        for n in range(1, length - t + 1):
            total, factor = 0.0, 1.0
            for k in range(t, t + n):
                total += factor * reward[k]
                factor *= discount[k]
            n_step.append(total + factor * next_value[t + n - 1])
        weights = [(1 - td_lambda) * td_lambda**n for n in range(len(n_step) - 1)] + [
            td_lambda ** (len(n_step) - 1)
        ]
        result.append(sum(w * g for w, g in zip(weights, n_step, strict=True)))
    return result


@pytest.fixture(scope="module")
def episodes():
    """Twenty of each ending; the discount differs from step to step. What is masked is not a
    number."""
    random = np.random.default_rng(0)
    size, rows = (60, HORIZON), []
    reward, next_value = random.normal(size=size), random.normal(size=size)
    discount = random.uniform(0.3, 1.0, size)
    mask = np.zeros(size, bool)
    for i, (ending, _) in enumerate(itertools.product(ENDINGS, range(20))):
        length = HORIZON if ending == "truncated at the horizon" else random.integers(1, HORIZON)
        mask[i, :length] = True
        if ending == "terminated":
            discount[i, length - 1] = 0.0
        rows.append((ending, length))
    return reward, discount, next_value, mask, rows


@pytest.mark.parametrize("td_lambda", [0.0, 0.4, 0.9, 1.0])
def test_lambda_returns_are_the_weighted_sum_of_all_n_step_returns(episodes, td_lambda):
    reward, discount, next_value, mask, rows = episodes
    arrays = (reward, discount, next_value)
    first, second, third = (jnp.asarray(x, jnp.float32) for x in arrays)
    found = np.asarray(returns(first, second, third, jnp.asarray(mask), td_lambda))
    for i, (ending, length) in enumerate(rows):
        r, d, v = (x[i, :length] for x in arrays)
        expected = forward_view(r, d, v, td_lambda)
        np.testing.assert_allclose(
            found[i, :length], expected, atol=1e-5, err_msg=f"{ending} after {length}"
        )


@pytest.mark.parametrize("garbage", [1e30, np.nan, np.inf])
def test_what_stands_after_the_end_does_not_matter(episodes, garbage):
    *arrays, mask, _ = episodes
    as_jax = lambda x: jnp.asarray(x, jnp.float32)
    clean = returns(*(as_jax(np.where(mask, x, 0.0)) for x in arrays), jnp.asarray(mask), 0.4)
    dirty = returns(*(as_jax(np.where(mask, x, garbage)) for x in arrays), jnp.asarray(mask), 0.4)
    np.testing.assert_array_equal(np.asarray(dirty)[mask], np.asarray(clean)[mask])


def test_lambda_zero_looks_one_step_ahead_and_lambda_one_to_the_end():
    """Rewards 1, 2, 4; discounts 1/2, 1/2, 1/4; values 10, 20, 40 of what follows; padded by two
    steps."""
    pad = lambda *x: jnp.array([[*x, 1e9, 1e9]])
    arrays = pad(1.0, 2.0, 4.0), pad(0.5, 0.5, 0.25), pad(10.0, 20.0, 40.0), jnp.arange(5)[None] < 3
    np.testing.assert_allclose(returns(*arrays, 0.0)[0, :3], [6.0, 12.0, 14.0])
    # The end is worth 4 + 40 / 4 = 14, before it 2 + 14 / 2 = 9, and first 1 + 9 / 2 = 5.5.
    np.testing.assert_allclose(returns(*arrays, 1.0)[0, :3], [5.5, 9.0, 14.0])
    # Half of each: 2 + (20 + 14) / 4 = 10.5, 1 + (10 + 10.5) / 4 = 6.125.
    np.testing.assert_allclose(returns(*arrays, 0.5)[0, :3], [6.125, 10.5, 14.0])


def test_no_value_follows_termination():
    arrays = (
        jnp.ones((1, 2)),
        jnp.array([[0.5, 0.0]]),
        jnp.array([[7.0, 1e9]]),
        jnp.ones((1, 2), bool),
    )
    np.testing.assert_allclose(returns(*arrays, 1.0)[0], [1.5, 1.0])


def test_a_masked_mean_is_that_of_what_took_place_and_0_of_nothing():
    x = jnp.array([[1.0, 5.0, jnp.nan], [3.0, jnp.inf, -1e30]])
    mask = jnp.array([[True, True, False], [True, False, False]])
    assert float(masked_mean(x, mask)) == 3.0
    assert float(masked_mean(x, jnp.zeros_like(mask))) == 0.0


def test_a_step_that_time_cut_is_followed_by_a_value_and_a_terminated_one_is_not():
    reward, terminated = jnp.array([1.0, 1.0]), jnp.array([False, True])
    target = lambda value: one_step_targets(reward, terminated, value, 0.9)
    np.testing.assert_allclose(target(jnp.array([10.0, jnp.nan])), [10.0, 1.0])
    slope = jax.grad(lambda value: target(value).sum())(jnp.ones(2))
    np.testing.assert_array_equal(slope, 0.0)


def test_metrics_of_a_td_error_are_over_the_steps_that_took_place():
    q, target = jnp.array([[1.0, 2.0, jnp.nan]]), jnp.array([[4.0, 1.0, jnp.inf]])
    found = td_metrics(q, target, jnp.array([[True, True, False]]))
    assert {name: float(value) for name, value in found.items()} == {
        "q_taken_mean": 1.5,
        "target_value": 2.5,
        "td_error_abs": 2.0,
    }
    assert td_metrics(q[:, :2], target[:, :2]) == found
