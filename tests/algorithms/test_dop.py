"""DOP against the docstring's equations in NumPy, and its properties."""

import dataclasses
import functools
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.dop import Dop, State, tree_backup
from comarl.algorithms.presets import DOP_PYMARL2
from comarl.ops.exploration import Epsilon
from comarl.ops.learner import Adam
from comarl.replay.episodes import EpisodeRing
from comarl.types import Clock, EnvSpec
from tests.data import SMOOTH, make_episodes

SPEC = EnvSpec(2, 3, 4, 3, discrete=True, horizon=5)
LENGTHS, TERMINATED = (2, 5, 3, 5, 1), (0, 3)
# A terminated and a cut one; the others are old: cut early, terminated at its end, cut at once
RECENT = 2
GAMMA, TRACE, KAPPA = 0.9, 0.7, 0.8
DOP = Dop(
    hidden=4,
    critic_hidden=(5, 4),
    mixer_width=3,
    gamma=GAMMA,
    td_lambda=TRACE,
    tree_trace=KAPPA,
    tree_steps=3,
    epsilon=Epsilon(0.8, 0.2, 100),
    step_by_step=False,
    target_period=3,
    actor_optimiser=SMOOTH,
    critic_optimiser=SMOOTH,
    replay=EpisodeRing(10, 3, recent=3, recent_batch=RECENT),
)
NETWORKS = lambda s: (s.actor.value, s.critic.value, s.critic.target)
EPSILON = 0.5  # after 50 steps of 100


@functools.partial(jax.jit, static_argnums=0)
def update(algorithm, state, batch, number=0):
    return algorithm.update(
        state, batch, Clock(jnp.int32(50), jnp.int32(number), jnp.int32(0)), jax.random.key(0)
    )


@pytest.fixture(scope="module")
def batch():
    return make_episodes(SPEC, LENGTHS, TERMINATED)


@pytest.fixture(scope="module")
def state(scramble) -> State:
    state = jax.jit(lambda key: DOP.init(SPEC, key))(jax.random.key(0))
    return eqx.tree_at(
        NETWORKS, state, tuple(scramble(n, i, 0.6) for i, n in enumerate(NETWORKS(state)))
    )


@pytest.fixture(scope="module")
def updated(state, batch):
    return update(DOP, state, batch, 0)


