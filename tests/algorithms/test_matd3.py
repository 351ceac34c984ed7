import dataclasses
import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.matd3 import Matd3, State
from tests.data import CLIPPED, clipped_norms

GAMMA = 0.99


@functools.partial(jax.jit, static_argnums=0)
def update(algorithm, state, batch, clock, key):
    return algorithm.update(state, batch, clock, key)


@functools.partial(jax.jit, static_argnums=0)
def fit_critic(algorithm, state, batch, key):
    return algorithm.fit_critic(state, batch, key)


@functools.partial(jax.jit, static_argnums=(0, 3))
def act(algorithm, state, timestep, explore, clock, key):
    return algorithm.act(state, 0, (), timestep, clock, key, explore=explore)[1]


@pytest.fixture(scope="module")
def initial(matd3, spec) -> State:
    return jax.jit(lambda k: matd3.init(spec, k))(jax.random.key(0))


def apart(state: State, scramble) -> State:
    """The same state with every network changed by noise, so that no target equals what it
    follows."""
    networks = lambda s: (s.actors.value, s.critic.value, s.actors.target, s.critic.target)
    return eqx.tree_at(
        networks, state, tuple(scramble(n, seed) for seed, n in enumerate(networks(state)))
    )


@pytest.fixture(scope="module")
def state(initial, scramble) -> State:
    return apart(initial, scramble)


@pytest.fixture(scope="module")
def batch(make_batch, spec):
    return make_batch(spec)


@pytest.fixture(scope="module")
def unsmoothed(matd3) -> Matd3:
    return dataclasses.replace(matd3, target_noise=0.0)


@pytest.fixture(scope="module")
def updated(unsmoothed, state, batch, clock_at, key):
    """The states after the first update of a round, which moves the policy, and after the second,
    which does not."""
    return {i: update(unsmoothed, state, batch, clock_at(i), key) for i in (0, 1)}


@pytest.fixture(scope="module")
def target(reference, state, batch, spec):
    """y = r + gamma (1 - d) min_k Q'_k(s', mu'(o')), where the target actors do not explore."""
    actors, critic = reference.doubles(state.actors.target), reference.doubles(state.critic.target)
    action = reference.actions(actors.encoders, actors.heads, np.asarray(batch.next.obs), spec)
    return target_of(reference, critic, batch, action)


def target_of(reference, critic, batch, action):
    next_q = reference.critic(critic, np.float64(batch.next.state), action)
    result = np.zeros(len(batch.reward))
    for b in range(len(result)):
        future = 0.0 if batch.terminated[b] else GAMMA * min(next_q[:, b])
        result[b] = batch.reward[b] + future
    return result


def test_the_critic_descends_its_loss_to_the_clipped_double_q_target(
    updated, state, batch, target, reference
):
    after, metrics = updated[0]
    now, action = np.float64(batch.now.state), np.float64(batch.action)

    def loss(critic):
        return sum(np.mean((q - target) ** 2) for q in reference.critic(critic, now, action))

    np.testing.assert_allclose(
        metrics["critic_loss"], loss(reference.doubles(state.critic.value)), rtol=1e-4
    )
    np.testing.assert_allclose(metrics["target_value"], target.mean(), rtol=1e-4)
    first = reference.critic(reference.doubles(state.critic.value), now, action)[0]
    np.testing.assert_allclose(metrics["q_taken_mean"], first.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["td_error_abs"], np.abs(first - target).mean(), rtol=1e-4)
    assert metrics["td_loss"] == metrics["critic_loss"]
    reference.assert_descends(state.critic.value, after.critic.value, loss)


def test_the_target_takes_each_minimum_of_two_that_differ(state, batch, reference, spec):
    """Not the first, nor the mean: this guards the other tests' power."""
    actors, critic = reference.doubles(state.actors.target), reference.doubles(state.critic.target)
    action = reference.actions(actors.encoders, actors.heads, np.asarray(batch.next.obs), spec)
    q = reference.critic(critic, np.float64(batch.next.state), action)
    assert 0 < np.sum(q[0] < q[1]) < q.shape[1]
    assert np.abs(q[0] - q[1]).mean() > 0.05


def test_no_value_follows_termination(unsmoothed, state, batch, key):
    """Where all steps are terminated the target is the reward, whatever comes next, even if it is
    no number."""
    ended = dataclasses.replace(
        batch,
        terminated=jnp.ones(16, bool),
        next=jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), batch.next),
    )
    critic, metrics = fit_critic(unsmoothed, state, ended, key)
    np.testing.assert_allclose(metrics["target_value"], batch.reward.mean(), rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(critic))


