"""CW-QMIX and OW-QMIX against their docstring's equations in NumPy, and what learns from what."""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.presets import (
    CW_QMIX,
    CW_QMIX_PYMARL2,
    OW_QMIX,
    OW_QMIX_PYMARL2,
    PYMARL2,
)
from comarl.algorithms.wqmix import Wqmix
from comarl.types import Clock, EnvSpec
from tests.data import SMOOTH, make_episodes

SPEC = EnvSpec(2, 2, 4, 3, discrete=True, horizon=5)
LENGTHS, GAMMA, LAMBDA, LOW = (
    (2, 5, 3, 4),
    0.9,
    0.6,
    0.3,
)  # the first two terminated, the others cut
SMALL: dict[str, Any] = dict(
    hidden=4, mixer_width=3, hypernet=4, unrestricted_width=5, gamma=GAMMA, td_lambda=LAMBDA
)
CW = Wqmix(**SMALL, low_weight=LOW, optimiser=SMOOTH, target_period=3)
VARIANTS = {"cw": CW, "ow": dataclasses.replace(CW, weighting="optimistic")}


@functools.partial(jax.jit, static_argnums=0)
def update(algorithm, state, batch, number):
    return algorithm.update(
        state, batch, Clock(jnp.int32(1000), number, jnp.int32(0)), jax.random.key(0)
    )


@pytest.fixture(scope="module")
def batch():
    return make_episodes(SPEC, LENGTHS, terminated=(0, 1))


@pytest.fixture(scope="module")
def state(scramble):
    """Its target is not its network, and values differ a good deal."""
    state = jax.jit(lambda key: CW.init(SPEC, key))(jax.random.key(0))
    networks = scramble(state.network.value, 1, 0.6), scramble(state.target_unrestricted, 2, 0.6)
    return eqx.tree_at(lambda s: (s.network.value, s.target_unrestricted), state, networks)


class Equations:
    """The docstring's equations in float64 NumPy, over a whole batch."""

    def __init__(self, reference, batch):
        self.reference, self.batch, self.state = reference, batch, np.float64(batch.timesteps.state)
        self.action = np.eye(SPEC.action_size)[np.asarray(batch.action)]

    def utilities(self, net):
        histories = self.reference.histories(net.encoder, SPEC, self.batch)
        return histories @ net.head.weight + net.head.bias

    def best(self, network):
        """u* of every step, one-hot."""
        return self.reference.best(
            self.utilities(network.utilities), np.asarray(self.batch.timesteps.available)
        )

    def q_tot(self, network):
        chosen = (self.utilities(network.utilities)[:, :-1] * self.action).sum(-1)
        return self.reference.mixer(network.mixer, chosen, self.state[:, :-1])

    def q_star(self, unrestricted, action):
        """Of one-hot actions at the first steps."""
        mlp = lambda m, x: self.reference.mlp(m, x, self.reference.relu)[..., 0]
        steps = action.shape[1]
        chosen = (self.utilities(unrestricted.utilities)[:, :steps] * action).sum(-1)
        state = self.state[:, :steps]
        joined = mlp(unrestricted.mixer, np.concatenate([state, chosen], axis=-1))
        return joined + mlp(unrestricted.bias, state)

    def targets(self, network, target):
        value = self.q_star(target, self.best(network))
        return self.reference.lambda_targets(self.batch, value[:, 1:], GAMMA, LAMBDA)

    def important(self, name, network, target):
        """The two reasons to weigh a step fully, of which OW-QMIX knows one."""
        y = self.targets(network, target)
        if name == "ow":
            return [y > self.q_tot(network)]
        best = self.best(network)
        is_best = (self.action == best[:, :-1]).all((-2, -1))
        return [is_best, y > self.q_star(target, best)[:, :-1]]

    def losses(self, name, network, before, target):
        """Of Q_tot and of Q*; what is `before` does not move."""
        y = self.targets(before, target)
        weight = np.where(np.any(self.important(name, before, target), axis=0), 1.0, LOW)
        errors = (
            weight * (self.q_tot(network) - y) ** 2,
            (self.q_star(network.unrestricted, self.action) - y) ** 2,
        )
        return [self.reference.masked_mean(error, self.batch.mask) for error in errors]


@pytest.fixture(scope="module")
def equations(reference, batch):
    return Equations(reference, batch)


