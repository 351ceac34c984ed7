"""QPLEX against its docstring's equations in NumPy; what it can represent, and what its structure
promises."""

import dataclasses
import functools
import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.presets import QPLEX_PYMARL2
from comarl.algorithms.qplex import DuplexMixer, Qplex
from comarl.envs.matrix import GAMES
from comarl.types import Clock, EnvSpec, Timestep
from tests.data import SMOOTH, make_episodes
from tests.nn import reference_duplex

AGENTS, OBS, STATE, ACTIONS, HORIZON = 3, 2, 4, 3, 4
SPEC = EnvSpec(AGENTS, OBS, STATE, ACTIONS, discrete=True, horizon=HORIZON)
LENGTHS, GAMMA = (2, HORIZON, 3), 0.9  # terminated, cut at the horizon, cut early
SIZES: dict[str, Any] = dict(
    hidden=4, hypernet=3, mixer_width=3, kernels=2, attention_heads=2, gamma=GAMMA, optimiser=SMOOTH
)
QPLEX = Qplex(**SIZES, td_lambda=0.6, target_period=3)
ATTENTION = dataclasses.replace(QPLEX, mixing="attention", logit_penalty=0.3)
VARIANTS: dict[str, Any] = {
    "qplex": QPLEX,
    "deep, one step, not double": dataclasses.replace(
        QPLEX, importance_hidden=(3,), td_lambda=0.0, double=False
    ),
    "attention": ATTENTION,
    "attention, all": dataclasses.replace(
        ATTENTION, weighted_heads=True, nonlinear=True, unit_size=1
    ),
}


CLOCK = Clock(jnp.int32(1000), jnp.int32(0), jnp.int32(0))


@functools.partial(jax.jit, static_argnums=(0, 1))
def init(algorithm, spec=SPEC):
    return algorithm.init(spec, jax.random.key(0))


@functools.partial(jax.jit, static_argnums=0)
def update(algorithm, state, batch, number):
    clock = Clock(jnp.int32(1000), number, jnp.int32(0))
    return algorithm.update(state, batch, clock, jax.random.key(0))


@pytest.fixture(scope="module")
def batch():
    return make_episodes(SPEC, LENGTHS, terminated=(0,))


@pytest.fixture(scope="module")
def states(scramble):
    """`states(algorithm)`: a state whose target is not its network, and in which values differ a
    good deal."""

    @functools.cache
    def make(algorithm):
        state = init(algorithm)
        networks = scramble(state.network.value, 1, 0.6), scramble(state.network.target, 2, 0.6)
        return eqx.tree_at(lambda s: (s.network.value, s.network.target), state, networks)

    return make


@pytest.fixture(scope="module")
def equations(reference):
    """Q_tot, logits and y of a batch; what passes no gradient comes from `before`."""

    def utilities_of(network, batch):
        encoder, head = network.utilities.encoder, network.utilities.head
        return reference.histories(encoder, SPEC, batch) @ head.weight + head.bias

    def taken(utilities, action):
        return np.take_along_axis(utilities, np.asarray(action)[..., None], -1)[..., 0]

    def parts(mixer, utilities, action, obs, state, available):
        """Q~, V~, lambda and the squared logits."""
        q, v = taken(utilities, action), np.where(available, utilities, -1e10).max(-1)
        transform = mixer.transform
        if hasattr(transform, "keys"):
            w, b, logits = reference_duplex.attention(transform, q, obs, state)
        else:
            w, b, logits = reference_duplex.positive(transform, state)
        importance = reference_duplex.importance(mixer.importance, state, action)
        return w * q + b, w * v + b, importance, logits

    def at(batch, steps):
        t = batch.timesteps
        return (
            np.float64(t.obs[:, steps]),
            np.float64(t.state[:, steps]),
            np.asarray(t.available[:, steps]),
        )

    def q_tot(network, before, batch):
        now, both = at(batch, slice(-1)), []
        for net in (network, before):
            both.append(parts(net.mixer, utilities_of(net, batch)[:, :-1], batch.action, *now))
        (q, _, weight, logits), (stopped_q, stopped_v, _, _) = both
        total = 0.0
        for i in range(AGENTS):
            total = total + q[..., i] + (weight[..., i] - 1) * (stopped_q - stopped_v)[..., i]
        return total, logits + 0 * total

    def targets(algorithm, network, target, batch):
        live, target_utilities = utilities_of(network, batch), utilities_of(target, batch)
        later = at(batch, slice(1, None))
        best = reference.best(
            live if algorithm.double else target_utilities, np.asarray(batch.timesteps.available)
        ).argmax(-1)
        q, v, weight, _ = parts(target.mixer, target_utilities[:, 1:], best[:, 1:], *later)
        value = v.sum(-1) + (weight * (q - v)).sum(-1)
        return reference.lambda_targets(batch, value, GAMMA, algorithm.td_lambda)

    return q_tot, targets


