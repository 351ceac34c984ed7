"""VDAC and MAA2C against the docstring's equations in NumPy, and their properties."""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.presets import MAA2C, VDAC_MIX_PYMARL2, VDAC_SUM
from comarl.algorithms.vdac import State, Vdac
from comarl.nn.recurrent import Memory
from comarl.ops.exploration import Epsilon
from comarl.types import Clock, EnvSpec
from tests.data import SMOOTH, make_episodes

SPEC = EnvSpec(2, 3, 4, 3, discrete=True, horizon=5)
# Terminated early, cut at the horizon, cut early, terminated at its end
LENGTHS, TERMINATED = (2, 5, 3, 5), (0, 3)
GAMMA, TRACE = 0.9, 0.7
SMALL: dict[str, Any] = dict(
    hidden=4,
    mixer_width=3,
    hypernet=3,
    gamma=GAMMA,
    td_lambda=TRACE,
    epsilon=Epsilon(0.8, 0.2, 100),
)
BOTH: dict[str, Any] = dict(actor_optimiser=SMOOTH, critic_optimiser=SMOOTH)
VARIANTS = {
    "vdac-mix": Vdac(**SMALL, **BOTH),
    "vdac-sum": dataclasses.replace(VDAC_SUM, **SMALL, **BOTH),
    "pymarl2": dataclasses.replace(VDAC_MIX_PYMARL2, **SMALL, **BOTH, entropy_weight=0.5),
    "maa2c": dataclasses.replace(MAA2C, **SMALL, **BOTH, entropy_weight=0.5),
}
NETWORKS = lambda s: (s.actor.value, s.critic.value)
AT = Clock(jnp.int32(50), jnp.int32(0), jnp.int32(0))
EPSILON = 0.5  # halfway


@functools.partial(jax.jit, static_argnums=0)
def update(algorithm, state, batch):
    return algorithm.update(state, batch, AT, jax.random.key(0))


@pytest.fixture(scope="module")
def batch():
    return make_episodes(SPEC, LENGTHS, TERMINATED)


@pytest.fixture(scope="module")
def states(scramble):
    """`states(algorithm)`: a state whose values and policies differ a good deal."""

    @functools.cache
    def make(algorithm) -> State:
        state = jax.jit(lambda key: algorithm.init(SPEC, key))(jax.random.key(0))
        return eqx.tree_at(NETWORKS, state, scramble(NETWORKS(state), 1, 0.6))

    return make


@pytest.fixture(scope="module")
def updated(states, batch):
    return functools.cache(lambda name: update(VARIANTS[name], states(VARIANTS[name]), batch))


class Equations:
    """Policies, V_tot, its returns and the loss in NumPy."""

    def __init__(self, reference, algorithm, batch):
        self.reference, self.algorithm, self.batch = reference, algorithm, batch
        self.available = np.asarray(batch.timesteps.available)
        self.states = np.float64(batch.timesteps.state)

    def policy(self, actor):
        logits = (
            self.reference.histories(actor.encoder, SPEC, self.batch) @ actor.head.weight
            + actor.head.bias
        )
        e = np.where(self.available, np.exp(logits), 0.0)
        epsilon = EPSILON if self.algorithm.epsilon_in_loss else 0.0
        count = np.maximum(self.available.sum(-1, keepdims=True), 1)
        policy = e / np.where(e.sum(-1, keepdims=True) == 0, 1.0, e.sum(-1, keepdims=True))
        return (1 - epsilon) * policy + epsilon * self.available / count

    def value(self, actor, critic):
        encoder = actor.encoder if critic.encoder is None else critic.encoder
        each = (
            self.reference.histories(encoder, SPEC, self.batch) @ critic.head.weight
            + critic.head.bias
        )[..., 0]
        return self.reference.mixer(critic.mixer, each, self.states)

    def target(self, networks):
        return self.reference.lambda_targets(self.batch, self.value(*networks)[:, 1:], GAMMA, TRACE)

    def losses(self, networks, before):
        """Actor's and critic's loss and the entropy; `before` are the networks whose target and
        advantage are data."""
        target = self.target(before)
        advantage = target - self.value(*before)[:, :-1]
        policy, value, action = (
            self.policy(networks[0]),
            self.value(*networks),
            np.asarray(self.batch.action),
        )
        gains, errors, entropies = [], [], []
        for b, length in enumerate(LENGTHS):
            for t in range(length):
                errors.append((value[b, t] - target[b, t]) ** 2)
                for i in range(SPEC.num_agents):
                    gains.append(advantage[b, t] * np.log(policy[b, t, i, action[b, t, i]]))
                    p = policy[b, t, i][self.available[b, t, i]]
                    entropies.append(-(p * np.log(p)).sum())
        return -np.mean(gains), np.mean(errors), np.mean(entropies)

    def loss(self, networks, before):
        actor, critic, entropy = self.losses(networks, before)
        return (
            actor + self.algorithm.value_weight * critic - self.algorithm.entropy_weight * entropy
        )


