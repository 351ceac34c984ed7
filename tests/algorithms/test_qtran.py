"""QTRAN against its docstring's equations in NumPy, and what learns from which of its three
losses."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.presets import PYMARL2, QTRAN_PYMARL2
from comarl.algorithms.qtran import JointValue, Qtran
from comarl.ops.learner import Adam
from comarl.types import Clock, EnvSpec
from tests.data import SMOOTH, make_episodes

SPEC = EnvSpec(3, 2, 4, 3, discrete=True, horizon=4)
LENGTHS, GAMMA = (2, 4, 3), 0.9  # terminated, cut at the horizon, cut early
QTRAN = Qtran(
    hidden=4,
    joint_hidden=(5, 3),
    gamma=GAMMA,
    td_lambda=0.6,
    opt_weight=0.7,
    nopt_weight=0.4,
    optimiser=SMOOTH,
    target_period=3,
)


@functools.partial(jax.jit, static_argnums=0)
def update(algorithm, state, batch, number):
    return algorithm.update(
        state, batch, Clock(jnp.int32(1000), number, jnp.int32(0)), jax.random.key(0)
    )


@pytest.fixture(scope="module")
def batch():
    return make_episodes(SPEC, LENGTHS, terminated=(0,))


@pytest.fixture(scope="module")
def state(scramble):
    """Its target is not its network, values differ a good deal, and V is such that the bound holds
    on some steps."""
    state = jax.jit(lambda key: QTRAN.init(SPEC, key))(jax.random.key(0))
    networks = scramble(state.network.value, 1, 0.6), scramble(state.network.target, 2, 0.6)
    state = eqx.tree_at(lambda s: (s.network.value, s.network.target), state, networks)
    bias = lambda s: s.network.value.value.output.bias
    return eqx.tree_at(bias, state, replace_fn=lambda bias: bias + 6.3)


class Equations:
    """The docstring's equations in float64 NumPy, over a whole batch, agent by agent."""

    def __init__(self, reference, batch):
        self.reference, self.batch, self.state = reference, batch, np.float64(batch.timesteps.state)
        self.action = np.eye(SPEC.action_size)[np.asarray(batch.action)]

    def histories(self, network):
        return self.reference.histories(network.utilities.encoder, SPEC, self.batch)

    def utilities(self, network):
        head = network.utilities.head
        return self.histories(network) @ head.weight + head.bias

    def joint(self, network, history, action, state):
        """Q_jt of one-hot actions."""
        team = 0.0
        for i in range(SPEC.num_agents):
            x = np.concatenate([history[..., i, :], action[..., i, :]], axis=-1)
            team = team + self.reference.mlp(network.joint.embedder, x, self.reference.relu)
        return self.reference.mlp(
            network.joint.network, np.concatenate([state, team], axis=-1), self.reference.relu
        )[..., 0]

    def best(self, network):
        return self.reference.best(
            self.utilities(network), np.asarray(self.batch.timesteps.available)
        )

    def targets(self, network, target):
        value = self.joint(target, self.histories(target), self.best(network), self.state)
        return self.reference.lambda_targets(self.batch, value[:, 1:], GAMMA, QTRAN.td_lambda)

    def gap(self, network, before, action):
        """sum_i Q_i - Q_jt + V, in which Q_jt is what it was before."""
        total = sum(
            (self.utilities(network)[:, :-1, i] * action[:, :, i]).sum(-1)
            for i in range(SPEC.num_agents)
        )
        q = self.joint(before, self.histories(before)[:, :-1], action, self.state[:, :-1])
        value = self.reference.mlp(network.value, self.state[:, :-1], self.reference.relu)
        return total - q + value[..., 0]

    def q_taken(self, network):
        history = self.histories(network)[:, :-1]
        return self.joint(network, history, self.action, self.state[:, :-1])

    def losses(self, network, before, target):
        """L_td, L_opt, L_nopt; what is `before` does not move."""
        q = self.q_taken(network)
        best = self.best(before)[:, :-1]
        errors = (
            q - self.targets(before, target),
            self.gap(network, before, best),
            np.minimum(self.gap(network, before, self.action), 0.0),
        )
        return [self.reference.masked_mean(error**2, self.batch.mask) for error in errors]


@pytest.fixture(scope="module")
def equations(reference, batch):
    return Equations(reference, batch)


