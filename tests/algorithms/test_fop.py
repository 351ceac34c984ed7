"""FOP against its docstring's equations in NumPy, its switches, and what is known of soft
values."""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.fop import Fop, actor_loss, soft_targets, soft_value
from comarl.algorithms.presets import FOP_PYMARL2
from comarl.ops.exploration import Epsilon, linear
from comarl.types import Clock, EnvSpec
from tests.algorithms.reference_fop import Written, log
from tests.data import SMOOTH, make_episodes

AGENTS, OBS, STATE, ACTIONS, HORIZON = 3, 2, 4, 3, 4
SPEC = EnvSpec(AGENTS, OBS, STATE, ACTIONS, discrete=True, horizon=HORIZON)
LENGTHS, GAMMA = (2, HORIZON, 3), 0.9  # terminated, cut at the horizon, cut early
BOTH: dict[str, Any] = dict(actor_optimiser=SMOOTH, critic_optimiser=SMOOTH)
SCHEDULES: dict[str, Any] = dict(
    temperature=(0.8, 0.2), temperature_steps=2000, epsilon=Epsilon(1.0, 0.2, 2000)
)
FOP = Fop(
    hidden=4,
    mixer_width=3,
    kernels=2,
    gamma=GAMMA,
    td_lambda=0.6,
    target_period=3,
    **BOTH,
    **SCHEDULES,
)
RELEASED = dataclasses.replace(
    FOP, entropy_in_return=False, value_of_unavailable=True, epsilon_in_policy=True
)
VARIANTS = {"fop": FOP, "as released": RELEASED}
ALPHA, EPSILON = 0.5, 0.6  # after 1000 steps


@functools.partial(jax.jit, static_argnums=0)
def init(algorithm):
    return algorithm.init(SPEC, jax.random.key(0))


def update(algorithm, state, batch, number=0, steps=1000):
    clock = Clock(jnp.int32(steps), jnp.int32(number), jnp.int32(0))
    return compiled_update(algorithm, state, batch, clock)


@functools.partial(jax.jit, static_argnums=0)
def compiled_update(algorithm, state, batch, clock):
    return algorithm.update(state, batch, clock, jax.random.key(7))


@pytest.fixture(scope="module")
def batch():
    return make_episodes(SPEC, LENGTHS, terminated=(0,))


@pytest.fixture(scope="module")
def state(scramble):
    """All six networks differ, and values a good deal."""
    made = init(FOP)
    where = lambda s: (s.actor.value, s.critics.value, s.critics.target)
    return eqx.tree_at(where, made, tuple(scramble(x, i, 0.6) for i, x in enumerate(where(made))))


@pytest.fixture(scope="module")
def updated(state, batch):
    return {name: update(algorithm, state, batch) for name, algorithm in VARIANTS.items()}


@pytest.fixture(scope="module")
def equations(reference):
    """pi, Q_i and Q_tot of a whole batch."""
    written = Written(reference, ALPHA, EPSILON)

    def policies(algorithm, actor, batch):
        logits = (
            reference.histories(actor.encoder, SPEC, batch) @ actor.head.weight + actor.head.bias
        )
        return written.policies(algorithm, logits, batch)

    return policies, written.utilities, written.q_tot


def both(reference, critics):
    """The two critics, in float64."""
    return [reference.part(reference.doubles(critics), k) for k in range(2)]


@pytest.mark.parametrize("name", VARIANTS)
def test_the_actor_maximises_the_lower_utility_and_its_entropy(
    name, updated, state, batch, equations, reference
):
    algorithm, (after, metrics), (policies, utilities, _) = VARIANTS[name], updated[name], equations
    obs = np.float64(batch.timesteps.obs[:, :-1])
    q = np.minimum(*(utilities(critic, obs) for critic in both(reference, state.critics.value)))

    def loss(actor):
        pi, total = policies(algorithm, actor, batch)[:, :-1], 0.0
        for b, length in enumerate(LENGTHS):
            for t in range(length):
                for i in range(AGENTS):
                    total += (pi[b, t, i] * (ALPHA * log(pi[b, t, i]) - q[b, t, i])).sum()
        return total / sum(LENGTHS) / AGENTS

    np.testing.assert_allclose(
        metrics["actor_loss"], loss(reference.doubles(state.actor.value)), rtol=1e-4
    )
    reference.assert_descends(state.actor.value, after.actor.value, loss, entries=4)