@pytest.mark.parametrize("name", VARIANTS)
def test_an_update_descends_the_loss_in_which_advantage_and_return_are_data(
    name, states, batch, updated, reference
):
    algorithm, (after, metrics) = VARIANTS[name], updated(name)
    state, equations = states(algorithm), Equations(reference, algorithm, batch)
    before = reference.doubles(NETWORKS(state))
    policy_loss, td_loss, entropy = equations.losses(before, before)
    loss = lambda networks: equations.loss(networks, before)
    expected = {
        "loss": loss(before),
        "actor_loss": policy_loss - algorithm.entropy_weight * entropy,
        "critic_loss": algorithm.value_weight * td_loss,
        "td_loss": td_loss,
        "entropy": entropy,
        "target_value": reference.masked_mean(equations.target(before), batch.mask),
        "epsilon": EPSILON,
    }
    for metric, number in expected.items():
        np.testing.assert_allclose(metrics[metric], number, rtol=1e-4, err_msg=metric)
    reference.assert_descends(NETWORKS(state), NETWORKS(after), loss, entries=3)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_parameter_learns(name, states, updated):
    both = (updated(name)[0], states(VARIANTS[name]))
    pairs = zip(*(jax.tree.leaves_with_path(NETWORKS(s)) for s in both), strict=True)
    for (path, new), (_, old) in pairs:
        assert (np.asarray(new) != np.asarray(old)).any(), jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", ["vdac-mix", "maa2c"])
def test_the_critics_loss_reaches_the_actor_only_through_an_encoder_that_both_share(
    name, states, batch, updated, bits
):
    """With separate networks neither loss reaches the other's."""
    algorithm = dataclasses.replace(VARIANTS[name], value_weight=0.0)
    state = states(VARIANTS[name])
    after, _ = update(algorithm, state, batch)
    assert bits(after.critic.value) == bits(state.critic.value)
    whole = updated(name)[0]
    close = lambda x, y: all(
        np.allclose(*z, atol=1e-6) for z in zip(*map(jax.tree.leaves, (x, y)), strict=True)
    )
    assert close(after.actor.value.encoder, whole.actor.value.encoder) == VARIANTS[name].separate
    assert close(after.actor.value.head, whole.actor.value.head)


def test_the_values_of_a_team_are_v_tot_of_its_steps(states, batch, reference):
    algorithm = VARIANTS["vdac-mix"]
    state = states(algorithm)
    values = jax.jit(
        jax.vmap(lambda episode: algorithm.team_values(state, episode, jax.random.key(0)))
    )(batch)
    expected = Equations(reference, algorithm, batch).value(*reference.doubles(NETWORKS(state)))[
        :, :-1
    ]
    took_place = np.asarray(batch.mask)
    np.testing.assert_allclose(values[took_place], expected[took_place], atol=1e-4)


def test_no_agent_can_count_against_the_team(states):
    mixer = states(VARIANTS["vdac-mix"]).critic.value.mixer
    random = np.random.default_rng(0)
    values, state = (jnp.asarray(2 * random.normal(size=(200, n)), jnp.float32) for n in (2, 4))
    assert (jax.vmap(jax.grad(lambda v, s: mixer(v, s)))(values, state) >= 0).all()


def test_what_explores_is_the_policy_of_the_loss(states, batch, reference):
    algorithm = VARIANTS["vdac-mix"]
    state, seen = states(algorithm), jax.tree.map(lambda x: x[1, 0], batch.timesteps)
    act = lambda key: algorithm.act(state, 0, Memory.empty(2, 4), seen, AT, key, explore=True)[1]
    actions = np.asarray(jax.jit(jax.vmap(act))(jax.random.split(jax.random.key(1), 4000)))
    found = np.stack([(actions == u).mean(0) for u in range(3)], axis=-1)
    expected = Equations(reference, algorithm, batch).policy(reference.doubles(state.actor.value))[
        1, 0
    ]
    np.testing.assert_allclose(found, expected, atol=0.03)


@pytest.mark.parametrize("algorithm", [Vdac(), VDAC_SUM, VDAC_MIX_PYMARL2, MAA2C])
def test_a_round_is_learnt_from_once_and_alone(algorithm):
    assert (
        algorithm.replay.capacity
        == algorithm.replay.batch_size
        == algorithm.pace.parallel_envs
        == 8
    )
    assert algorithm.pace.updates_per_episode * algorithm.pace.parallel_envs == 1


def test_the_presets_are_what_they_say():
    assert dataclasses.replace(Vdac(), mixing="sum") == VDAC_SUM
    assert MAA2C.separate and not Vdac().separate
    assert VDAC_MIX_PYMARL2.mixing == Vdac().mixing == "monotonic"
