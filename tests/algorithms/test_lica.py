"""LICA against the docstring's equations in NumPy, and its properties."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.lica import Critic, Lica, State
from comarl.algorithms.presets import LICA_PYMARL2
from comarl.types import Clock, EnvSpec
from tests.data import SMOOTH, make_episodes

SPEC = EnvSpec(2, 3, 4, 3, discrete=True, horizon=5)
# Terminated early, cut at the horizon, cut early, terminated at its end
LENGTHS, TERMINATED = (2, 5, 3, 5), (0, 3)
GAMMA = 0.9
LICA = Lica(
    hidden=4,
    critic_width=3,
    hypernet=4,
    gamma=GAMMA,
    td_lambda=0.7,
    entropy_weight=0.3,
    target_period=3,
    actor_optimiser=SMOOTH,
    critic_optimiser=SMOOTH,
)
NETWORKS = lambda s: (s.actor.value, s.critic.value, s.critic.target)


@functools.partial(jax.jit, static_argnums=0)
def update(algorithm, state, batch, number, key):
    return algorithm.update(state, batch, Clock(jnp.int32(1000), number, jnp.int32(0)), key)


@pytest.fixture(scope="module")
def batch():
    return make_episodes(SPEC, LENGTHS, TERMINATED)


@pytest.fixture(scope="module")
def state(scramble) -> State:
    state = jax.jit(lambda key: LICA.init(SPEC, key))(jax.random.key(0))
    return eqx.tree_at(
        NETWORKS, state, tuple(scramble(n, i, 0.6) for i, n in enumerate(NETWORKS(state)))
    )


@pytest.fixture(scope="module")
def updated(state, batch, key):
    return update(LICA, state, batch, jnp.int32(0), key)


class Equations:
    """Critic, targets and losses in NumPy."""

    def __init__(self, reference, state, batch):
        self.reference, self.batch, self.state = reference, batch, reference.doubles(state)
        self.states, self.available = (
            np.float64(batch.timesteps.state),
            np.asarray(batch.timesteps.available),
        )

    def q(self, critic, state, policy):
        """Of one step."""
        net = lambda mlp: self.reference.mlp(mlp, state, self.reference.relu)
        first = net(critic.first_weights).reshape(-1, critic.width)
        hidden = sum(policy.reshape(-1)[j] * first[j] for j in range(len(first)))
        hidden = self.reference.relu(
            hidden + state @ critic.first_bias.weight + critic.first_bias.bias
        )
        return hidden @ net(critic.second_weights) + net(critic.second_bias)[0]

    def logits(self, actor):
        return (
            self.reference.histories(actor.encoder, SPEC, self.batch) @ actor.head.weight
            + actor.head.bias
        )

    def target(self, td_lambda, key):
        """A draw stands for the action that a cut episode did not take."""
        logits = self.logits(self.state.actor.value)
        scores = logits + self.reference.gumbel(key, logits.shape)
        drawn = np.where(self.available, scores, -np.inf).argmax(-1)
        next_q = np.zeros(self.batch.reward.shape)
        for b, length in enumerate(LENGTHS):
            for t in range(length):
                action = (
                    np.asarray(self.batch.action)[b, t + 1] if t + 1 < length else drawn[b, t + 1]
                )
                next_q[b, t] = self.q(
                    self.state.critic.target, self.states[b, t + 1], np.eye(3)[action]
                )
        return self.reference.lambda_targets(self.batch, next_q, GAMMA, td_lambda)

    def critic_loss(self, critic, target):
        taken = np.eye(3)[np.asarray(self.batch.action)]
        steps = [(b, t) for b, length in enumerate(LENGTHS) for t in range(length)]
        return np.mean([(self.q(critic, self.states[s], taken[s]) - target[s]) ** 2 for s in steps])

    def value_and_entropy(self, actor, critic):
        logits, values, entropies = self.logits(actor), [], []
        for b, length in enumerate(LENGTHS):
            for t in range(length):
                e = np.where(self.available[b, t], np.exp(logits[b, t]), 0.0)
                policy = e / e.sum(-1, keepdims=True)
                values.append(self.q(critic, self.states[b, t], policy))
                entropies += [-(p[p > 0] * np.log(p[p > 0])).sum() for p in policy]
        return np.mean(values), np.mean(entropies)


@pytest.fixture(scope="module")
def equations(reference, state, batch) -> Equations:
    return Equations(reference, state, batch)


@pytest.mark.parametrize("td_lambda", [0.7, 0.0])
def test_the_critic_descends_to_the_lambda_return_of_what_was_done(
    td_lambda, state, batch, equations, reference, key
):
    algorithm = dataclasses.replace(LICA, td_lambda=td_lambda)
    critic, metrics = jax.jit(algorithm.fit_critic)(state, batch, key)
    target = equations.target(td_lambda, key)
    loss = lambda c: equations.critic_loss(c, target)
    np.testing.assert_allclose(
        metrics["target_value"], reference.masked_mean(target, batch.mask), rtol=1e-4
    )
    np.testing.assert_allclose(
        metrics["critic_loss"], loss(reference.doubles(state.critic.value)), rtol=1e-4
    )
    reference.assert_descends(state.critic.value, critic.value, loss, entries=4)


def test_the_actors_maximise_the_fitted_critic_through_their_policies_and_their_adaptive_entropy(
    updated, state, equations, reference
):
    after, metrics = updated
    critic = reference.doubles(after.critic.value)
    _, before = equations.value_and_entropy(equations.state.actor.value, critic)

    def loss(actor):
        value, entropy = equations.value_and_entropy(actor, critic)
        return -value - LICA.entropy_weight * entropy / before

    np.testing.assert_allclose(metrics["entropy"], before, rtol=1e-4)
    np.testing.assert_allclose(
        metrics["actor_loss"], loss(reference.doubles(state.actor.value)), rtol=1e-4
    )
    reference.assert_descends(state.actor.value, after.actor.value, loss, entries=4)


def test_the_critic_learns_from_the_target_and_the_actor_from_the_critic_alone(
    updated, state, batch, scramble, key, bits
):
    other = eqx.tree_at(lambda s: s.critic.target, state, scramble(state.critic.target, 9))
    after, _ = update(LICA, other, batch, jnp.int32(0), key)
    assert bits(after.critic.learner) != bits(updated[0].critic.learner)
    assert bits(after.actor) != bits(updated[0].actor), "the critic that it maximises is another"


def test_every_parameter_learns_and_the_target_stays(updated, state, bits):
    after, _ = updated
    assert bits(after.critic.target) == bits(state.critic.target)
    pairs = zip(*(jax.tree.leaves_with_path(NETWORKS(s)[:2]) for s in (after, state)), strict=True)
    for (path, new), (_, old) in pairs:
        assert (np.asarray(new) != np.asarray(old)).any(), jax.tree_util.keystr(path)


def test_the_target_is_copied_after_every_third_update_and_only_then(state, batch, bits, key):
    for number in range(4):
        before, (state, _) = state, update(LICA, state, batch, jnp.int32(number), key)
        assert bits(state.critic.target) == bits(
            state.critic.value if number == 2 else before.critic.target
        )


def test_the_critic_may_count_an_agents_action_against_the_team_or_for_it(state):
    """Unlike a monotonic mixer, and by how much depends on the state."""
    random = np.random.default_rng(0)
    states = jnp.asarray(2 * random.normal(size=(200, 4)), jnp.float32)
    slope = jax.vmap(jax.grad(lambda x, s: state.critic.value(s, x)), (None, 0))(
        jnp.full((2, 3), 1 / 3), states
    )
    assert (slope > 0.01).any() and (slope < -0.01).any()


def test_the_authors_hypernetwork_is_as_wide_as_what_it_makes(key):
    make = lambda hypernet: jax.eval_shape(lambda: Critic(SPEC, 5, hypernet, key=key))
    assert make(None) == make(2 * 3 * 5) and make(None) != make(7)


def test_the_values_of_a_team_are_q_of_what_it_did(state, batch, equations):
    values = jax.jit(jax.vmap(lambda episode: LICA.team_values(state, episode, jax.random.key(0))))(
        batch
    )
    taken = np.eye(3)[np.asarray(batch.action)]
    for b, t in np.argwhere(np.asarray(batch.mask)):
        expected = equations.q(equations.state.critic.value, equations.states[b, t], taken[b, t])
        np.testing.assert_allclose(values[b, t], expected, atol=1e-4)


def test_a_round_is_one_update_and_by_default_all_that_it_learns_from():
    assert Lica().replay.capacity == Lica().replay.batch_size == Lica().pace.parallel_envs
    for algorithm in (Lica(), LICA_PYMARL2):
        assert algorithm.pace.updates_per_episode * algorithm.pace.parallel_envs == 1