@pytest.mark.parametrize("name", VARIANTS)
def test_an_update_descends_both_losses(name, state, batch, equations, reference):
    """Through both recurrences and mixers; targets and weights are numbers."""
    after, metrics = update(VARIANTS[name], state, batch, jnp.int32(0))
    before, target = (
        reference.doubles(state.network.value),
        reference.doubles(state.target_unrestricted),
    )
    losses = equations.losses(name, before, before, target)
    np.testing.assert_allclose(
        [metrics["monotonic_loss"], metrics["unrestricted_loss"]], losses, rtol=1e-4
    )
    np.testing.assert_allclose([metrics["loss"], metrics["td_loss"]], sum(losses), rtol=1e-4)
    weight = np.where(np.any(equations.important(name, before, target), axis=0), 1.0, LOW)
    y, q = equations.targets(before, target), equations.q_tot(before)
    means = {
        "weight": weight,
        "target_value": y,
        "q_taken_mean": q,
        "td_error_abs": np.abs(q - y),
        "unrestricted_value": equations.q_star(before.unrestricted, equations.action),
    }
    for metric, expected in means.items():
        np.testing.assert_allclose(
            metrics[metric], reference.masked_mean(expected, batch.mask), rtol=1e-4
        )
    total = lambda network: sum(equations.losses(name, network, before, target))
    reference.assert_descends(state.network.value, after.network.value, total, entries=2)


def test_every_reason_for_a_full_weight_holds_somewhere_alone_and_somewhere_none_does(
    state, equations, reference
):
    """Otherwise the test above could not tell one from another; nor who chooses for the target."""
    network, target = (
        reference.doubles(state.network.value),
        reference.doubles(state.target_unrestricted),
    )
    mask = np.asarray(equations.batch.mask)
    best, better = (x[mask] for x in equations.important("cw", network, target))
    (optimistic,) = (x[mask] for x in equations.important("ow", network, target))
    assert (best & ~better).any() and (better & ~best).any() and not (best | better).all()
    assert optimistic.any() and not optimistic.all() and (optimistic != (best | better)).any()
    other = reference.best(
        equations.utilities(target.utilities), np.asarray(equations.batch.timesteps.available)
    )
    assert (other != equations.best(network))[:, 1:][mask].any()


def test_the_teams_values_are_q_tot_and_q_star(state, batch, equations, reference):
    network, mask = reference.doubles(state.network.value), np.asarray(batch.mask)
    each = lambda method: jax.jit(jax.vmap(lambda e: method(state, e, jax.random.key(0))))(batch)
    np.testing.assert_allclose(
        each(CW.team_values)[mask], equations.q_tot(network)[mask], atol=1e-4
    )
    q_star = equations.q_star(network.unrestricted, equations.action)
    np.testing.assert_allclose(each(CW.unrestricted_values)[mask], q_star[mask], atol=1e-4)


def test_q_star_learns_the_same_however_q_tot_is_weighted(state, batch, bits):
    """And with a low weight of 1 the two weightings are one."""
    after = [
        update(algorithm, state, batch, jnp.int32(0))[0].network.value
        for algorithm in VARIANTS.values()
    ]
    assert bits(after[0].unrestricted) == bits(after[1].unrestricted)
    assert bits(after[0].mixer) != bits(after[1].mixer)
    even = [dataclasses.replace(algorithm, low_weight=1.0) for algorithm in VARIANTS.values()]
    one, two = (update(algorithm, state, batch, jnp.int32(0)) for algorithm in even)
    assert bits(one[0].network.value) == bits(two[0].network.value)
    assert one[1]["weight"] == 1.0


def test_the_target_is_a_copy_of_q_star_after_every_third_update_and_only_then(state, batch, bits):
    for number in range(4):
        before, (state, _) = state, update(CW, state, batch, jnp.int32(number))
        assert bits(state.target_unrestricted) == bits(
            state.network.value.unrestricted if number == 2 else before.target_unrestricted
        )


def test_q_tot_never_falls_as_a_utility_rises_and_q_star_may(state):
    network = state.network.value
    random = np.random.default_rng(0)
    q, world = (jnp.asarray(random.normal(size=(100, size)), jnp.float32) for size in (2, 4))
    slope = lambda mix: np.asarray(jax.jit(jax.vmap(jax.grad(mix)))(q, world))
    assert slope(network.mixer).min() >= 0.0 and slope(network.unrestricted.mix).min() < -0.1


def test_presets_are_what_they_say():
    assert (CW_QMIX.weighting, OW_QMIX.weighting) == ("central", "optimistic")
    assert dataclasses.replace(CW_QMIX, weighting="optimistic") == OW_QMIX
    for one, two in ((CW_QMIX, CW_QMIX_PYMARL2), (OW_QMIX, OW_QMIX_PYMARL2)):
        assert dataclasses.replace(one, **PYMARL2) == two