def test_the_actors_maximise_the_first_q_with_all_actions_replaced(
    updated, state, batch, reference, spec
):
    after, _ = updated[0]
    # The critic that was just fitted
    critic, now = reference.doubles(after.critic.value), np.float64(batch.now.state)

    def loss(actors):
        return -reference.critic(
            critic,
            now,
            reference.actions(actors.encoders, actors.heads, np.asarray(batch.now.obs), spec),
        )[0].mean()

    reference.assert_descends(state.actors.value, after.actors.value, loss)


def test_padded_weights_of_a_head_never_learn(updated, state):
    after, _ = updated[0]
    np.testing.assert_array_equal(
        after.actors.value.heads.weight[1, :, 1], state.actors.value.heads.weight[1, :, 1]
    )
    np.testing.assert_array_equal(
        after.actors.value.heads.bias[1, 1], state.actors.value.heads.bias[1, 1]
    )
    assert np.all(after.actors.value.heads.bias[1, 0] != state.actors.value.heads.bias[1, 0])


def test_targets_move_by_tau_when_the_policy_does(updated, state, unsmoothed):
    after, _ = updated[0]
    for target, online, before in (
        (after.actors.target, after.actors.value, state.actors.target),
        (after.critic.target, after.critic.value, state.critic.target),
    ):
        for t, o, b in zip(*map(jax.tree.leaves, (target, online, before)), strict=True):
            np.testing.assert_allclose(
                t, np.asarray(b) + unsmoothed.tau * (np.asarray(o) - np.asarray(b)), atol=1e-6
            )
            assert np.any(t != b)


def test_between_policy_updates_only_the_critic_moves(updated, state, bits):
    after, _ = updated[1]
    assert bits(after.actors) == bits(state.actors)
    assert bits(after.critic.target) == bits(state.critic.target)
    assert bits(after.critic.learner) != bits(state.critic.learner)


def test_the_policy_update_does_not_touch_the_critic(updated, bits):
    np.testing.assert_array_equal(*(bits(updated[i][0].critic.learner) for i in (0, 1)))


@pytest.mark.parametrize(
    ("update_in_round", "moves"), [(0, True), (1, False), (2, True), (3, False)]
)
def test_the_policy_moves_every_second_update_of_a_round(
    unsmoothed, state, batch, clock_at, key, bits, update_in_round, moves
):
    after, _ = update(unsmoothed, state, batch, clock_at(update_in_round), key)
    assert (bits(after.actors) != bits(state.actors)) == moves


def test_smoothing_adds_noise_of_at_most_its_clip_to_target_actions(
    matd3, initial, scramble, spec, reference, make_batch
):
    """With a huge std the noise is plus or minus the clip, so each target is one of 32: a sign
    per real action."""
    batch = make_batch(spec, 1)
    batch = dataclasses.replace(batch, terminated=jnp.zeros(1, bool))
    state = apart(initial, scramble)
    actors, critic = reference.doubles(state.actors.target), reference.doubles(state.critic.target)
    action = reference.actions(actors.encoders, actors.heads, np.asarray(batch.next.obs), spec)
    candidates = []
    for signs in itertools.product((-0.5, 0.5), repeat=5):
        noise = np.zeros((1, 3, 2))
        noise[0, [0, 0, 1, 2, 2], [0, 1, 0, 0, 1]] = signs
        candidates.append(target_of(reference, critic, batch, np.clip(action + noise, -1, 1))[0])
    wild = dataclasses.replace(matd3, target_noise=1e9)
    nearest = []
    for k in jax.random.split(jax.random.key(1), 12):
        found = float(fit_critic(wild, state, batch, k)[1]["target_value"])
        nearest.append(int(np.argmin(np.abs(np.array(candidates) - found))))
        np.testing.assert_allclose(found, candidates[nearest[-1]], atol=1e-5)
    assert len(set(nearest)) > 4


def test_smoothing_without_clip_is_no_smoothing(matd3, unsmoothed, state, batch, key, bits):
    silent = dataclasses.replace(matd3, target_noise_clip=0.0)
    plain, same = (
        fit_critic(a, state, batch, key)[1]["target_value"] for a in (unsmoothed, silent)
    )
    smoothed = fit_critic(matd3, state, batch, key)[1]["target_value"]
    np.testing.assert_allclose(plain, same, rtol=1e-6)
    assert abs(plain - smoothed) > 1e-4


def test_the_order_of_a_batch_does_not_matter(unsmoothed, updated, state, batch, clock_at, key):
    shuffled = jax.tree.map(
        lambda x: x[jnp.asarray(np.random.default_rng(0).permutation(16))], batch
    )
    after, metrics = update(unsmoothed, state, shuffled, clock_at(0), key)
    for one, two in zip(*map(jax.tree.leaves, ((after, metrics), updated[0])), strict=True):
        np.testing.assert_allclose(one, two, atol=2e-5)


