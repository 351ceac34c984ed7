"""SI-MOA against its equations in float64, term by term, and the reward that its actor-critics
get."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.presets import MA_AC
from comarl.algorithms.si_moa import SiMoa
from comarl.nn.values import obs_mask
from comarl.replay.transitions import Ring
from comarl.types import EnvSpec
from tests.data import SMOOTH

AGENTS, K = range(3), 4
BASE = dataclasses.replace(MA_AC, hidden=(4,), log_std_range=(-2.0, 1.0), replay=Ring(100, 6))
BASE = dataclasses.replace(BASE, actor_optimiser=SMOOTH, critic_optimiser=SMOOTH)
TINY = SiMoa(
    BASE,
    influence=0.5,
    influence_clip=0.2,
    counterfactuals=K,
    model_hidden=(5,),
    model_optimiser=SMOOTH,
)


@functools.partial(jax.jit, static_argnums=0)
def update(algorithm, state, batch, clock, key):
    return algorithm.update(state, batch, clock, key)


@functools.partial(jax.jit, static_argnums=0)
def divergence(algorithm, models, *inputs):
    return algorithm.influence_of(models, *inputs)


@pytest.fixture(scope="module")
def state(spec, scramble):
    state = jax.jit(lambda k: TINY.init(spec, k))(jax.random.key(0))
    networks = lambda s: (
        s.models.value,
        s.base.policies.value,
        s.base.critic.value,
        s.base.value.value,
        s.base.value.target,
    )
    return eqx.tree_at(
        networks, state, tuple(scramble(n, i, 0.5) for i, n in enumerate(networks(state)))
    )


@pytest.fixture(scope="module")
def batch(make_batch, spec):
    return make_batch(spec, 6)


@pytest.fixture(scope="module")
def updated(state, batch, clock_at, key):
    return update(TINY, state, batch, clock_at(0), key)


@pytest.fixture(scope="module")
def drawn(state, batch, key):
    """What `update` draws with this key: other actions `[K agents batch action]`, and the next
    ones."""
    imagine_key, next_key, *_ = jax.random.split(key, 4)
    now, after = (BASE.observe(t, state.models.value.spec) for t in (batch.now, batch.next))
    imagined = [TINY.draw(state, now, k) for k in jax.random.split(imagine_key, K)]
    return np.float64(np.stack(imagined)), np.float64(TINY.draw(state, after, next_key))


class Written:
    """The equations, one agent, one row and one entry at a time."""

    def __init__(self, spec, reference, models, batch):
        self.spec, self.reference, self.models, self.batch = (
            spec,
            reference,
            reference.doubles(models),
            batch,
        )
        self.action = np.asarray(batch.action, np.float64)  # [batch, agents, action]

    def expected(self, i, own, models=None):
        """mu_ij of all j `[batch, agents, action]`, where i does `own`."""
        sizes = self.spec.action_sizes
        obs = np.float64(self.batch.now.obs)[:, i, : self.spec.obs_sizes[i]]
        obs = np.pad(obs, ((0, 0), (0, 5 - obs.shape[1])))
        done = [(own if j == i else self.action[:, j])[:, : sizes[j]] for j in AGENTS]
        network = self.reference.part((models or self.models).networks.networks, i)
        out = np.tanh(self.reference.mlp(network, np.hstack([obs, *done]), self.reference.relu))
        return out.reshape(-1, 3, 2)

    def each(self):
        """i, j and the entries of j's action."""
        return [(i, j, range(self.spec.action_sizes[j])) for i in AGENTS for j in AGENTS if j != i]

    def influence(self, imagined, variance=0.1):
        """By moments."""
        result = np.zeros((3, len(self.action)))
        for i, j, entries in self.each():
            mu = self.expected(i, self.action[:, i])[:, j]
            others = np.stack(
                [self.expected(i, imagined[k, i])[:, j] for k in range(len(imagined))]
            )
            for d in entries:
                mean = others[..., d].mean(0)
                wide = variance + ((others[..., d] - mean) ** 2).mean(0)
                gap = (variance + (mu[:, d] - mean) ** 2) / wide
                result[i] += 0.5 * (np.log(wide) - np.log(variance) + gap - 1)
        return result

    def influence_by_draws(self, imagined, normal, variance=0.1):
        result, std = np.zeros((3, len(self.action))), variance**0.5
        log_n = lambda x, mean: (
            -0.5 * (x - mean) ** 2 / variance - 0.5 * np.log(2 * np.pi * variance)
        )
        for i, j, entries in self.each():
            mu = self.expected(i, self.action[:, i])[:, j]
            others = [self.expected(i, imagined[k, i])[:, j] for k in range(len(imagined))]
            for noise in normal:
                x = mu + std * noise[i, :, j]
                log_p = sum(log_n(x[:, d], mu[:, d]) for d in entries)
                each = [
                    np.exp(sum(log_n(x[:, d], other[:, d]) for d in entries)) for other in others
                ]
                result[i] += (log_p - np.log(np.mean(each, axis=0))) / len(normal)
        return result

    def loss(self, models, following):
        continues = ~np.asarray(self.batch.terminated)
        total = np.zeros(len(continues))
        for i, j, entries in self.each():
            error = following[j] - self.expected(i, self.action[:, i], models)[:, j]
            total += sum(0.5 * error[:, d] ** 2 for d in entries)
        return total[continues].mean()


