"""mSAC against its docstring's equations in NumPy, and its properties."""

import dataclasses
import functools
import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.msac import Msac, State
from comarl.nn.recurrent import Memory
from comarl.ops.learner import Adam
from comarl.types import Clock, EnvSpec, Timestep
from tests.data import SMOOTH, make_episodes
from tests.test_payoff_tables import VDN, learnt_table

AGENTS, ACTIONS = 2, 3
SPEC = EnvSpec(AGENTS, 3, 4, ACTIONS, discrete=True, horizon=5)
# Ended early, cut at the horizon, cut early, ended at the last step
LENGTHS, TERMINATED = (2, 5, 3, 5), (0, 3)
GAMMA, ALPHA, LOW, HIGH = 0.9, 0.6, -0.5, 0.7
START = Clock(jnp.int32(0), jnp.int32(0), jnp.int32(0))
MSAC = Msac(
    hidden=4,
    logit_range=(LOW, HIGH),
    gamma=GAMMA,
    td_lambda=0.7,
    temperature=ALPHA,
    tau=0.3,
    actor_optimiser=SMOOTH,
    critic_optimiser=SMOOTH,
    temperature_optimiser=SMOOTH,
)


@functools.partial(jax.jit, static_argnums=0)
def init(algorithm, key):
    return algorithm.init(SPEC, key)


@functools.partial(jax.jit, static_argnums=0)
def update(algorithm, state, batch):
    return algorithm.update(state, batch, START, jax.random.key(0))


def log_policies(algorithm, state, batch):
    return jax.vmap(lambda episode: algorithm.log_policy(state.actor.value, episode))(batch)


@functools.partial(jax.jit, static_argnums=0)
def fit_critics(algorithm, state, batch):
    log_pi, alpha = log_policies(algorithm, state, batch), jnp.exp(state.log_alpha.value)
    return algorithm.fit_critics(state.critics, batch, log_pi, alpha)


@functools.partial(jax.jit, static_argnums=0)
def fit_temperature(algorithm, state, batch):
    log_pi = log_policies(algorithm, state, batch)
    return algorithm.fit_temperature(state.log_alpha, batch, log_pi)


@pytest.fixture(scope="module")
def batch():
    return make_episodes(SPEC, LENGTHS, TERMINATED)


@pytest.fixture(scope="module")
def states(scramble):
    """`states(algorithm)`: a state in which no critic equals another or its target."""

    @functools.cache
    def make(algorithm) -> State:
        state = init(algorithm, jax.random.key(0))
        where = lambda s: (s.actor.value, s.critics.value, s.critics.target)
        return eqx.tree_at(
            where, state, tuple(scramble(x, i, 0.6) for i, x in enumerate(where(state)))
        )

    return make


@pytest.fixture(scope="module")
def state(states):
    return states(MSAC)


@pytest.fixture(scope="module")
def updated(state, batch):
    return update(MSAC, state, batch)


class Equations:
    """Values, targets and losses in NumPy, agent by agent."""

    def __init__(self, reference, batch):
        self.reference, self.batch = reference, batch
        self.states, self.available = (
            np.float64(batch.timesteps.state),
            np.asarray(batch.timesteps.available),
        )

    def unroll(self, net):
        return (
            self.reference.histories(net.encoder, SPEC, self.batch) @ net.head.weight
            + net.head.bias
        )

    def policy(self, actor):
        return self.reference.relaxed(np.clip(self.unroll(actor), LOW, HIGH), self.available, 0.0)

    def mix(self, mixer, q):
        """Of the first `q.shape[1]` steps."""
        state = self.states[:, : q.shape[1]]
        weights = np.abs(state @ mixer.weights.weight + mixer.weights.bias)
        return sum(weights[..., i] * q[..., i] for i in range(AGENTS)) + (
            state @ mixer.bias.weight + mixer.bias.bias
        ).squeeze(-1)

    def q(self, critic):
        taken = np.eye(ACTIONS)[np.asarray(self.batch.action)]
        return self.mix(critic.mixer, (self.unroll(critic.utilities)[:, :-1] * taken).sum(-1))

    def soft(self, critic, actor):
        """V of every step."""
        p = self.policy(actor)
        log_p = np.log(np.where(p > 0, p, 1.0))
        return self.mix(critic.mixer, (p * (self.unroll(critic.utilities) - ALPHA * log_p)).sum(-1))

    def members(self, critics):
        return [self.reference.part(critics, j) for j in range(len(critics.mixer.bias.bias))]

    def target(self, state, td_lambda=0.7, scale=10.0):
        steps = np.float64(self.batch.reward)[np.asarray(self.batch.mask)]
        reward = np.float64(self.batch.reward)
        if scale:
            reward = scale * (reward - steps.mean()) / (steps.std() + 1e-5)
        values = np.stack(
            [self.soft(c, state.actor.value) for c in self.members(state.critics.target)]
        )
        rewarded = dataclasses.replace(self.batch, reward=jnp.asarray(reward, jnp.float32))
        return self.reference.lambda_targets(rewarded, values.min(0)[:, 1:], GAMMA, td_lambda)

    def mean(self, x):
        return self.reference.masked_mean(x, self.batch.mask)


