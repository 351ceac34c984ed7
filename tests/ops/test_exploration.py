import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.ops.exploration import epsilon_greedy, epsilon_softmax, greedy, linear, only_available

DRAWS = 20_000
SCORES = jnp.array([[0.5, 2.0, -1.0, 1.0], [0.0, -3.0, -2.0, -1.0]])
# The best of both is not
AVAILABLE = jnp.array([[True, False, True, True], [False, True, False, True]])


@pytest.fixture(scope="module")
def frequencies():
    """`frequencies(choose, available, epsilon)`: how often each agent chose each action."""

    @functools.partial(jax.jit, static_argnums=0)
    def counts(choose, available, epsilon):
        keys = jax.random.split(jax.random.key(0), DRAWS)
        actions = jax.vmap(lambda key: choose(SCORES, available, epsilon, key))(keys)
        return jax.nn.one_hot(actions, 4).mean(0), jax.nn.one_hot(
            4 * actions[:, 0] + actions[:, 1], 16
        ).mean(0)

    return lambda choose, available, epsilon: jax.device_get(
        counts(choose, available, jnp.float32(epsilon))
    )


def assert_drawn_from(found, probabilities):
    """Within four standard errors, and never what has no chance."""
    probabilities = np.asarray(probabilities)
    error = np.sqrt(probabilities * (1 - probabilities) / DRAWS)
    assert (np.abs(found - probabilities) <= 4 * error + 1e-6).all(), (found, probabilities)


def test_a_linear_schedule_falls_from_start_to_end_and_stays_there():
    at = lambda now, steps=100: float(linear(1.0, 0.2, steps, jnp.int32(now)))
    np.testing.assert_allclose(
        [at(0), at(25), at(50), at(100), at(10**9)], [1.0, 0.8, 0.6, 0.2, 0.2], rtol=1e-6
    )
    np.testing.assert_allclose([at(0, steps=0), at(1, steps=0)], [1.0, 0.2], rtol=1e-6)
    np.testing.assert_allclose(float(linear(0.0, 1.0, 4, jnp.int32(3))), 0.75)


def test_greedy_takes_the_best_available_action():
    assert greedy(SCORES, None).tolist() == [1, 0]
    assert greedy(SCORES, AVAILABLE).tolist() == [3, 3]
    assert greedy(SCORES, AVAILABLE).dtype == jnp.int32
    batch = jnp.stack([SCORES, -SCORES])
    assert greedy(batch, jnp.stack([AVAILABLE, AVAILABLE])).tolist() == [[3, 3], [2, 1]]


def test_greedy_takes_the_first_of_equals_that_is_available():
    equal = jnp.zeros((3, 4))
    available = jnp.array([[True] * 4, [False, True, True, True], [False, False, False, True]])
    assert greedy(equal, available).tolist() == [0, 1, 3]
    assert greedy(jnp.array([[-5e9, -4e9]]), jnp.array([[True, False]])).tolist() == [0]


def test_scores_stay_as_they_are_where_all_is_available(bits):
    assert bits(only_available(SCORES, None)) == bits(SCORES)
    assert bits(only_available(SCORES, jnp.ones((2, 4), bool))) == bits(SCORES)


def test_epsilon_greedy_is_uniform_with_chance_epsilon_and_else_the_best(frequencies):
    marginal, _ = frequencies(epsilon_greedy, AVAILABLE, 0.3)
    assert_drawn_from(marginal, [[0.1, 0.0, 0.1, 0.8], [0.0, 0.15, 0.0, 0.85]])


def test_epsilon_greedy_without_a_mask_counts_all_actions_as_available(frequencies):
    marginal, _ = frequencies(epsilon_greedy, None, 0.4)
    assert_drawn_from(marginal, [[0.1, 0.7, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1]])


@pytest.mark.parametrize(
    ("epsilon", "chances"), [(0.0, (0.0, 0.0, 0.0, 1.0)), (1.0, (1 / 3, 0.0, 1 / 3, 1 / 3))]
)
def test_epsilon_0_is_greedy_and_epsilon_1_is_uniform(frequencies, epsilon, chances):
    assert_drawn_from(frequencies(epsilon_greedy, AVAILABLE, epsilon)[0][0], chances)


@pytest.mark.parametrize("choose", [epsilon_greedy, epsilon_softmax])
def test_agents_explore_independently(frequencies, choose):
    """The joint frequencies are the products: a shared coin would make them explore together."""
    marginal, joint = frequencies(choose, None, 0.5)
    assert_drawn_from(joint, np.outer(marginal[0], marginal[1]).reshape(-1))


def test_epsilon_softmax_mixes_the_policy_with_the_uniform_one(frequencies):
    marginal, _ = frequencies(epsilon_softmax, AVAILABLE, 0.2)
    for agent in range(2):
        real = np.asarray(AVAILABLE[agent])
        weights = np.where(real, np.exp(np.asarray(SCORES[agent])), 0.0)
        assert_drawn_from(marginal[agent], 0.8 * weights / weights.sum() + 0.2 * real / real.sum())


def test_epsilon_softmax_without_epsilon_is_the_policy(frequencies):
    marginal, _ = frequencies(epsilon_softmax, None, 0.0)
    weights = np.exp(np.asarray(SCORES))
    assert_drawn_from(marginal, weights / weights.sum(1, keepdims=True))