@pytest.mark.parametrize("name", VARIANTS)
def test_an_update_descends_the_equations_and_the_stopped_advantage_passes_no_gradient(
    name, batch, states, equations, reference
):
    algorithm, (q_tot, targets) = VARIANTS[name], equations
    state = states(algorithm)
    after, metrics = update(algorithm, state, batch, jnp.int32(0))
    before, target = reference.doubles(state.network.value), reference.doubles(state.network.target)
    y, mask = targets(algorithm, before, target, batch), batch.mask

    def errors(network):
        q, logits = q_tot(network, before, batch)
        return reference.masked_mean((q - y) ** 2, mask), reference.masked_mean(logits, mask)

    error, logits = errors(before)
    penalty = algorithm.logit_penalty * logits
    q, _ = q_tot(before, before, batch)
    expected = {
        "loss": error + penalty,
        "td_loss": error,
        "logit_penalty": penalty,
        "q_taken_mean": reference.masked_mean(q, mask),
        "target_value": reference.masked_mean(y, mask),
        "td_error_abs": reference.masked_mean(np.abs(q - y), mask),
        "epsilon": algorithm.epsilon.at(CLOCK),
    }
    assert metrics.keys() == expected.keys()
    for metric, value in expected.items():
        np.testing.assert_allclose(metrics[metric], value, rtol=1e-4, atol=1e-6, err_msg=metric)
    assert (logits > 0.01) == (algorithm.mixing == "attention")
    weigh = lambda network: np.dot(errors(network), (1.0, algorithm.logit_penalty))
    reference.assert_descends(state.network.value, after.network.value, weigh, entries=2)

    values = jax.jit(
        jax.vmap(lambda episode: algorithm.team_values(state, episode, jax.random.key(0)))
    )(batch)
    found, expected = np.where(mask, values, 0), np.where(mask, q_tot(before, before, batch)[0], 0)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_target_is_often_worse_than_its_own_best(batch, states, reference):
    """Otherwise nobody could tell whether the target's advantage counts."""
    state = states(QPLEX)
    unroll = jax.jit(jax.vmap(lambda net, episode: net.unroll(episode), (None, 0)))
    live, target = (
        np.asarray(unroll(n.utilities, batch)) for n in (state.network.value, state.network.target)
    )
    available, there = np.asarray(batch.timesteps.available)[:, 1:], np.asarray(batch.mask)
    differ = reference.best(live[:, 1:], available) != reference.best(target[:, 1:], available)
    assert differ.any((-1, -2))[there].sum() >= 3


def test_the_target_is_copied_after_every_third_update_and_only_then(batch, states, bits):
    for number in range(4):
        state = states(QPLEX)
        after, _ = update(QPLEX, state, batch, jnp.int32(number))
        assert bits(after.network.target) == bits(
            after.network.value if number == 2 else state.network.target
        )
        assert bits(after.network.value) != bits(state.network.value)


def test_the_presets_are_what_they_say():
    assert QPLEX_PYMARL2.importance_hidden == (64,) and QPLEX_PYMARL2.td_lambda == 0.6
    assert QPLEX_PYMARL2.replay.batch_size == 128 and QPLEX_PYMARL2.mixing == "duplex"
    shapes = jax.eval_shape(lambda: Qplex().init(SPEC, jax.random.key(0)).network.value.mixer)
    assert shapes.importance.actions.output.weight.shape == (4, STATE + AGENTS * ACTIONS, AGENTS)
    assert shapes.transform.weight.output.weight.shape == (64, AGENTS)


# What its structure promises


def joint_actions(spec=SPEC):
    return jnp.array(
        list(itertools.product(range(spec.action_size), repeat=spec.num_agents)), jnp.int32
    )


@jax.jit
def table(mixer: DuplexMixer, utilities, timestep):
    """Q_tot of every joint action."""

    def value(action):
        chosen = jnp.take_along_axis(utilities, action[:, None], axis=-1)[:, 0]
        return mixer(chosen, utilities.max(-1), action, timestep)[0]

    return jax.vmap(value)(joint_actions())


def shortfalls(algorithm, scramble, trials=60):
    """How far each agent's own best falls short of the best joint action, in so many random
    networks."""
    mixer, random = init(algorithm).network.value.mixer, np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(3 * random.normal(size=shape), jnp.float32)
    result = []
    for trial in range(trials):
        utilities, seen = draw(AGENTS, ACTIONS), Timestep(draw(AGENTS, OBS), draw(STATE))
        found = np.asarray(table(scramble(mixer, trial, 1.0), utilities, seen)).reshape(
            (ACTIONS,) * AGENTS
        )
        result.append(
            (found.max() - found[tuple(utilities.argmax(-1))], np.ptp(found), np.abs(found).max())
        )
    shortfall, extent, size = np.array(result).T
    assert np.median(extent) > 0.1
    return shortfall / size


