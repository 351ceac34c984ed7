import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.nn.policies import (
    choose,
    encode,
    explore_with_noise,
    make_encoders,
    make_heads,
    smooth_target,
)

FEATURES = 8


@pytest.fixture(scope="module")
def encoders(spec, scramble):
    return scramble(
        jax.jit(lambda k: make_encoders(spec, (16, FEATURES), True, k))(jax.random.key(0)), seed=0
    )


@pytest.fixture(scope="module")
def heads(spec):
    return make_heads(spec, FEATURES, jax.random.key(1))


@pytest.fixture(scope="module")
def act(spec):
    return jax.jit(lambda encoders, heads, obs: choose(heads, encode(encoders, obs), spec))


def test_actions_equal_their_equations(act, encoders, heads, make_batch, spec, reference):
    obs = make_batch(spec, 7).now.obs
    expected = reference.actions(
        reference.doubles(encoders), reference.doubles(heads), np.asarray(obs), spec
    )
    np.testing.assert_allclose(act(encoders, heads, obs), expected, atol=1e-5)


def test_one_timestep_gives_the_row_of_its_batch(act, encoders, heads, make_batch, spec):
    obs = make_batch(spec, 4).now.obs
    one, stacked = act(encoders, heads, obs[2]), act(encoders, heads, obs[None])
    np.testing.assert_allclose(one, act(encoders, heads, obs)[2], atol=1e-6)
    np.testing.assert_allclose(stacked[0], act(encoders, heads, obs), atol=1e-6)


@pytest.mark.parametrize("seen", [0, 1, 2])
def test_an_agent_acts_on_its_own_observation_alone(act, encoders, heads, make_batch, spec, seen):
    obs = make_batch(spec, 4).now.obs
    change = act(encoders, heads, obs.at[:, seen].add(1.0)) - act(encoders, heads, obs)
    for agent in range(3):
        if agent == seen:
            assert np.abs(change[:, agent]).max() > 1e-3
        else:
            np.testing.assert_array_equal(change[:, agent], 0.0)


def test_agents_share_no_parameters(act, encoders, heads, make_batch, spec):
    obs = make_batch(spec, 4).now.obs
    before = act(encoders, heads, obs)
    other_head = eqx.tree_at(lambda h: h.weight, heads, heads.weight.at[1].add(1.0))
    other_encoder = jax.tree.map(lambda leaf: leaf.at[1].add(0.5), encoders)
    for after in (act(encoders, other_head, obs), act(other_encoder, heads, obs)):
        np.testing.assert_array_equal(after[:, [0, 2]], before[:, [0, 2]])
        assert np.abs(after[:, 1] - before[:, 1]).max() > 1e-3


def test_padded_actions_are_zero_whatever_their_weights(act, encoders, heads, make_batch, spec):
    obs = make_batch(spec, 4).now.obs
    garbage = eqx.tree_at(lambda h: h.bias, heads, heads.bias.at[1, 1].set(5.0))
    action = act(encoders, garbage, obs)
    np.testing.assert_array_equal(action[:, 1, 1], 0.0)
    np.testing.assert_array_equal(action, act(encoders, heads, obs))
    assert np.all(action[:, [0, 0, 1, 2, 2], [0, 1, 0, 0, 1]] != 0)


def test_heads_may_start_at_a_tenth(spec):
    full, tenth = (make_heads(spec, FEATURES, jax.random.key(3), scale=s) for s in (1.0, 0.1))
    for leaf, small in zip(jax.tree.leaves(full), jax.tree.leaves(tenth), strict=True):
        np.testing.assert_allclose(leaf, 10 * np.asarray(small), rtol=1e-5)
        assert np.abs(leaf).max() <= FEATURES**-0.5
    assert full.weight.shape == (3, FEATURES, 2)
    assert not np.any(full.weight[0] == full.weight[1])


def test_exploring_adds_noise_of_its_deviation_within_bounds(spec):
    action = jnp.array([[0.0, 0.95], [-0.2, 0.0], [-1.0, 0.5]])
    explore = jax.jit(jax.vmap(lambda k: explore_with_noise(action, 0.1, spec, k)))
    noisy = np.asarray(explore(jax.random.split(jax.random.key(0), 4000)))
    assert np.abs(noisy).max() == 1.0
    np.testing.assert_array_equal(noisy[:, 1, 1], 0.0)
    free = noisy[:, [0, 1], [0, 0]]  # those far from the bounds
    np.testing.assert_allclose(free.mean(0), [0.0, -0.2], atol=0.01)
    np.testing.assert_allclose(free.std(0), 0.1, atol=0.006)
    assert abs(np.corrcoef(free.T)[0, 1]) < 0.08
    assert np.mean(noisy[:, 2, 0] == -1.0) == pytest.approx(0.5, abs=0.05)


def test_target_smoothing_clips_the_noise_and_then_the_action(spec):
    action = jnp.broadcast_to(jnp.array([[0.0, 0.9], [-0.2, 0.0], [-1.0, 0.3]]), (4000, 3, 2))
    smooth = np.asarray(smooth_target(action, 0.2, 0.3, spec, jax.random.key(0)))
    noise = smooth - np.asarray(action)
    np.testing.assert_array_equal(noise[:, 1, 1], 0.0)
    assert np.abs(noise).max() <= 0.3 + 1e-6 and np.abs(smooth).max() <= 1.0
    free = noise[:, [0, 2], [0, 1]]
    clipped = np.clip(0.2 * np.random.default_rng(0).normal(size=100_000), -0.3, 0.3)
    np.testing.assert_allclose(free.std(0), clipped.std(), atol=0.01)
    assert np.mean(np.isclose(np.abs(free), 0.3)) == pytest.approx(
        np.mean(np.abs(clipped) == 0.3), abs=0.02
    )
    assert abs(np.corrcoef(free.T)[0, 1]) < 0.08


def test_no_deviation_leaves_the_target_action_as_it_is(spec):
    action = jnp.full((2, 3, 2), 0.4)
    np.testing.assert_array_equal(smooth_target(action, 0.0, 0.5, spec, jax.random.key(0)), action)
