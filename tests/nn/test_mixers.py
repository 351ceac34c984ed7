"""Mixers against their equations, weight by weight, and what their signs promise."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.nn.mixers import Sum, make_mixer

AGENTS, STATE, WIDTH, HYPERNET = 3, 4, 5, 6
BATCH = 100


def make(mixing, hypernet=HYPERNET) -> Any:
    return make_mixer(mixing, AGENTS, STATE, width=WIDTH, hypernet=hypernet, key=jax.random.key(0))


@pytest.fixture(scope="module")
def batch():
    """Utilities and states, large enough that elu bends and weights change their sign."""
    random = np.random.default_rng(0)
    return tuple(
        jnp.asarray(2.0 * random.normal(size=(BATCH, n)), jnp.float32) for n in (AGENTS, STATE)
    )


@jax.jit
def mix(mixer, utilities, state):
    return mixer(utilities, state)


@jax.jit
def slopes(mixer, utilities, state):
    """d Q_tot / d Q_i of every item."""
    return jax.vmap(jax.grad(lambda q, s: mixer(q, s)), (0, 0))(utilities, state)


def in_numpy(mixer, q, s, sign):
    """One item, weight by weight: Q_tot = |W2(s)| elu(|W1(s)| q + b1(s)) + b2(s)."""
    linear = lambda layer, x: x @ layer.weight + layer.bias
    relu_net = lambda net, x: linear(net.output, np.maximum(linear(net.torso.layers[0], x), 0.0))
    hyper = lambda net: relu_net(net, s) if hasattr(net, "torso") else linear(net, s)
    first, second = sign(hyper(mixer.first_weights)), sign(hyper(mixer.second_weights))
    offset, total = linear(mixer.first_bias, s), relu_net(mixer.second_bias, s)[0]
    for k in range(WIDTH):
        x = offset[k] + sum(q[i] * first[i * WIDTH + k] for i in range(AGENTS))
        total += second[k] * (x if x > 0 else np.expm1(x))
    return total


@pytest.mark.parametrize("hypernet", [HYPERNET, 0])
@pytest.mark.parametrize("mixing", ["monotonic", "any"])
def test_a_mixer_equals_its_equation_weight_by_weight(batch, scramble, reference, mixing, hypernet):
    mixer = scramble(make(mixing, hypernet), seed=1)
    sign = np.abs if mixing == "monotonic" else lambda w: w
    found = mix(mixer, *batch)
    mixer = reference.doubles(mixer)
    expected = [
        in_numpy(mixer, np.float64(q), np.float64(s), sign) for q, s in zip(*batch, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("hypernet", [HYPERNET, 0])
def test_no_utility_that_rises_makes_the_teams_value_fall(batch, scramble, hypernet):
    slope = slopes(scramble(make("monotonic", hypernet), seed=2), *batch)
    assert (slope >= 0).all() and (slope > 0).any(0).all()


def test_without_the_sign_constraint_the_teams_value_may_fall(batch, scramble):
    assert (slopes(scramble(make("any"), seed=2), *batch) < 0).any(0).all()


@pytest.mark.parametrize("mixing", ["monotonic", "sum"])
def test_each_agents_best_action_is_the_best_joint_action(scramble, mixing):
    """IGM: the greedy joint action has the highest value of all 27."""
    mixer, random = scramble(make(mixing), seed=3), np.random.default_rng(3)
    joint = np.array(list(itertools.product(range(3), repeat=AGENTS)))
    for _ in range(20):
        utilities, state = random.normal(size=(AGENTS, 3)), random.normal(size=STATE)
        chosen = jnp.asarray(utilities[np.arange(AGENTS), joint], jnp.float32)
        values = mix(mixer, chosen, jnp.tile(jnp.asarray(state, jnp.float32), (27, 1)))
        greedy = joint.tolist().index(utilities.argmax(1).tolist())
        assert values[greedy] >= values.max() - 1e-6


def test_a_sum_is_the_sum_whatever_the_state(batch):
    utilities, state = batch
    np.testing.assert_allclose(
        mix(make("sum"), utilities, state), np.asarray(utilities).sum(1), rtol=1e-5
    )
    assert isinstance(make("sum"), Sum) and not jax.tree.leaves(make("sum"))


def test_the_state_decides_how_utilities_are_mixed(batch, scramble):
    slope = slopes(scramble(make("monotonic"), seed=2), jnp.zeros((BATCH, AGENTS)), batch[1])
    assert np.std(slope, axis=0).min() > 0.01


def test_any_leading_axes_are_mixed_item_by_item(batch, scramble):
    mixer = scramble(make("monotonic"), seed=1)
    folded = mix(mixer, *(x.reshape(2, BATCH // 2, -1) for x in batch))
    np.testing.assert_allclose(folded.reshape(-1), mix(mixer, *batch), rtol=1e-5)
    one = mix(mixer, batch[0][0], batch[1][0])
    np.testing.assert_allclose(one, mix(mixer, *batch)[0], rtol=1e-5)


def test_hypernet_0_makes_the_weights_linear_in_the_state():
    linear, nonlinear = make("monotonic", 0), make("monotonic")
    assert linear.first_weights.weight.shape == (STATE, AGENTS * WIDTH)
    assert linear.second_weights.weight.shape == (STATE, WIDTH)
    assert nonlinear.first_weights.torso.layers[0].weight.shape == (STATE, HYPERNET)


def test_the_sign_constraint_is_the_only_difference_between_the_two_mixers(bits):
    free, bound = make("any"), make("monotonic")
    assert bits(free) == bits(bound)
    assert (free.monotonic, bound.monotonic) == (False, True)