ROUNDING = 1e-5  # a weight may be so near 0 that an action makes no difference in 32 bits


@pytest.mark.parametrize(
    "name", ["qplex", "deep, one step, not double", "attention", "weighted heads"]
)
def test_the_best_joint_action_is_every_agents_own_best(name, scramble):
    """Individual-global-max, for any parameters."""
    weighted = dataclasses.replace(ATTENTION, weighted_heads=True)
    assert shortfalls({**VARIANTS, "weighted heads": weighted}[name], scramble).max() < ROUNDING


def test_weights_that_see_utilities_give_that_up(scramble):
    found = shortfalls(dataclasses.replace(ATTENTION, nonlinear=True), scramble)
    assert (found > 0.01).sum() > 3


def test_weights_are_never_negative_and_do_move_with_the_joint_action(scramble):
    importance = scramble(init(QPLEX).network.value.mixer.importance, 0, 2.0)
    state = jnp.asarray(np.random.default_rng(0).normal(size=(27, STATE)), jnp.float32)
    found = np.asarray(
        jax.jit(lambda net: net(jnp.broadcast_to(state[0], state.shape), joint_actions()))(
            importance
        )
    )
    assert (found > 0).all() and (found.std(0) > 0.05).all()


def test_utilities_learn_through_the_sum_and_lambda_from_the_advantages(scramble):
    """dQ_tot / dQ_i is w_i, whatever lambda; lambda's parameters learn, unless all choose their
    best."""
    mixer = scramble(init(QPLEX).network.value.mixer, 0, 0.5)
    random = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    timestep, q, action = (
        Timestep(draw(AGENTS, OBS), draw(STATE)),
        draw(AGENTS),
        jnp.array([0, 2, 1], jnp.int32),
    )
    q_tot = lambda mixer, q, best: mixer(q, best, action, timestep)[0]
    by_mixer, by_q, by_best = jax.jit(jax.grad(q_tot, argnums=(0, 1, 2)))(mixer, q, q + 1.0)
    weight, _, _ = jax.jit(lambda transform: transform(q, timestep))(mixer.transform)
    np.testing.assert_allclose(by_q, weight, rtol=1e-5)
    assert not by_best.any()
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(by_mixer.importance))
    at_best = jax.jit(jax.grad(q_tot))(mixer, q, q)
    assert not any(leaf.any() for leaf in jax.tree.leaves(at_best.importance))


def test_some_parameters_give_qtrans_table_exactly():
    """What it can represent, whether or not it learns it.

    Both utilities are 4 for A and 40 less otherwise; w is 1 and b is 0. The advantages that the
    table asks for are -20 where one agent leaves A and -8 where both do, so the weight of one that
    left is 1/2 if the other stays and 1/10 if not: a single linear kernel, 2 sigmoid(0) sigmoid(x),
    with x = 0 and x = -log 9.
    """
    game = GAMES["qtran"]
    spec, payoff = game.spec, np.array(game.payoff[0])
    _, timestep = game.reset(jax.random.key(0))
    network = init(Qplex(hidden=4, hypernet=3, kernels=1), spec).network.value
    mixer = jax.tree.map(jnp.zeros_like, network.mixer)
    # The inputs of x are the state, the first agent's action and the second's: each sees whether
    # the other chose A.
    row = lambda agent: spec.state_size + agent * spec.action_size
    x = (
        mixer.importance.actions.output.weight.at[0, row(0), 1]
        .set(np.log(9))
        .at[0, row(1), 0]
        .set(np.log(9))
    )
    where = lambda m: (
        m.transform.weight.output.bias,
        m.importance.keys.output.bias,
        m.importance.actions.output.weight,
        m.importance.actions.output.bias,
    )
    values = (jnp.ones(2), jnp.full((1, 1), 2.0), x, jnp.full((1, 2), -np.log(9), jnp.float32))
    network = eqx.tree_at(lambda n: n.mixer, network, eqx.tree_at(where, mixer, values))
    utilities = jnp.array([[4.0, -36.0, -36.0]] * 2)
    value = lambda network, action: network.team(utilities, action, timestep)[0]
    found = np.asarray(jax.jit(jax.vmap(value, (None, 0)))(network, joint_actions(spec))).reshape(
        3, 3
    )
    np.testing.assert_allclose(found, payoff, atol=1e-4)
    assert utilities.argmax(-1).tolist() == [0, 0] and found.argmax() == 0