@pytest.fixture(scope="module")
def equations(reference, batch):
    return Equations(reference, batch)


VARIANTS: dict[str, Any] = {
    "as it is": dict(td_lambda=0.7),
    "one step": dict(td_lambda=0.0),
    "single": dict(critics=1),
    "plain rewards": dict(reward_scale=0.0),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_critic_descends_to_the_least_soft_value_of_the_next_step(
    states, batch, equations, reference, name
):
    algorithm = dataclasses.replace(MSAC, **VARIANTS[name])
    state = states(algorithm)
    critic, metrics = fit_critics(algorithm, state, batch)
    y = equations.target(reference.doubles(state), algorithm.td_lambda, algorithm.reward_scale)
    loss = lambda critics: sum(
        equations.mean((equations.q(c) - y) ** 2) for c in equations.members(critics)
    )
    np.testing.assert_allclose(
        metrics["critic_loss"], loss(reference.doubles(state.critics.value)), rtol=1e-4
    )
    np.testing.assert_allclose(metrics["target_value"], equations.mean(y), rtol=1e-4, atol=1e-5)
    reference.assert_descends(state.critics.value, critic.value, loss, entries=4)


def test_both_target_critics_are_the_least_somewhere(state, equations, reference):
    """Otherwise the test above could not tell whether there is a minimum, and of what."""
    now = reference.doubles(state)
    one, two = (equations.soft(c, now.actor.value) for c in equations.members(now.critics.target))
    assert 0 < (one < two)[:, 1:].mean() < 1


def test_the_actor_maximises_the_soft_value_of_the_first_critic_as_it_is_now(
    state, updated, equations, reference
):
    after, metrics = updated
    np.testing.assert_allclose(metrics["temperature"], ALPHA, rtol=1e-6)
    first = equations.members(reference.doubles(after.critics.value))[0]
    loss = lambda actor: -equations.mean(equations.soft(first, actor)[:, :-1])
    np.testing.assert_allclose(
        metrics["actor_loss"], loss(reference.doubles(state.actor.value)), rtol=1e-4
    )
    reference.assert_descends(state.actor.value, after.actor.value, loss)


def test_what_learns_from_whom(state, batch, updated, bits):
    """The critics' step does not depend on the actor's; targets move by tau; every parameter
    moves."""
    after, _ = updated
    critic, _ = fit_critics(MSAC, state, batch)
    for one, two in zip(*map(jax.tree.leaves, (after.critics.value, critic.value)), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-6)
    targets = (after.critics.target, state.critics.target, after.critics.value)
    for new, old, live in zip(*map(jax.tree.leaves, targets), strict=True):
        np.testing.assert_allclose(new, 0.7 * np.asarray(old) + 0.3 * np.asarray(live), atol=1e-6)
    for part in (lambda s: s.actor.value, lambda s: s.critics.value, lambda s: s.log_alpha.value):
        assert all(
            (np.asarray(x) != np.asarray(y)).any()
            for x, y in zip(*map(jax.tree.leaves, (part(after), part(state))), strict=True)
        )


def test_the_soft_value_is_the_expectation_over_joint_actions(state, batch, equations, reference):
    """Of Q_tot less the mixed log-probabilities: the mixer is linear, so agents may take theirs
    apart."""
    now = reference.doubles(state)
    critic, p = equations.members(now.critics.value)[1], equations.policy(now.actor.value)
    utilities, expected = equations.unroll(critic.utilities), 0.0
    for joint in itertools.product(range(ACTIONS), repeat=AGENTS):
        chance = np.prod([p[..., i, u] for i, u in enumerate(joint)], axis=0)
        each = [
            utilities[..., i, u] - ALPHA * np.log(np.maximum(p[..., i, u], 1e-300))
            for i, u in enumerate(joint)
        ]
        expected = expected + np.where(
            chance > 0, chance * equations.mix(critic.mixer, np.stack(each, -1)), 0.0
        )

    @jax.jit
    def found(batch):
        second = jax.tree.map(lambda leaf: leaf[1], state.critics.value)
        log_pi = log_policies(MSAC, state, batch)
        return jax.vmap(lambda e, p: second.soft_values(e, p, jnp.float32(ALPHA)))(batch, log_pi)

    seen = np.arange(SPEC.horizon + 1) <= np.array(LENGTHS)[:, None]
    np.testing.assert_allclose(np.asarray(found(batch))[seen], expected[seen], atol=1e-4)


def test_rewards_get_mean_0_and_the_scale_over_what_took_place(batch):
    reward, mask = np.asarray(MSAC.standardised(batch.reward, batch.mask)), np.asarray(batch.mask)
    np.testing.assert_allclose([reward[mask].mean(), reward[mask].std()], [0.0, 10.0], atol=1e-3)
    equal = MSAC.standardised(jnp.full((2, 5), 3.0), jnp.ones((2, 5), bool))
    np.testing.assert_allclose(equal, 0.0, atol=0.1)


# Temperature


def entropies(equations, state, reference):
    p = equations.policy(reference.doubles(state.actor.value))[:, :-1]
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(-1)


@pytest.mark.parametrize("share", [None, 0.0, 0.4, 1.0])
def test_the_temperature_follows_entropy_towards_its_target(
    state, batch, equations, reference, share
):
    algorithm = dataclasses.replace(MSAC, entropy_share=share)
    log_alpha, metrics = fit_temperature(algorithm, state, batch)
    entropy, number = (
        entropies(equations, state, reference),
        np.asarray(batch.timesteps.available)[:, :-1].sum(-1),
    )
    wanted = -float(ACTIONS) if share is None else share * np.log(np.maximum(number, 1))
    excess = equations.mean((entropy - wanted).mean(-1))
    loss = lambda value: float(value) * excess
    reference.assert_descends(state.log_alpha.value, log_alpha.value, loss)
    np.testing.assert_allclose(metrics["entropy"], equations.mean(entropy.mean(-1)), rtol=1e-4)
    np.testing.assert_allclose(metrics["temperature_loss"], np.log(ALPHA) * excess, rtol=1e-4)
    assert (float(log_alpha.value) < np.log(ALPHA)) == (share != 1.0), (
        "no policy has more entropy than a uniform one"
    )


def test_as_released_the_temperature_falls_at_the_optimisers_pace_and_without_one_it_stays(batch):
    for rate, expected in ((3e-4, -60 * 3e-4), (0.0, 0.0)):
        algorithm = Msac(hidden=4, temperature_optimiser=Adam(rate, max_grad_norm=0.0))
        state = init(algorithm, jax.random.key(0))
        step = jax.jit(
            lambda s, a=algorithm: eqx.tree_at(
                lambda s: s.log_alpha, s, fit_temperature(a, s, batch)[0]
            )
        )
        for _ in range(60):
            state = step(state)
        np.testing.assert_allclose(state.log_alpha.value, expected, rtol=0.02, atol=1e-7)


# Acting


def test_teams_draw_from_their_policies_and_take_the_likeliest_when_evaluated(state, reference):
    random = np.random.default_rng(0)
    available = np.array([[True, True, False], [True, True, True]])
    timestep = Timestep(
        jnp.asarray(random.normal(size=(2, 3)), jnp.float32), jnp.zeros(4), jnp.asarray(available)
    )
    one = dataclasses.replace(
        make_episodes(SPEC, (1,)),
        timesteps=jax.tree.map(
            lambda x: jnp.broadcast_to(x, (1, SPEC.horizon + 1, *x.shape)), timestep
        ),
    )
    policy = Equations(reference, one).policy(reference.doubles(state.actor.value))[0, 0]

    @functools.partial(jax.jit, static_argnums=1)
    def act(keys, explore):
        choose = lambda key: MSAC.act(
            state, 0, Memory.empty(2, 4), timestep, START, key, explore=explore
        )[1]
        return jax.vmap(choose)(keys)

    keys = jax.random.split(jax.random.key(1), 4000)
    drawn = np.asarray(act(keys, True))
    for i in range(AGENTS):
        np.testing.assert_allclose(
            np.bincount(drawn[:, i], minlength=3) / 4000, policy[i], atol=0.03
        )
    assert (np.asarray(act(keys[:5], False)) == policy.argmax(-1)).all()


def test_no_available_action_is_likelier_than_another_by_more_than_the_range_of_logits(
    states, batch
):
    huge = eqx.tree_at(
        lambda s: s.actor.value.head.weight, states(MSAC), replace_fn=lambda x: 1e3 * x
    )
    log_pi = np.asarray(jax.jit(lambda s: log_policies(MSAC, s, batch))(huge))
    available = np.asarray(batch.timesteps.available)
    gaps = np.where(available, log_pi, -np.inf).max(-1) - np.where(available, log_pi, np.inf).min(
        -1
    )
    np.testing.assert_allclose(gaps[available.any(-1)].max(), HIGH - LOW, atol=1e-5)


def test_the_linear_mixer_learns_the_table_of_vdn(key):
    """With one state it is a sum: least squares then are VDN's, by either critic; and no agent
    finds (A, A)."""
    rates: dict[str, Any] = dict(actor_optimiser=Adam(5e-3), critic_optimiser=Adam(5e-3))
    still: dict[str, Any] = dict(temperature=0.01, temperature_optimiser=Adam(0.0))
    found, greedy = learnt_table(Msac(hidden=16, reward_scale=0.0, **still, **rates))
    np.testing.assert_allclose(found, VDN, atol=0.05)
    assert 0 not in greedy.tolist()


def test_a_temperature_without_a_logarithm_is_refused():
    with pytest.raises(ValueError, match=r"temperature=0.0 of Msac must be above 0"):
        Msac(temperature=0.0)
    with pytest.raises(ValueError, match=r"entropy_share=2.0 of Msac must be between 0 and 1"):
        Msac(entropy_share=2.0)