@pytest.mark.parametrize("name", VARIANTS)
def test_each_critic_descends_to_the_lower_target_at_drawn_actions(
    name, updated, state, batch, equations, reference
):
    """The draws are of the policies after the actor's step; the entropy is inside the return, or
    added to it."""
    algorithm, (after, metrics), (policies, _, q_tot) = VARIANTS[name], updated[name], equations
    pi = policies(algorithm, reference.doubles(after.actor.value), batch)
    noise = reference.gumbel(jax.random.key(7), pi.shape)
    action = np.where(pi > 0, log(pi) + noise, -np.inf).argmax(-1)[:, 1:]
    entropy = -log(np.take_along_axis(pi[:, 1:], action[..., None], -1))[..., 0].mean(-1)
    targets = both(reference, state.critics.target)
    value = np.minimum(*(q_tot(algorithm, x, x, batch, slice(1, None), action) for x in targets))
    if name == "fop":
        y = reference.lambda_targets(batch, value + ALPHA * entropy, GAMMA, 0.6)
    else:
        y = reference.lambda_targets(batch, value, GAMMA, 0.6) + ALPHA * entropy
    mask, errors = batch.mask, []
    for k, before in enumerate(both(reference, state.critics.value)):

        def loss(critic, before=before):
            return reference.masked_mean(
                (q_tot(algorithm, critic, before, batch, slice(-1), batch.action) - y) ** 2, mask
            )

        errors.append(loss(before))
        old, new = reference.part(state.critics.value, k), reference.part(after.critics.value, k)
        reference.assert_descends(old, new, loss, entries=3)
    np.testing.assert_allclose(metrics["critic_loss"], np.sum(errors), rtol=1e-4)
    np.testing.assert_allclose(metrics["td_loss"], np.sum(errors), rtol=1e-4)
    np.testing.assert_allclose(metrics["target_value"], reference.masked_mean(y, mask), rtol=1e-4)
    np.testing.assert_allclose(metrics["entropy"], reference.masked_mean(entropy, mask), rtol=1e-4)

    algorithm_values = jax.jit(
        jax.vmap(lambda e: algorithm.team_values(after, e, jax.random.key(0)))
    )(batch)
    online = both(reference, after.critics.value)
    expected = np.minimum(*(q_tot(algorithm, x, x, batch, slice(-1), batch.action) for x in online))
    np.testing.assert_allclose(
        np.where(mask, algorithm_values, 0), np.where(mask, expected, 0), atol=1e-4
    )


def test_all_parameters_learn_and_the_two_critics_stay_apart(updated, state):
    after, _ = updated["fop"]
    pairs = zip(
        *(jax.tree.leaves_with_path((s.actor.value, s.critics.learner)) for s in (after, state)),
        strict=True,
    )
    for (path, new), (_, old) in pairs:
        assert (np.asarray(new) != np.asarray(old)).any(), jax.tree_util.keystr(path)
    for leaf in jax.tree.leaves(init(FOP).critics.value):
        assert (np.asarray(leaf[0]) != np.asarray(leaf[1])).any()


def test_the_critics_are_copied_after_every_third_update_and_only_then(state, batch, bits):
    for number in range(4):
        after, _ = update(FOP, state, batch, number)
        expected = after.critics.value if number == 2 else state.critics.target
        assert bits(after.critics.target) == bits(expected)


# Soft values


def test_the_best_policy_is_the_softmax_at_the_temperature_and_earns_the_soft_value():
    q = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3, AGENTS, ACTIONS)), jnp.float32)
    alpha, mask = jnp.float32(0.3), jnp.ones((2, 3), bool)
    loss = lambda logits: actor_loss(jax.nn.log_softmax(logits), q, alpha, mask)
    value, gradient = jax.value_and_grad(loss)(q / alpha)
    np.testing.assert_allclose(value, -soft_value(q, alpha, None).mean(), rtol=1e-5)
    np.testing.assert_allclose(gradient, 0.0, atol=1e-6)
    assert loss(q / alpha + 0.3 * q) > value


