"""The parts of duplex dueling against NumPy, and how gradients go through them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.nn.duplex import Attention, Importance, Positive, dueling
from comarl.types import EnvSpec, Timestep
from tests.nn import reference_duplex

SPEC = EnvSpec(num_agents=3, obs_size=2, state_size=7, action_size=4, discrete=True, horizon=5)
ATTENTIONS = {
    "what each sees": (0, False, False),
    "parts of the state": (2, False, False),
    "weighted heads, with utilities": (0, True, True),
    "all": (2, True, True),
}


@pytest.fixture(scope="module")
def inputs():
    """Utilities, action, observations and states of 5 times 2 steps."""
    random = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(random.normal(size=(5, 2, *shape)), jnp.float32)
    return (
        draw(3),
        jnp.asarray(random.integers(0, 4, (5, 2, 3)), jnp.int32),
        Timestep(draw(3, 2), draw(7)),
    )


def doubles(*arrays):
    return tuple(np.float64(x) for x in arrays)


@pytest.mark.parametrize("hidden", [(), (6,), (6, 5)])
def test_importance_equals_its_equation_and_is_positive(hidden, inputs, scramble, reference):
    _, action, steps = inputs
    make = jax.jit(lambda key: Importance(SPEC, 4, hidden, key=key))
    net = scramble(make(jax.random.key(0)), 1, 0.5)
    found = jax.jit(lambda net: net(steps.state, action))(net)
    state = np.float64(steps.state)
    expected = reference_duplex.importance(reference.doubles(net), state, action)
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert (found > 0).all() and found.std() > 0.1


def test_each_kernel_starts_apart_as_a_linear_layer_of_pytorch_does():
    net = Importance(SPEC, 4, (), key=jax.random.key(0))
    weight = np.asarray(net.actions.output.weight)
    assert weight.shape == (4, 7 + 3 * 4, 3) and len(np.unique(weight)) == weight.size
    assert 0.9 < np.abs(weight).max() * np.sqrt(7 + 3 * 4) <= 1


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attention_equals_its_equations(name, inputs, scramble, reference):
    (unit_size, weighted_heads, nonlinear), (utilities, _, steps) = ATTENTIONS[name], inputs
    kind: dict[str, Any] = dict(weighted_heads=weighted_heads, nonlinear=nonlinear)
    make = jax.jit(lambda key: Attention(SPEC, 2, 5, 6, unit_size, **kind, key=key))
    net = scramble(make(jax.random.key(0)), 1, 0.5)
    found = jax.jit(lambda net: net(utilities, steps))(net)
    expected = reference_duplex.attention(
        reference.doubles(net), *doubles(utilities, steps.obs, steps.state)
    )
    for one, two in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)
    assert (found[0] > 0).all() and found[0].std() > 0.1
    if not weighted_heads:
        np.testing.assert_allclose(found[0].sum(-1), 2.0, rtol=1e-5)  # each head gives 1


def test_attention_needs_a_state_that_holds_all_agents():
    with pytest.raises(
        ValueError, match="unit_size=3: 3 agents need 9 entries of the state, which has 7"
    ):
        Attention(SPEC, 2, 5, 6, 3, weighted_heads=False, nonlinear=False, key=jax.random.key(0))


def test_the_plain_transformation_equals_its_equations(inputs, scramble, reference):
    utilities, _, steps = inputs
    net = scramble(jax.jit(lambda key: Positive(SPEC, 6, key=key))(jax.random.key(0)), 1, 0.5)
    found = jax.jit(lambda net: net(utilities, steps))(net)
    for one, two in zip(
        found, reference_duplex.positive(reference.doubles(net), *doubles(steps.state)), strict=True
    ):
        np.testing.assert_allclose(one, np.broadcast_to(two, one.shape), rtol=1e-4, atol=1e-5)


def test_dueling_by_hand_and_where_its_gradient_goes():
    """2 + 3 (1 - 2) + 5 + 0.5 (4 - 5): by q only the plain sum moves it, by v nothing, by lambda
    the advantages."""
    q, v, weight = jnp.array([1.0, 4.0]), jnp.array([2.0, 5.0]), jnp.array([3.0, 0.5])
    assert dueling(q, v, weight) == 2 - 3 + 5 - 0.5
    assert dueling(q, v, jnp.ones(2)) == q.sum()
    by_q, by_v, by_weight = jax.grad(dueling, argnums=(0, 1, 2))(q, v, weight)
    assert by_q.tolist() == [1, 1] and by_v.tolist() == [0, 0] and by_weight.tolist() == [-1, -1]
