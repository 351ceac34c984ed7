"""MADDPG against its equations in float64, agent by agent; whose reward and whose gradient is
whose."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.maddpg import Maddpg
from comarl.algorithms.presets import MADDPG_VM3
from comarl.algorithms.vm3_ac import Vm3Ac
from comarl.nn.values import obs_mask
from comarl.replay.transitions import Ring
from tests.data import SMOOTH

AGENTS = range(3)
TINY = Maddpg(
    hidden=(6, 5),
    output_penalty=0.2,
    replay=Ring(100, 8),
    actor_optimiser=SMOOTH,
    critic_optimiser=SMOOTH,
)
update = jax.jit(TINY.update)
act = jax.jit(functools.partial(TINY.act, explore=False))


@pytest.fixture(scope="module")
def state(spec, scramble):
    """Networks of which no two are equal, targets included."""
    state = jax.jit(lambda k: TINY.init(spec, k))(jax.random.key(0))
    networks = lambda s: (s.actors.value, s.critic.value, s.actors.target, s.critic.target)
    return eqx.tree_at(
        networks, state, tuple(scramble(n, i, 0.4) for i, n in enumerate(networks(state)))
    )


@pytest.fixture(scope="module")
def batch(make_batch, spec):
    return make_batch(spec, 8)


@pytest.fixture(scope="module")
def updated(state, batch, clock_at, key):
    return update(state, batch, clock_at(0), key)


class Written:
    def __init__(self, spec, reference):
        self.spec, self.reference = spec, reference

    def raw(self, actors, i, timestep):
        """What actor i puts out for its real entries."""
        size, seen = self.spec.obs_sizes[i], np.float64(timestep.obs)[:, i]
        x = np.pad(seen[:, :size], ((0, 0), (0, 5 - size)))
        out = self.reference.mlp(
            self.reference.part(actors.networks.networks, i), x, self.reference.relu
        )
        return out[:, : self.spec.action_sizes[i]]

    def q(self, critic, i, timestep, actions):
        seen = np.float64(timestep.obs)
        x = np.hstack([*(seen[:, j, : self.spec.obs_sizes[j]] for j in AGENTS), *actions])
        return self.reference.mlp(
            self.reference.part(critic.networks.networks, i), x, self.reference.relu
        )[:, 0]

    def played(self, batch):
        return [np.float64(batch.action)[:, i, : self.spec.action_sizes[i]] for i in AGENTS]


def test_each_critic_descends_the_error_to_its_agents_target_and_each_actor_maximises_it(
    state, batch, updated, spec, reference
):
    written, (after, metrics), networks = Written(spec, reference), updated, reference.doubles
    following = [np.tanh(written.raw(networks(state.actors.target), i, batch.next)) for i in AGENTS]
    target_critic, played = networks(state.critic.target), written.played(batch)
    next_q = [written.q(target_critic, i, batch.next, following) for i in AGENTS]
    target = [np.float64(batch.reward) + 0.95 * ~np.asarray(batch.terminated) * q for q in next_q]

    def critic_loss(critic):
        return sum(
            np.mean((written.q(critic, i, batch.now, played) - target[i]) ** 2) for i in AGENTS
        )

    np.testing.assert_allclose(
        metrics["critic_loss"], critic_loss(networks(state.critic.value)), rtol=1e-4
    )
    np.testing.assert_allclose(metrics["target_value"], np.mean(target), rtol=1e-4)
    reference.assert_descends(state.critic.value, after.critic.value, critic_loss)
    taught = networks(after.critic.value)

    def actor_loss(actors):
        total = 0.0
        for i in AGENTS:
            raw = written.raw(actors, i, batch.now)
            joint = [np.tanh(raw) if j == i else played[j] for j in AGENTS]
            total += np.mean(-written.q(taught, i, batch.now, joint)) + 0.2 * np.mean(raw**2)
        return total

    np.testing.assert_allclose(
        metrics["actor_loss"], actor_loss(networks(state.actors.value)), rtol=1e-4
    )
    reference.assert_descends(state.actors.value, after.actors.value, actor_loss)


def test_targets_move_by_tau(state, updated):
    after = updated[0]
    for new, old in ((after.actors, state.actors), (after.critic, state.critic)):
        networks = (new.target, old.target, new.value)
        for t, b, o in zip(*map(jax.tree.leaves, networks), strict=True):
            np.testing.assert_allclose(
                t, np.asarray(b) + 0.01 * (np.asarray(o) - np.asarray(b)), atol=1e-6
            )


def test_a_reward_of_ones_own_teaches_ones_own_critic(state, batch, clock_at, key):
    """An agent's reward moves its critic and, through it, its actor: nobody else's."""
    own = jnp.stack([batch.reward] * 3, axis=1)
    one, other = (
        update(state, dataclasses.replace(batch, reward=r), clock_at(0), key)[0]
        for r in (own, own.at[:, 1].add(1.0))
    )
    for name in ("actors", "critic"):
        for a, b in zip(
            *(jax.tree.leaves(getattr(s, name).value) for s in (one, other)), strict=True
        ):
            np.testing.assert_array_equal(np.asarray(a)[[0, 2]], np.asarray(b)[[0, 2]])
            assert np.any(a[1] != b[1])


def test_no_value_follows_termination_and_padding_counts_for_nothing(
    state, batch, updated, spec, clock_at, key, bits
):
    nowhere = jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), batch.next)
    ended = dataclasses.replace(batch, terminated=jnp.ones(8, bool), next=nowhere)
    after, metrics = update(state, ended, clock_at(0), key)
    np.testing.assert_allclose(metrics["target_value"], batch.reward.mean(), rtol=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after))
    spoil = lambda t: dataclasses.replace(t, obs=jnp.where(obs_mask(spec), t.obs, 7.0))
    action = jnp.where(spec.action_mask > 0, batch.action, 7.0)
    garbage = dataclasses.replace(
        batch, now=spoil(batch.now), next=spoil(batch.next), action=action
    )
    assert bits(update(state, garbage, clock_at(0), key)) == bits(updated)


def test_greedy_play_is_decentralised_and_exploring_is_bounded(
    state, batch, spec, reference, clock_at, key
):
    timestep, written = jax.tree.map(lambda x: x[0], batch.now), Written(spec, reference)
    found = act(state, 0, (), timestep, clock_at(0), key)[1]
    actors = reference.doubles(state.actors.value)
    for i in AGENTS:
        size = spec.action_sizes[i]
        np.testing.assert_allclose(
            found[i, :size], np.tanh(written.raw(actors, i, batch.now)[0]), atol=1e-5
        )
        assert np.all(found[i, size:] == 0.0)
    moved = act(
        state,
        0,
        (),
        dataclasses.replace(timestep, obs=timestep.obs.at[1].add(1.0)),
        clock_at(0),
        key,
    )[1]
    np.testing.assert_array_equal(found[jnp.array([0, 2])], moved[jnp.array([0, 2])])
    assert found[1, 0] != moved[1, 0]
    wild = dataclasses.replace(TINY, exploration_noise=5.0)
    noisy = wild.act(state, 0, (), timestep, clock_at(0), key, explore=True)[1]
    assert np.abs(noisy).max() == 1.0 and noisy[1, 1] == 0.0


def test_the_preset_shares_its_settings_with_vm3_ac():
    names = (
        "hidden",
        "gamma",
        "tau",
        "actor_optimiser",
        "critic_optimiser",
        "replay",
        "pace",
    )
    for name in names:
        assert getattr(MADDPG_VM3, name) == getattr(Vm3Ac(), name), name