def test_an_update_descends_the_three_losses(state, batch, equations, reference):
    """Through utilities, Q_jt, V and all steps of the recurrence; targets, and Q_jt in two of them,
    are numbers."""
    after, metrics = update(QTRAN, state, batch, jnp.int32(0))
    before, target = reference.doubles(state.network.value), reference.doubles(state.network.target)
    losses = equations.losses(before, before, target)
    assert min(losses) > 0.01, "nothing would show"
    for name, expected in zip(("td_loss", "opt_loss", "nopt_loss"), losses, strict=True):
        np.testing.assert_allclose(metrics[name], expected, rtol=1e-4)
    y, q = equations.targets(before, target), equations.q_taken(before)
    means = {"target_value": y, "q_taken_mean": q, "td_error_abs": np.abs(q - y)}
    for name, expected in means.items():
        expected = reference.masked_mean(expected, batch.mask)
        np.testing.assert_allclose(metrics[name], expected, rtol=1e-4)
    weighted = lambda network: np.dot((1.0, 0.7, 0.4), equations.losses(network, before, target))
    np.testing.assert_allclose(metrics["loss"], weighted(before), rtol=1e-4)
    reference.assert_descends(state.network.value, after.network.value, weighted, entries=3)


def test_what_is_chosen_for_the_target_and_where_the_bound_holds_are_no_foregone_conclusions(
    state, equations, reference
):
    """Otherwise the test above could not tell who chooses, nor that L_nopt is one-sided."""
    live, target = reference.doubles(state.network.value), reference.doubles(state.network.target)
    mask = np.asarray(equations.batch.mask)
    assert (equations.best(live) != equations.best(target))[:, 1:][mask].any()
    gap = equations.gap(live, live, equations.action)[mask]
    assert (gap < 0).sum() >= 2 and (gap > 0).sum() >= 2


def test_the_teams_values_are_q_jt_and_the_sum_of_utilities_and_v(
    state, batch, equations, reference
):
    network = reference.doubles(state.network.value)
    each = lambda method: jax.jit(jax.vmap(lambda e: method(state, e, jax.random.key(0))))(batch)
    q = equations.q_taken(network)
    mask = np.asarray(batch.mask)
    np.testing.assert_allclose(each(QTRAN.team_values)[mask], q[mask], atol=1e-4)
    expected = q + equations.gap(network, network, equations.action)
    np.testing.assert_allclose(each(QTRAN.factored_values)[mask], expected[mask], atol=1e-4)


def test_q_jt_learns_from_the_td_error_alone_and_utilities_and_v_from_the_other_two(
    state, batch, bits
):
    """Histories learn from all three."""
    weights = {"all": (0.7, 0.4), "opt": (0.7, 0.0), "td": (0.0, 0.0)}
    variants = {
        k: dataclasses.replace(QTRAN, opt_weight=x, nopt_weight=y) for k, (x, y) in weights.items()
    }
    after = {k: update(x, state, batch, jnp.int32(0))[0].network.value for k, x in variants.items()}
    before = state.network.value
    for one in after.values():
        for a, b in zip(
            jax.tree.leaves(one.joint), jax.tree.leaves(after["td"].joint), strict=True
        ):
            np.testing.assert_allclose(a, b, atol=1e-6)
    assert bits(after["td"].joint) != bits(before.joint)
    assert bits(after["td"].utilities.encoder) != bits(before.utilities.encoder)
    for part in (lambda n: n.utilities.head, lambda n: n.value):
        assert bits(part(after["td"])) == bits(part(before))
        assert len({tuple(bits(part(network))) for network in after.values()}) == 3


def test_the_target_is_copied_after_every_third_update_and_only_then(state, batch, bits):
    for number in range(4):
        before, (state, _) = state, update(QTRAN, state, batch, jnp.int32(number))
        assert bits(state.network.target) == bits(
            state.network.value if number == 2 else before.network.target
        )


def test_q_jt_does_not_mind_which_agent_stands_where(scramble):
    joint = scramble(JointValue(SPEC, 4, (5, 3), key=jax.random.key(0)), 3, 0.6)
    random, order = np.random.default_rng(0), jnp.array([2, 0, 1])
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    history, action, state = (
        draw(6, 3, 4),
        jax.nn.one_hot(random.integers(0, 3, (6, 3)), 3),
        draw(6, 4),
    )
    q = joint(history, action, state)
    np.testing.assert_allclose(joint(history[:, order], action[:, order], state), q, atol=1e-5)
    assert np.abs(joint(history[:, order], action, state) - q).max() > 0.01, (
        "an action belongs to its history"
    )


def test_the_preset_has_the_settings_common_to_pymarl2():
    assert dataclasses.replace(Qtran(), **PYMARL2) == QTRAN_PYMARL2
    assert Adam(1e-3) == QTRAN_PYMARL2.optimiser and QTRAN_PYMARL2.td_lambda == 0.6
    assert QTRAN_PYMARL2.pace.parallel_envs == 8