@pytest.fixture(scope="module")
def written(spec, reference, state, batch):
    return Written(spec, reference, state.models.value, batch)


def seen_and_done(state, batch):
    spec = state.models.value.spec
    return BASE.observe(batch.now, spec), jnp.moveaxis(batch.action, 1, 0)


def test_influence_is_the_divergence_from_what_would_be_expected_otherwise(
    state, batch, drawn, written, key
):
    imagined = jnp.asarray(drawn[0], jnp.float32)
    found = divergence(TINY, state.models.value, *seen_and_done(state, batch), imagined, key)
    np.testing.assert_allclose(found, written.influence(drawn[0]), rtol=2e-4, atol=1e-5)
    by_draws = dataclasses.replace(TINY, divergence="draws", divergence_draws=3)
    normal = np.float64(jax.random.normal(key, (3, 3, 6, 3, 2)))
    found = divergence(by_draws, state.models.value, *seen_and_done(state, batch), imagined, key)
    np.testing.assert_allclose(
        found, written.influence_by_draws(drawn[0], normal), rtol=2e-4, atol=1e-5
    )


def test_both_divergences_agree_where_all_that_is_imagined_is_one_action(
    state, batch, drawn, written, key
):
    """Then the mixture is one Gaussian: KL = |difference of means|^2 / (2 sigma^2)."""
    one = jnp.asarray(np.stack([drawn[0][0]] * K), jnp.float32)
    by_draws = dataclasses.replace(TINY, divergence="draws", divergence_draws=4000)
    moments, draws = (
        np.asarray(divergence(a, state.models.value, *seen_and_done(state, batch), one, key))
        for a in (TINY, by_draws)
    )
    np.testing.assert_allclose(draws, moments, rtol=0.1, atol=0.05)
    assert moments.max() > 0.5


def test_who_does_what_it_would_do_anyway_or_is_not_watched_has_no_influence(
    state, batch, drawn, key
):
    inputs = seen_and_done(state, batch)
    for algorithm in (TINY, dataclasses.replace(TINY, divergence="draws")):
        same = divergence(algorithm, state.models.value, *inputs, jnp.stack([inputs[1]] * K), key)
        np.testing.assert_allclose(same, 0.0, atol=1e-5)
        weight = lambda m: m.networks.networks.torso.layers[0].weight
        deaf = eqx.tree_at(
            weight, state.models.value, weight(state.models.value).at[:, 5:].set(0.0)
        )
        imagined = jnp.asarray(drawn[0], jnp.float32)
        np.testing.assert_allclose(
            divergence(algorithm, deaf, *inputs, imagined, key), 0.0, atol=1e-5
        )


