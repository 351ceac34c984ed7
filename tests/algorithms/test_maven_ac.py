"""MAVEN on MA-AC: its discriminator and its reward in float64, and the batch that its actor-critics
see."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.maven_ac import MavenAc, Memory, spec_with_mode
from comarl.algorithms.presets import MA_AC
from comarl.nn.values import obs_mask
from comarl.replay.transitions import Ring
from comarl.types import Timestep
from tests.data import SMOOTH

MODES = 3
BASE = dataclasses.replace(MA_AC, hidden=(4,), log_std_range=(-2.0, 1.0), replay=Ring(100, 6))
BASE = dataclasses.replace(BASE, actor_optimiser=SMOOTH, critic_optimiser=SMOOTH)
TINY = MavenAc(
    BASE, latents=MODES, intrinsic=0.5, discriminator=(5,), discriminator_optimiser=SMOOTH
)
act = jax.jit(functools.partial(TINY.act, explore=False))


@functools.partial(jax.jit, static_argnums=0)
def update(algorithm, state, batch, clock, key):
    return algorithm.update(state, batch, clock, key)


@pytest.fixture(scope="module")
def state(spec, scramble):
    state = jax.jit(lambda k: TINY.init(spec, k))(jax.random.key(0))
    parts = lambda s: (
        s.discriminator.value,
        s.base.policies.value,
        s.base.critic.value,
        s.base.value.value,
    )
    networks = lambda s: (*parts(s), s.base.value.target)
    return eqx.tree_at(
        networks, state, tuple(scramble(n, i, 0.5) for i, n in enumerate(networks(state)))
    )


@pytest.fixture(scope="module")
def batch(make_batch, spec):
    latent = np.eye(MODES)[np.random.default_rng(0).integers(0, MODES, 6)]
    return dataclasses.replace(make_batch(spec, 6), latent=jnp.asarray(latent, jnp.float32))


@pytest.fixture(scope="module")
def updated(state, batch, clock_at, key):
    return update(TINY, state, batch, clock_at(0), key)


@pytest.fixture(scope="module")
def log_guess(spec, reference, batch):
    """log v(z | x, u) of each transition, from real entries alone."""

    def log_guess(discriminator):
        obs, action = np.float64(batch.now.obs), np.float64(batch.action)
        real = [obs[:, i, : spec.obs_sizes[i]] for i in range(3)] + [
            action[:, i, : spec.action_sizes[i]] for i in range(3)
        ]
        chance = np.exp(reference.mlp(discriminator.network, np.hstack(real), reference.relu))
        return np.log((chance * np.asarray(batch.latent)).sum(1) / chance.sum(1))

    return log_guess


def test_the_discriminator_learns_to_guess_the_mode(state, updated, log_guess, reference):
    loss = lambda d: -log_guess(d).mean()
    reference.assert_descends(state.discriminator.value, updated[0].discriminator.value, loss)
    before = loss(reference.doubles(state.discriminator.value))
    np.testing.assert_allclose(updated[1]["discriminator_loss"], before, rtol=1e-4)


def test_actor_critics_see_the_mode_and_are_paid_for_being_guessed(
    state, batch, updated, log_guess, reference, spec, clock_at, key
):
    """It is the update of MA-AC with z in front of what each agent sees, and r + w (log v(z | x, u)
    + log |z|)."""
    information = log_guess(reference.doubles(state.discriminator.value)) + np.log(MODES)
    latent = np.asarray(batch.latent)

    def seen(timestep):
        obs = np.stack(
            [np.hstack([latent, np.asarray(timestep.obs)[:, i]]) for i in range(3)], axis=1
        )
        return Timestep(
            jnp.asarray(obs), jnp.asarray(np.hstack([latent, np.asarray(timestep.state)]))
        )

    reward = jnp.asarray(np.float64(batch.reward) + 0.5 * information, jnp.float32)
    by_hand = dataclasses.replace(batch, now=seen(batch.now), next=seen(batch.next), reward=reward)
    expected = update(BASE, state.base, by_hand, clock_at(0), key)[0]
    for a, b in zip(*map(jax.tree.leaves, (updated[0].base, expected)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    np.testing.assert_allclose(updated[1]["mutual_information"], information.mean(), rtol=1e-4)
    wide = spec_with_mode(spec, MODES)
    assert (wide.obs_size, wide.state_size, wide.obs_sizes) == (8, 14, (7, 5, 8))


def test_where_modes_cannot_be_told_apart_information_is_zero(state, batch, clock_at, key):
    blank = eqx.tree_at(
        lambda s: s.discriminator.value,
        state,
        jax.tree.map(jnp.zeros_like, state.discriminator.value),
    )
    metrics = update(TINY, blank, batch, clock_at(0), key)[1]
    np.testing.assert_allclose(metrics["mutual_information"], 0.0, atol=1e-6)
    without = dataclasses.replace(TINY, intrinsic=0.0)
    other, one = (update(a, blank, batch, clock_at(0), key)[0].base for a in (without, TINY))
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_team_draws_any_mode_keeps_it_and_acts_by_it(state, batch, spec, clock_at, key):
    timestep = jax.tree.map(lambda x: x[0], batch.now)
    first = jax.jit(jax.vmap(lambda k: TINY.initial_memory(state, timestep, k).latent))
    modes = first(jax.random.split(key, 600))
    assert np.all(modes.sum(axis=1) == 1.0) and np.all(
        np.abs(modes.mean(axis=0) - 1 / MODES) < 0.06
    )
    actions = []
    for mode in np.eye(MODES, dtype=np.float32):
        memory, action = act(state, 0, Memory(jnp.asarray(mode)), timestep, clock_at(0), key)
        np.testing.assert_array_equal(memory.latent, mode)
        spoilt = dataclasses.replace(timestep, obs=jnp.where(obs_mask(spec), timestep.obs, 7.0))
        np.testing.assert_array_equal(action, act(state, 0, memory, spoilt, clock_at(0), key)[1])
        actions.append(action)
    assert np.all(np.ptp(actions, axis=0)[spec.action_mask > 0] > 0) and actions[0][1, 1] == 0.0


def test_ends_and_padding_count_for_nothing(state, batch, updated, spec, clock_at, key, bits):
    nowhere = jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), batch.next)
    ended = dataclasses.replace(batch, terminated=jnp.ones(6, bool), next=nowhere)
    assert all(
        np.isfinite(x).all() for x in jax.tree.leaves(update(TINY, state, ended, clock_at(0), key))
    )
    spoil = lambda t: dataclasses.replace(t, obs=jnp.where(obs_mask(spec), t.obs, 7.0))
    action = jnp.where(spec.action_mask > 0, batch.action, 7.0)
    garbage = dataclasses.replace(
        batch, now=spoil(batch.now), next=spoil(batch.next), action=action
    )
    assert bits(update(TINY, state, garbage, clock_at(0), key)) == bits(updated)


def test_replay_keeps_as_many_entries_as_there_are_modes():
    assert TINY.replay == Ring(100, 6, latent=MODES) and MavenAc().replay.latent == 16
