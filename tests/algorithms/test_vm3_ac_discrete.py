"""The discrete VM3-AC against its docstring's equations in NumPy; without its terms it is FOP; what
z does."""

import dataclasses
import functools
import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.fop import Fop
from comarl.algorithms.vm3_ac_discrete import LatentNet, Vm3AcDiscrete
from comarl.nn.action_predictor import ActionPredictor
from comarl.nn.recurrent import Memory
from comarl.ops.exploration import Epsilon
from comarl.ops.learner import Learner
from comarl.types import Clock, EnvSpec, Timestep
from tests.algorithms.reference_fop import Written, log
from tests.data import SMOOTH, make_episodes

AGENTS, ACTIONS, HORIZON, LATENT = 3, 3, 4, 2
SPEC = EnvSpec(AGENTS, 2, 4, ACTIONS, discrete=True, horizon=HORIZON)
LENGTHS, GAMMA, TRACE = (2, HORIZON, 3), 0.9, 0.6  # terminated, cut at the horizon, cut early
SIZES: dict[str, Any] = dict(
    hidden=4, mixer_width=3, kernels=2, gamma=GAMMA, td_lambda=TRACE, target_period=3
)
SCHEDULES: dict[str, Any] = dict(
    temperature=(0.8, 0.2), temperature_steps=2000, epsilon=Epsilon(1.0, 0.2, 2000)
)
FOP = Fop(**SIZES, **SCHEDULES, actor_optimiser=SMOOTH, critic_optimiser=SMOOTH)
VM3_AC = Vm3AcDiscrete(FOP, latent_size=LATENT, predictor_hidden=3, predictor_optimiser=SMOOTH)
VARIANTS = {
    "defaults": VM3_AC,
    "other choices": dataclasses.replace(
        VM3_AC,
        base=dataclasses.replace(
            FOP, entropy_in_return=False, value_of_unavailable=True, epsilon_in_policy=True
        ),
        information=0.5,
        latent_at="input",
        mi_norm="N-1",
        information_in_value=True,
    ),
}
ALPHA, EPSILON = 0.5, 0.6  # after 1000 steps
KEY, CLOCK = jax.random.key(7), Clock(jnp.int32(1000), jnp.int32(0), jnp.int32(0))
DRAW_KEY, Z_KEY = jax.random.split(KEY)