class Equations:
    """Values, weights, targets and losses in NumPy, step by step."""

    def __init__(self, reference, state, batch):
        self.reference, self.batch, self.state = reference, batch, reference.doubles(state)
        self.obs, self.states = np.float64(batch.timesteps.obs), np.float64(batch.timesteps.state)
        self.available, self.action = (
            np.asarray(batch.timesteps.available),
            np.asarray(batch.action),
        )
        self.steps = [(b, t) for b, length in enumerate(LENGTHS) for t in range(length)]

    def utilities(self, critic, at):
        """`[agents][actions]` of one step."""
        linear = lambda layer, x: x @ layer.weight + layer.bias
        result = []
        for i in range(2):
            x = np.concatenate([self.states[at], self.obs[at][i], np.eye(2)[i]])
            z = self.reference.torso(critic.torso, x, self.reference.relu)
            result.append(linear(critic.value, z) + linear(critic.advantage, z))
        return np.stack(result)

    def weights(self, critic, at):
        linear = lambda layer: np.abs(self.states[at] @ layer.weight + layer.bias)
        first, second = linear(critic.first_weights), linear(critic.second_weights)
        k = np.array([first[i * 3 : (i + 1) * 3] @ second for i in range(2)])
        return k / k.sum()

    def q(self, critic, at, action):
        utilities = self.utilities(critic, at)
        return sum(self.weights(critic, at)[i] * utilities[i, action[i]] for i in range(2))

    def policy(self, actor):
        logits = (
            self.reference.histories(actor.encoder, SPEC, self.batch) @ actor.head.weight
            + actor.head.bias
        )
        e = np.where(self.available, np.exp(logits), 0.0)
        share = lambda x: x / np.maximum(x.sum(-1, keepdims=True), 1e-300)
        return (1 - EPSILON) * share(e) + EPSILON * share(np.float64(self.available))

    def expected(self, critic, at, policy):
        """Over all joint actions, one by one."""
        chance = lambda u: policy[at][0, u[0]] * policy[at][1, u[1]]
        return sum(chance(u) * self.q(critic, at, u) for u in itertools.product(range(3), repeat=2))

    def targets(self):
        critic, policy = self.state.critic.target, self.policy(self.state.actor.value)
        result = np.zeros(self.batch.reward.shape)
        for b, length in enumerate(LENGTHS):
            q = [self.q(critic, (b, t), self.action[b, t]) for t in range(length)]
            v = [self.expected(critic, (b, t), policy) for t in range(length + 1)]
            chance = [
                np.prod([policy[b, t, i, self.action[b, t, i]] for i in range(2)])
                for t in range(length)
            ]
            ends = lambda t, b=b: bool(self.batch.terminated[b, t])
            if b < RECENT:
                after = [*q[1:], v[length]]
                for t in reversed(range(length)):
                    value = (
                        after[t]
                        if t == length - 1
                        else (1 - TRACE) * after[t] + TRACE * result[b, t + 1]
                    )
                    result[b, t] = self.batch.reward[b, t] + (0.0 if ends(t) else GAMMA * value)
            else:
                for t in range(length):
                    result[b, t] = q[t]
                    for m in range(min(DOP.tree_steps, length - t)):
                        weight = np.prod([GAMMA * KAPPA * chance[t + j] for j in range(1, m + 1)])
                        value = 0.0 if ends(t + m) else GAMMA * v[t + m + 1]
                        result[b, t] += weight * (self.batch.reward[b, t + m] + value - q[t + m])
        return result

    def critic_loss(self, critic, target):
        return np.mean([(self.q(critic, s, self.action[s]) - target[s]) ** 2 for s in self.steps])

    def actor_loss(self, actor, critic):
        before, policy, gains = self.policy(self.state.actor.value), self.policy(actor), []
        for b, t in self.steps:
            if b < RECENT:
                utilities, k = self.utilities(critic, (b, t)), self.weights(critic, (b, t))
                for i in range(2):
                    u = self.action[b, t, i]
                    advantage = utilities[i, u] - before[b, t, i] @ utilities[i]
                    gains.append(k[i] * advantage * np.log(policy[b, t, i, u]))
        return -np.mean(gains)


@pytest.fixture(scope="module")
def equations(reference, state, batch) -> Equations:
    return Equations(reference, state, batch)


@pytest.fixture(scope="module")
def target(equations):
    return equations.targets()


# The critic


def test_the_targets_are_on_policy_for_recent_episodes_and_a_tree_backup_for_old_ones(
    state, batch, target
):
    found = jax.jit(DOP.targets)(state, batch, jnp.float32(EPSILON))
    for b, length in enumerate(LENGTHS):
        np.testing.assert_allclose(found[b, :length], target[b, :length], atol=1e-4)


def test_the_critic_descends_the_error_of_both_parts(
    updated, state, batch, equations, target, reference
):
    after, metrics = updated
    loss = lambda c: equations.critic_loss(c, target)
    np.testing.assert_allclose(
        metrics["critic_loss"], loss(reference.doubles(state.critic.value)), rtol=1e-4
    )
    np.testing.assert_allclose(
        metrics["target_value"], reference.masked_mean(target, batch.mask), rtol=1e-4
    )
    reference.assert_descends(state.critic.value, after.critic.value, loss, entries=4)