def test_with_one_critic_there_is_no_delay_and_no_smoothing_left(
    matd3, spec, batch, clock_at, reference, scramble
):
    plain = dataclasses.replace(matd3, critics=1, policy_delay=1, target_noise=0.0)
    state = apart(jax.jit(lambda k: plain.init(spec, k))(jax.random.key(0)), scramble)
    # The second update of a round
    after, metrics = update(plain, state, batch, clock_at(1), jax.random.key(0))
    assert np.all(after.actors.value.heads.bias[0] != state.actors.value.heads.bias[0])
    actors, critic = reference.doubles(state.actors.target), reference.doubles(state.critic.target)
    action = reference.actions(actors.encoders, actors.heads, np.asarray(batch.next.obs), spec)
    target = target_of(reference, critic, batch, action)
    q = reference.critic(
        reference.doubles(state.critic.value), np.float64(batch.now.state), np.float64(batch.action)
    )
    assert q.shape[0] == 1
    np.testing.assert_allclose(metrics["critic_loss"], np.mean((q[0] - target) ** 2), rtol=1e-4)
    other, _ = update(plain, state, batch, clock_at(1), jax.random.key(9))
    np.testing.assert_array_equal(
        other.critic.value.critics.output.bias, after.critic.value.critics.output.bias
    )


def test_greedy_action_is_the_actors_and_needs_no_key(
    matd3, state, batch, spec, clock_at, reference
):
    timestep = jax.tree.map(lambda x: x[0], batch.now)
    one, two = (
        act(matd3, state, timestep, False, clock_at(0), jax.random.key(i)) for i in range(2)
    )
    np.testing.assert_array_equal(one, two)
    actors = reference.doubles(state.actors.value)
    expected = reference.actions(actors.encoders, actors.heads, np.asarray(batch.now.obs[:1]), spec)
    np.testing.assert_allclose(one, expected[0], atol=1e-5)
    assert one[1, 1] == 0


def test_exploring_stays_within_bounds_and_leaves_padding_zero(matd3, state, batch, clock_at):
    wild = dataclasses.replace(matd3, exploration_noise=2.0)
    timestep = jax.tree.map(lambda x: x[0], batch.now)
    actions = np.stack(
        [act(wild, state, timestep, True, clock_at(0), jax.random.key(i)) for i in range(20)]
    )
    assert np.abs(actions).max() == 1.0
    np.testing.assert_array_equal(actions[:, 1, 1], 0.0)
    assert len(np.unique(actions[:, 0, 0])) > 5


def test_targets_start_equal_and_heads_start_small(initial, bits, matd3):
    assert bits(initial.actors.target) == bits(initial.actors.value)
    assert bits(initial.critic.target) == bits(initial.critic.value)
    assert np.abs(initial.actors.value.heads.weight).max() <= 0.1 / matd3.hidden[-1] ** 0.5
    assert initial.critic.value.critics.output.bias.shape == (2, 1)


def test_each_agents_actor_is_clipped_by_a_norm_of_its_own(unsmoothed, spec, state, batch, key):
    clipped = dataclasses.replace(unsmoothed, actor_optimiser=CLIPPED)
    fresh = jax.jit(lambda k: clipped.init(spec, k))(key)
    before = dataclasses.replace(fresh, critic=state.critic)
    after = jax.jit(clipped.fit_actors)(before, batch)
    norms = clipped_norms(before.actors.value, after.actors.value)
    np.testing.assert_allclose(norms, [CLIPPED.max_grad_norm] * 3, rtol=1e-3)


def test_with_relu_actors_and_critics_have_it_in_every_hidden_layer(matd3, spec, batch):
    """As TD3's networks: in NumPy, for one agent and the first critic; last layers start whole."""
    plain = dataclasses.replace(matd3, layer_norm=False, activation="relu", output_scale=1.0)
    state = jax.jit(lambda k: plain.init(spec, k))(jax.random.key(3))

    def network(torso, output, x):
        for layer in torso.layers:
            x = np.maximum(x @ np.asarray(layer.weight) + np.asarray(layer.bias), 0.0)
        assert np.abs(output.weight).max() > 0.5 / np.sqrt(plain.hidden[-1])
        return x @ np.asarray(output.weight) + np.asarray(output.bias)

    first = jax.tree.map(lambda leaf: leaf[0], (state.actors.value, state.critic.value.critics))
    action = np.tanh(network(first[0].encoders, first[0].heads, np.asarray(batch.now.obs[:, 0])))
    np.testing.assert_allclose(state.actors.value(batch.now.obs)[:, 0], action, atol=1e-6)
    x = np.concatenate([batch.now.state, batch.action.reshape(len(batch.action), -1)], axis=1)
    q = network(first[1].torso, first[1].output, x)[:, 0]
    np.testing.assert_allclose(state.critic.value(batch.now.state, batch.action)[0], q, atol=1e-5)