@functools.partial(jax.jit, static_argnums=0)
def init(algorithm):
    return algorithm.init(SPEC, jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def update(algorithm, state, batch, key):
    return algorithm.update(state, batch, CLOCK, key)


@functools.partial(jax.jit, static_argnums=(0, 5))
def act(algorithm, state, memory, timestep, key, explore):
    return algorithm.act(state, 0, memory, timestep, CLOCK, key, explore=explore)


@pytest.fixture(scope="module")
def batch():
    return make_episodes(SPEC, LENGTHS, terminated=(0,))


@pytest.fixture(scope="module")
def z():
    """`[batch, time+1, latent]`: one for each step, by a key of its own."""
    draw = lambda t: jax.random.normal(jax.random.fold_in(Z_KEY, t), (len(LENGTHS), LATENT))
    return np.stack([np.float64(draw(t)) for t in range(HORIZON + 1)], axis=1)


@pytest.fixture(scope="module")
def states(scramble):
    """All networks differ, and values a good deal."""

    def make(algorithm):
        where = lambda s: (s.actor.value, s.predictor.value, s.critics.value, s.critics.target)
        made = init(algorithm)
        return eqx.tree_at(
            where, made, tuple(scramble(x, i, 0.6) for i, x in enumerate(where(made)))
        )

    return {name: make(algorithm) for name, algorithm in VARIANTS.items()}


@pytest.fixture(scope="module")
def updated(states, batch):
    return {
        name: update(algorithm, states[name], batch, KEY) for name, algorithm in VARIANTS.items()
    }


class Equations(Written):
    """FOP's, and those that the discrete VM3-AC adds."""

    def policies(self, algorithm, actor, batch, z):
        early, late = (z, z[..., :0]) if algorithm.latent_at == "input" else (z[..., :0], z)
        histories = self.reference.histories(actor.encoder, SPEC, batch, early)
        logits = np.zeros((*histories.shape[:-1], ACTIONS))
        for i in range(AGENTS):
            x = np.concatenate([histories[:, :, i], late], axis=-1)
            logits[:, :, i] = x @ actor.head.weight + actor.head.bias
        return super().policies(algorithm.base, logits, batch)

    def log_q(self, predictor, timesteps, i, j, u):
        """Of each of j's actions, given i's action `u` at each step."""
        obs, available = np.float64(timesteps.obs), np.asarray(timesteps.available)[:, :, j]
        wide = lambda row: np.broadcast_to(row, (*obs.shape[:2], len(row)))
        x = np.concatenate(
            [obs[:, :, i], obs[:, :, j], wide(np.eye(AGENTS)[i]), wide(np.eye(AGENTS)[j])], axis=-1
        )
        linear = lambda layer, x: x @ layer.weight + layer.bias
        hidden = self.reference.relu(
            linear(predictor.observed, x) + linear(predictor.context, np.eye(ACTIONS)[u])
        )
        odds = np.where(
            available, np.exp(self.reference.mlp(predictor.rest, hidden, self.reference.relu)), 0.0
        )
        return log(odds / np.maximum(odds.sum(-1, keepdims=True), 1e-30))

    def divisor(self, algorithm):
        return AGENTS if algorithm.mi_norm == "N" else AGENTS - 1

    def action_bonus(self, algorithm, predictor, timesteps, pi):
        """alpha m_i(u) at each step."""
        result = np.zeros(pi.shape)
        for (i, j), u in itertools.product(
            itertools.permutations(range(AGENTS), 2), range(ACTIONS)
        ):
            every = np.full(pi.shape[:2], u)
            result[:, :, i, u] += (pi[:, :, j] * self.log_q(predictor, timesteps, i, j, every)).sum(
                -1
            )
        return self.alpha * algorithm.information * result / self.divisor(algorithm)

    def pair(self, predictor, timesteps, i, j, target, context):
        """log q_ij(target_j | context_i)."""
        every = self.log_q(predictor, timesteps, i, j, context[:, :, i])
        return np.take_along_axis(every, target[:, :, j, None], -1)[..., 0]

    def information(self, algorithm, predictor, timesteps, action):
        """M_i at each step, both terms as they are written, and the mean over i."""
        total = 0.0
        for i, j in itertools.permutations(range(AGENTS), 2):
            # (a), by j's network
            total = total + self.pair(predictor, timesteps, j, i, action, action)
            total = total + self.pair(predictor, timesteps, i, j, action, action)  # (b)
        return total / self.divisor(algorithm) / AGENTS


@pytest.fixture(scope="module")
def equations(reference):
    return Equations(reference, ALPHA, EPSILON)


def both(reference, critics):
    """The two critics, in float64."""
    return [reference.part(reference.doubles(critics), k) for k in range(2)]


def at(timesteps, part):
    return jax.tree.map(lambda x: x[:, part], timesteps)


NOW, LATER = slice(None, -1), slice(1, None)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_actor_maximises_utility_entropy_and_what_its_action_tells_of_others(
    name, updated, states, batch, z, equations, reference
):
    """Others' policies in m_i are numbers: of two steps of one network only those of the agent
    itself move."""
    algorithm, state, (after, metrics) = VARIANTS[name], states[name], updated[name]
    now, old = at(batch.timesteps, NOW), reference.doubles(state.actor.value)
    obs = np.float64(now.obs)
    q = np.minimum(*(equations.utilities(c, obs) for c in both(reference, state.critics.value)))
    pi = equations.policies(algorithm, old, batch, z)[:, NOW]
    q = q + equations.action_bonus(algorithm, reference.doubles(state.predictor.value), now, pi)

    def loss(actor):
        pi, total = equations.policies(algorithm, actor, batch, z)[:, NOW], 0.0
        for b, length in enumerate(LENGTHS):
            for t in range(length):
                for i in range(AGENTS):
                    total += (pi[b, t, i] * (ALPHA * log(pi[b, t, i]) - q[b, t, i])).sum()
        return total / sum(LENGTHS) / AGENTS

    np.testing.assert_allclose(metrics["actor_loss"], loss(old), rtol=1e-4)
    reference.assert_descends(state.actor.value, after.actor.value, loss, entries=4)


@pytest.mark.parametrize("name", VARIANTS)
def test_critics_descend_to_values_with_information_and_q_to_what_was_played(
    name, updated, states, batch, z, equations, reference
):
    """The draws are of the policies after the actor's step; q is as it was before its own."""
    algorithm, state, (after, metrics) = VARIANTS[name], states[name], updated[name]
    now, later = (at(batch.timesteps, part) for part in (NOW, LATER))
    pi = equations.policies(algorithm, reference.doubles(after.actor.value), batch, z)
    drawn = np.where(pi > 0, log(pi) + reference.gumbel(DRAW_KEY, pi.shape), -np.inf).argmax(-1)
    action, predictor = drawn[:, LATER], reference.doubles(state.predictor.value)
    entropy = -log(np.take_along_axis(pi[:, LATER], action[..., None], -1))[..., 0].mean(-1)
    information = equations.information(algorithm, predictor, later, action)
    bonuses = (0.0, 0.0)
    if algorithm.information_in_value:
        bonuses = [
            equations.action_bonus(algorithm, predictor, *x)
            for x in ((now, pi[:, NOW]), (later, pi[:, LATER]))
        ]
    value = np.minimum(
        *(
            equations.q_tot(algorithm.base, x, x, batch, LATER, action, bonuses[1])
            for x in both(reference, state.critics.target)
        )
    )
    bonus = ALPHA * (entropy + algorithm.information * information)
    if algorithm.base.entropy_in_return:
        y = reference.lambda_targets(batch, value + bonus, GAMMA, TRACE)
    else:
        y = reference.lambda_targets(batch, value, GAMMA, TRACE) + bonus
    mask, errors, mean = batch.mask, [], lambda x: reference.masked_mean(x, batch.mask)
    for k, before in enumerate(both(reference, state.critics.value)):

        def loss(critic, before=before):
            q = equations.q_tot(
                algorithm.base, critic, before, batch, NOW, batch.action, bonuses[0]
            )
            return reference.masked_mean((q - y) ** 2, mask)

        errors.append(loss(before))
        old, new = reference.part(state.critics.value, k), reference.part(after.critics.value, k)
        reference.assert_descends(old, new, loss, entries=2)

    def q_loss(q, context=batch.action):
        target, context = np.asarray(batch.action), np.asarray(context)
        pairs = [
            equations.pair(q, now, i, j, target, context)
            for i, j in itertools.permutations(range(AGENTS), 2)
        ]
        return -mean(np.mean(pairs, axis=0))

    reference.assert_descends(state.predictor.value, after.predictor.value, q_loss, entries=4)
    expected = {
        "critic_loss": np.sum(errors),
        "td_loss": np.sum(errors),
        "target_value": mean(y),
        "entropy": mean(entropy),
        "temperature": ALPHA,
        "epsilon": EPSILON,
        "mutual_information": mean(information),
        "predictor_loss": q_loss(predictor),
        "predictor_loss_unpaired": q_loss(predictor, drawn[:, NOW]),
    }
    for metric, number in expected.items():
        np.testing.assert_allclose(metrics[metric], number, rtol=1e-4, err_msg=metric)


def test_team_values_are_those_of_the_critics_at_the_latent_of_execution(
    updated, batch, equations, reference
):
    for name, algorithm in VARIANTS.items():
        after, bonus = updated[name][0], 0.0
        values = jax.jit(
            jax.vmap(lambda e, x=algorithm, s=after: x.team_values(s, e, jax.random.key(0)))
        )(batch)
        if algorithm.information_in_value:
            base = dataclasses.replace(algorithm.base, epsilon_in_policy=False)
            without_epsilon = dataclasses.replace(algorithm, base=base)
            z = np.zeros((len(LENGTHS), HORIZON + 1, LATENT))
            pi = equations.policies(
                without_epsilon, reference.doubles(after.actor.value), batch, z
            )[:, NOW]
            bonus = equations.action_bonus(
                algorithm, reference.doubles(after.predictor.value), at(batch.timesteps, NOW), pi
            )
        expected = np.minimum(
            *(
                equations.q_tot(algorithm.base, c, c, batch, NOW, batch.action, bonus)
                for c in both(reference, after.critics.value)
            )
        )
        np.testing.assert_allclose(
            np.where(batch.mask, values, 0), np.where(batch.mask, expected, 0), atol=1e-4
        )


# Without its terms


def test_without_information_and_latent_it_is_fop_bit_for_bit(batch, bits, scramble):
    """Networks at first, an update, and what is played: the draws of FOP are by the first of the
    key's two halves."""
    algorithm = dataclasses.replace(VM3_AC, information=0.0, latent_size=0)
    (ours, theirs), seen = (init(algorithm), init(FOP)), at(batch.timesteps, 0)
    part = lambda state: (state.actor, state.critics, state.temperature)
    assert ours.predictor is None and bits(part(ours)) == bits(part(theirs))
    networks = lambda s: (s.actor.value, s.critics.value, s.critics.target)
    mixed = tuple(scramble(x, i, 0.6) for i, x in enumerate(networks(theirs)))
    leaves = jax.tree.leaves(mixed)
    ours, theirs = (
        eqx.tree_at(networks, s, jax.tree.unflatten(jax.tree.structure(networks(s)), leaves))
        for s in (ours, theirs)
    )
    (ours, metrics), (theirs, fop_metrics) = (
        update(algorithm, ours, batch, KEY),
        update(FOP, theirs, batch, DRAW_KEY),
    )
    assert bits(part(ours)) == bits(part(theirs)) and bits(metrics) == bits(fop_metrics)
    for b, explore in itertools.product(range(len(LENGTHS)), (True, False)):
        one, memory = jax.tree.map(lambda x, b=b: x[b], seen), Memory.empty(AGENTS, 4)
        played = (
            act(algorithm, ours, memory, one, KEY, explore),
            act(FOP, theirs, memory, one, DRAW_KEY, explore),
        )
        assert bits(played[0]) == bits(played[1])


def test_one_agent_has_nobody_to_predict():
    spec = dataclasses.replace(SPEC, num_agents=1)
    state = jax.eval_shape(lambda: VM3_AC.init(spec, jax.random.key(0)))
    assert state.predictor is None
    episodes = jax.eval_shape(lambda: make_episodes(spec, LENGTHS))
    _, metrics = jax.eval_shape(lambda s, b: VM3_AC.update(s, b, CLOCK, KEY), state, episodes)
    assert "mutual_information" not in metrics and "latent_sensitivity" in metrics


# The latent


@pytest.mark.parametrize("name", VARIANTS)
def test_a_latent_at_the_head_moves_actions_but_no_memory(name, states, batch):
    algorithm, one = VARIANTS[name], jax.tree.map(lambda x: x[0, 0], batch.timesteps)
    net, memory = states[name].actor.value, Memory.empty(AGENTS, 4)
    outputs = [net.step(memory, one.obs, jnp.full(LATENT, x)) for x in (0.0, 1.0)]
    (hidden, logits), (other_hidden, other_logits) = (jax.tree.map(np.asarray, x) for x in outputs)
    assert (logits != other_logits).all()
    assert (hidden == other_hidden).all() == (algorithm.latent_at == "head")


def test_greedy_play_has_no_latent_unless_it_is_shared(states, batch):
    """All available and a head that follows z: actions tell whether there was one, and all agents'
    are the same."""
    state = states["defaults"]
    weight = (
        jnp.zeros((4 + LATENT, ACTIONS))
        .at[4:]
        .set(10.0 * jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    )
    head = lambda s: (s.actor.value.head.weight, s.actor.value.head.bias)
    state = eqx.tree_at(head, state, (weight, jnp.array([0.0, 0.0, 0.1])))
    seen = dataclasses.replace(at(batch.timesteps, 0), available=None)
    seen = Timestep(seen.obs[0], seen.state[0], jnp.ones((AGENTS, ACTIONS), bool))
    played = lambda algorithm: {
        tuple(
            act(algorithm, state, Memory.empty(AGENTS, 4), seen, jax.random.key(i), False)[
                1
            ].tolist()
        )
        for i in range(12)
    }
    assert played(VM3_AC) == {(2,) * AGENTS}
    assert played(dataclasses.replace(VM3_AC, execution_latent="shared")) == {
        (u,) * AGENTS for u in range(ACTIONS)
    }


def test_sensitivity_is_the_distance_of_policies_at_two_latents(
    updated, states, batch, z, equations, reference
):
    after, metrics = updated["defaults"]
    pi, other = (
        equations.policies(VM3_AC, reference.doubles(after.actor.value), batch, x)
        for x in (z, np.roll(z, 1, 0))
    )
    distance = 0.5 * np.abs(pi - other)[:, NOW].sum(-1).mean(-1)
    np.testing.assert_allclose(
        metrics["latent_sensitivity"], reference.masked_mean(distance, batch.mask), rtol=1e-4
    )


# Predictors


@pytest.fixture(scope="module")
def predictor(scramble):
    return scramble(ActionPredictor(SPEC, 3, key=jax.random.key(0)), 1, 0.6)


def test_who_has_one_action_left_is_predicted_for_certain(predictor):
    available = jnp.ones((AGENTS, ACTIONS), bool).at[1].set(jnp.arange(ACTIONS) == 0)
    log_q = predictor.log_q(
        jnp.zeros(AGENTS, jnp.int32), jnp.arange(AGENTS), jnp.ones((AGENTS, 2)), available
    )
    np.testing.assert_array_equal(np.asarray(log_q) == 0.0, predictor.pairs[1] == 1)


def test_a_predictor_that_knows_nothing_pays_every_action_the_same(predictor):
    """m_i = -(N - 1) / N log (number of actions)."""
    blank = jax.tree.map(jnp.zeros_like, predictor)
    available = jnp.ones((AGENTS, ACTIONS), bool)
    steps = Timestep(jnp.ones((AGENTS, 2)), jnp.ones(4), available)
    log_pi = jnp.log(jnp.array([[0.2, 0.3, 0.5]] * AGENTS))
    learner = Learner.create(blank, SMOOTH)
    bonus = VM3_AC.action_bonus(learner, steps, log_pi, jnp.float32(1.0))
    np.testing.assert_allclose(bonus, -2 / 3 * np.log(ACTIONS), rtol=1e-5)


def test_impossible_settings_are_errors():
    with pytest.raises(ValueError, match=r"temperature=\(0.5, 0.0\) of Fop must be above 0"):
        Vm3AcDiscrete(Fop(temperature=(0.5, 0.0)))
    with pytest.raises(ValueError, match=r"information=-1\.0 of Vm3AcDiscrete must be 0 or more"):
        Vm3AcDiscrete(information=-1.0)


def test_the_actor_is_fops_with_a_wider_head():
    net = LatentNet(SPEC, 4, 0, LATENT, key=jax.random.key(0))
    assert net.head.weight.shape == (4 + LATENT, ACTIONS)