def test_a_soft_value_by_hand():
    """Two equal actions are worth alpha log 2 more than one; what is not available is worth
    nothing."""
    q, alpha = jnp.array([1.0, 1.0, 5.0]), jnp.float32(0.5)
    np.testing.assert_allclose(
        soft_value(q, alpha, jnp.array([True, True, False])), 1 + 0.5 * np.log(2), rtol=1e-6
    )
    np.testing.assert_allclose(soft_value(q, jnp.float32(1e-3), None), 5.0, rtol=1e-6)


def test_entropy_in_the_return_is_discounted_and_ends_with_a_termination():
    """Rewards and values 0, bonus 1: what is left of it is gamma per step that follows, and nothing
    after an end."""
    batch = make_episodes(SPEC, (2, 3), terminated=(0,))
    batch = eqx.tree_at(lambda b: b.reward, batch, jnp.zeros_like(batch.reward))
    nothing, bonus = jnp.zeros((2, HORIZON)), jnp.ones((2, HORIZON))
    inside = soft_targets(batch, nothing, bonus, 0.5, 1.0, in_return=True)
    outside = soft_targets(batch, nothing, bonus, 0.5, 1.0, in_return=False)
    np.testing.assert_allclose(inside[0, :2], [0.0, 0.0])
    np.testing.assert_allclose(inside[1, :3], [0.125, 0.25, 0.5])
    np.testing.assert_allclose(outside, 1.0)
    inside, outside = (
        soft_targets(batch, nothing, bonus, 1.0, 0.0, in_return=x)[1, :3] for x in (True, False)
    )
    np.testing.assert_allclose(inside, outside)  # without discount and lambda they agree


def test_the_temperature_falls_by_the_authors_line(state, batch):
    """max(0.05, 0.5 - steps / 200,000)."""
    for steps, alpha in ((0, 0.8), (1000, 0.5), (2000, 0.2), (10**6, 0.2)):
        after, metrics = update(FOP, state, batch, 0, steps)
        np.testing.assert_allclose([metrics["temperature"], after.temperature], alpha, rtol=1e-5)
    for steps in (0, 45_000, 90_000, 10**6):
        alpha = linear(*Fop().temperature, Fop().temperature_steps, jnp.int32(steps))
        np.testing.assert_allclose(alpha, max(0.05, 0.5 - steps / 200_000), rtol=1e-5)
    with pytest.raises(ValueError, match=r"temperature=\(0.5, 0.0\) of Fop must be above 0"):
        Fop(temperature=(0.5, 0.0))


# Switches


def test_switches_equal_the_sound_form_where_there_is_nothing_to_switch(state, batch):
    """All actions available, epsilon 0, one step without discount or termination."""
    free = eqx.tree_at(
        lambda b: (b.timesteps.available, b.terminated),
        batch,
        (jnp.ones_like(batch.timesteps.available), jnp.zeros_like(batch.terminated)),
    )
    plain = dataclasses.replace(
        FOP, epsilon=dataclasses.replace(FOP.epsilon, first=0.0, last=0.0), gamma=1.0, td_lambda=0.0
    )
    released = dataclasses.replace(
        plain, entropy_in_return=False, value_of_unavailable=True, epsilon_in_policy=True
    )
    for one, two in zip(
        *(jax.tree.leaves(update(x, state, free)) for x in (plain, released)), strict=True
    ):
        np.testing.assert_allclose(one, two, atol=1e-5)


def test_with_epsilon_1_in_the_policy_the_actor_learns_nothing(state, batch, bits):
    """Why it is off: the policy in the loss then is the uniform one, whatever the actor."""
    after, _ = update(RELEASED, state, batch, 0, 0)
    assert bits(after.actor.value) == bits(state.actor.value)


def test_the_preset_is_what_it_says():
    assert FOP_PYMARL2.td_lambda == 0.6 and FOP_PYMARL2.replay.batch_size == 128
    assert FOP_PYMARL2.pace.parallel_envs * FOP_PYMARL2.pace.updates_per_episode == 1
    assert FOP_PYMARL2.temperature == Fop().temperature