def test_models_descend_the_error_of_what_others_do_next(
    state, batch, updated, drawn, written, reference
):
    after, metrics = updated
    loss = lambda models: written.loss(models, drawn[1])
    reference.assert_descends(state.models.value, after.models.value, loss)
    np.testing.assert_allclose(metrics["model_loss"], loss(written.models), rtol=1e-4)
    entries = 2 * 5  # each agent's action is predicted by two others
    np.testing.assert_allclose(
        metrics["model_error"], loss(written.models) / (0.5 * entries), rtol=1e-4
    )


def test_actor_critics_learn_each_agents_own_reward(
    state, batch, updated, drawn, written, clock_at, key
):
    """It is the update of MA-AC with r + w clip(c_i), and c_i is 0 where the task ended."""
    influence = np.where(np.asarray(batch.terminated), 0.0, written.influence(drawn[0]))
    assert (influence > 0.2).any() and ((influence > 0) & (influence < 0.2)).any()
    reward = np.float64(batch.reward) + 0.5 * np.minimum(influence, 0.2)
    own = dataclasses.replace(batch, reward=jnp.asarray(reward.T, jnp.float32))
    expected, metrics = update(BASE, state.base, own, clock_at(0), jax.random.split(key, 4)[3])
    for a, b in zip(*map(jax.tree.leaves, (updated[0].base, expected)), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    np.testing.assert_allclose(updated[1]["influence"], influence.mean(), rtol=1e-4)
    assert set(metrics) < set(updated[1])
    raised = dataclasses.replace(own, reward=own.reward.at[:, 1].add(1.0))
    other, _ = update(BASE, state.base, raised, clock_at(0), jax.random.split(key, 4)[3])
    # [critics, agents ..]
    for a, b in zip(*(jax.tree.leaves(s.critic.value) for s in (expected, other)), strict=True):
        np.testing.assert_array_equal(np.asarray(a)[:, [0, 2]], np.asarray(b)[:, [0, 2]])
        assert np.any(a[:, 1] != b[:, 1])


def test_without_influence_it_is_ma_ac(state, batch, clock_at, key, bits):
    nothing = dataclasses.replace(TINY, influence=0.0)
    found = update(nothing, state, batch, clock_at(0), key)[0].base
    plain = update(BASE, state.base, batch, clock_at(0), jax.random.split(key, 4)[3])[0]
    for a, b in zip(*map(jax.tree.leaves, (found, plain)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_ends_and_padding_count_for_nothing(state, batch, updated, spec, clock_at, key, bits):
    nowhere = jax.tree.map(lambda x: jnp.full_like(x, jnp.inf), batch.next)
    ended = dataclasses.replace(batch, terminated=jnp.ones(6, bool), next=nowhere)
    after, metrics = update(TINY, state, ended, clock_at(0), key)
    assert metrics["influence"] == 0.0 and all(
        np.isfinite(leaf).all() for leaf in jax.tree.leaves(after)
    )
    spoil = lambda t: dataclasses.replace(t, obs=jnp.where(obs_mask(spec), t.obs, 7.0))
    action = jnp.where(spec.action_mask > 0, batch.action, 7.0)
    garbage = dataclasses.replace(
        batch, now=spoil(batch.now), next=spoil(batch.next), action=action
    )
    assert bits(update(TINY, state, garbage, clock_at(0), key)) == bits(updated)


def test_an_agent_alone_influences_nobody_and_learns(make_batch, clock_at, key):
    alone = EnvSpec(
        1,
        obs_size=3,
        state_size=3,
        action_size=2,
        discrete=False,
        horizon=5,
        obs_from_state=((0, 1, 2),),
    )
    after, metrics = update(TINY, TINY.init(alone, key), make_batch(alone, 6), clock_at(0), key)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((after, metrics)))
    assert metrics["influence"] == 0.0