def test_step_by_step_is_one_descent_per_time_step_that_some_episode_reached(state, batch):
    """The same as one update on each time step alone, in their order; padding makes no step."""
    algorithm = dataclasses.replace(DOP, step_by_step=True)
    fit = lambda algorithm: jax.jit(lambda s, b: algorithm.fit_critic(s, b, jnp.float32(EPSILON)))
    short = make_episodes(SPEC, (2, 3, 1, 3, 2), TERMINATED, garbage=50.0)
    found, metrics = fit(algorithm)(state, short)
    target = jax.jit(DOP.targets)(state, short, jnp.float32(EPSILON))
    critic, losses = state.critic, []

    @jax.jit
    def one(critic, t):
        q = lambda c: c.taken(
            short.timesteps.state[:, t], short.timesteps.obs[:, t], short.action[:, t]
        )
        error = lambda c: jnp.where(short.mask[:, t], jnp.square(q(c) - target[:, t]), 0.0)
        return critic.descend(lambda c: error(c).sum() / short.mask[:, t].sum().astype(jnp.float32))

    for t in range(3):
        critic, loss = one(critic, jnp.int32(t))
        losses.append(float(loss))
    for a, b in zip(*map(jax.tree.leaves, (found, critic)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    np.testing.assert_allclose(metrics["critic_loss"], np.mean(losses), rtol=1e-4)


def test_step_by_step_is_the_same_where_episodes_have_one_step(state):
    batch = make_episodes(SPEC, (1,) * 5, TERMINATED, garbage=50.0)
    one, two = (
        update(dataclasses.replace(DOP, step_by_step=x), state, batch, 0)[0] for x in (False, True)
    )
    for a, b in zip(*map(jax.tree.leaves, (one, two)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_the_agents_weights_are_a_share_each(state):
    states = jnp.asarray(np.random.default_rng(0).normal(size=(50, 4)), jnp.float32)
    k = np.asarray(state.critic.value.weights(states))
    assert (k >= 0).all() and np.std(k[:, 0]) > 0.05
    np.testing.assert_allclose(k.sum(-1), 1.0, atol=1e-6)


def backup(episode, taken, value, chance, steps, kappa=KAPPA):
    return jax.jit(tree_backup, static_argnums=(4, 5, 6))(
        episode, taken, value, chance, GAMMA, kappa, steps
    )


@pytest.mark.parametrize("steps", [1, 2, 5, 9])
@pytest.mark.parametrize("terminated", [True, False])
@pytest.mark.parametrize("length", [1, 2, 4, 6])
def test_a_tree_backup_is_the_sum_that_defines_it_wherever_the_episode_ends(
    steps, terminated, length
):
    """Whatever stands after the end."""
    spec = dataclasses.replace(SPEC, horizon=6)
    episode = make_episodes(spec, (length,), (0,) if terminated else (), garbage=50.0)
    episode = jax.tree.map(lambda x: x[0], episode)
    random = np.random.default_rng(length)
    taken, value, chance = (jnp.asarray(x, jnp.float32) for x in random.uniform(0.2, 1.0, (3, 6)))
    found, reward = backup(episode, taken, value, chance, steps), np.float64(episode.reward)
    for t in range(length):
        expected, weight = float(taken[t]), 1.0
        for m in range(steps):
            if t + m >= length:
                break
            weight *= GAMMA * KAPPA * float(chance[t + m]) if m else 1.0
            follows = 0.0 if terminated and t + m == length - 1 else GAMMA * float(value[t + m])
            expected += weight * (reward[t + m] + follows - float(taken[t + m]))
        np.testing.assert_allclose(found[t], expected, rtol=1e-4)


def test_a_tree_backup_of_what_the_policies_would_surely_have_done_is_the_return():
    """Then V is Q_tot of what came next; with kappa 1 and steps enough nothing but rewards is
    left."""
    episode = jax.tree.map(lambda x: x[0], make_episodes(SPEC, (4,), (0,)))
    taken = jnp.asarray(np.random.default_rng(0).normal(size=5), jnp.float32)
    found = backup(episode, taken, jnp.roll(taken, -1), jnp.ones(5), 4, 1.0)
    reward = np.float64(episode.reward)
    expected = [sum(GAMMA**m * reward[t + m] for m in range(4 - t)) for t in range(4)]
    np.testing.assert_allclose(found[:4], expected, atol=1e-5)


def test_a_step_that_the_policies_would_never_take_ends_the_tree_backup():
    episode = jax.tree.map(lambda x: x[0], make_episodes(SPEC, (4,), (0,)))
    taken, value = (
        jnp.asarray(x, jnp.float32) for x in np.random.default_rng(0).normal(size=(2, 5))
    )
    many, one = (backup(episode, taken, value, jnp.zeros(5), steps) for steps in (5, 1))
    np.testing.assert_array_equal(many, one)
    np.testing.assert_allclose(one[:3], episode.reward[:3] + GAMMA * value[:3], atol=1e-5)


# The actor, and the rest


def test_each_actor_maximises_its_own_advantage_on_the_recent_episodes(
    updated, state, equations, reference
):
    after, metrics = updated
    critic = reference.doubles(after.critic.value)
    loss = lambda actor: equations.actor_loss(actor, critic)
    np.testing.assert_allclose(
        metrics["actor_loss"], loss(reference.doubles(state.actor.value)), rtol=1e-3, atol=1e-5
    )
    reference.assert_descends(state.actor.value, after.actor.value, loss, entries=4)


def test_its_mean_over_actions_is_the_policy_gradient_of_the_teams_value(state, batch):
    """Where every joint action was taken as often as the policies say: the theorem that the linear
    critic buys."""
    critic, actor = state.critic.value, state.actor.value
    one = jax.tree.map(lambda x: x[:1], make_episodes(SPEC, (1,), (0,)))
    seen = one.timesteps.state[:, 0], one.timesteps.obs[:, 0]
    policy = lambda actor: DOP.policies(actor, one, jnp.float32(0.0))[:, 0]
    value = lambda actor: critic.mix((policy(actor) * critic.utilities(*seen)).sum(-1), seen[0])[0]
    expected = jax.jit(jax.grad(value))(actor)
    plain = dataclasses.replace(
        DOP, epsilon=dataclasses.replace(DOP.epsilon, first=0.0, last=0.0), actor_optimiser=SMOOTH
    )
    weights = np.asarray(policy(actor))[0]

    @jax.jit
    def step(action):
        played = dataclasses.replace(one, action=one.action.at[0, 0].set(action))
        return plain.fit_actor(state.actor, critic, played, jnp.float32(0.0))[0].value.head.bias

    # A step of SMOOTH is -0.1 g / (|g| + 1), so that the gradient can be read from it; a mean over
    # two agents.
    total = 0.0
    for u in itertools.product(range(3), repeat=2):
        moved = (np.asarray(step(jnp.array(u))) - np.asarray(actor.head.bias)) / 0.1
        gradient = -moved / (1.0 - np.abs(moved))
        total = total + weights[0, u[0]] * weights[1, u[1]] * gradient
    np.testing.assert_allclose(-2.0 * total, expected.head.bias, atol=1e-4)


def test_old_episodes_teach_the_critic_and_not_the_actor(updated, state, batch, bits):
    other = make_episodes(SPEC, LENGTHS, TERMINATED, seed=5)
    mixed = jax.tree.map(lambda x, y: jnp.concatenate([x[:RECENT], y[RECENT:]]), batch, other)
    assert bits(update(DOP, state, mixed, 0)[0].critic) != bits(updated[0].critic)
    fit = jax.jit(
        lambda b: DOP.fit_actor(
            state.actor, state.critic.value, DOP.split(b)[0], jnp.float32(EPSILON)
        )[0]
    )
    assert bits(fit(mixed)) == bits(fit(batch))


def test_every_parameter_learns_and_the_target_is_copied_after_every_third_update_only(
    updated, state, batch, bits
):
    pairs = zip(
        *(jax.tree.leaves_with_path(NETWORKS(s)[:2]) for s in (updated[0], state)), strict=True
    )
    for (path, new), (_, old) in pairs:
        assert (np.asarray(new) != np.asarray(old)).any(), jax.tree_util.keystr(path)
    for number in range(4):
        before, (state, _) = state, update(DOP, state, batch, number)
        assert bits(state.critic.target) == bits(
            state.critic.value if number == 2 else before.critic.target
        )


def test_the_values_of_a_team_are_q_tot_of_what_it_did(state, batch, equations):
    values = jax.jit(jax.vmap(lambda episode: DOP.team_values(state, episode, jax.random.key(0))))(
        batch
    )
    for s in equations.steps:
        expected = equations.q(equations.state.critic.value, s, equations.action[s])
        np.testing.assert_allclose(values[s], expected, atol=1e-4)


@pytest.mark.parametrize("algorithm", [Dop(), DOP_PYMARL2])
def test_a_round_is_one_update(algorithm):
    assert algorithm.pace.updates_per_episode * algorithm.pace.parallel_envs == 1
    assert isinstance(DOP.critic_optimiser, Adam)
