"""The estimator of mutual information: a dot product of two small networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.nn.mine import Mine

STATE, FEATURES, WIDTH, BATCH, AGENTS = 4, 3, 5, 6, 2


@pytest.fixture(scope="module")
def mine(scramble):
    return scramble(Mine(STATE, FEATURES, WIDTH, key=jax.random.key(0)), seed=0)


@pytest.fixture(scope="module")
def batch():
    random = np.random.default_rng(0)
    shapes = ((BATCH, STATE), (BATCH, AGENTS, FEATURES))
    return tuple(jnp.asarray(random.normal(size=shape), jnp.float32) for shape in shapes)


def branches(reference, mine, state, z):
    """f(s): two layers; g(z): one. All leaky."""
    layer = lambda one, x: reference.leaky_relu(np.float64(x) @ one.weight + one.bias)
    mine = reference.doubles(mine)
    first, second = mine.state_branch.layers
    (only,) = mine.z_branch.layers
    return layer(second, layer(first, state)), layer(only, z)


def test_a_score_is_the_dot_product_of_a_states_and_a_representations_branch(
    mine, batch, reference
):
    state, z = batch
    f, g = branches(reference, mine, state, z[:, 0])
    expected = [[sum(f[m] * g[k]) for k in range(BATCH)] for m in range(BATCH)]
    np.testing.assert_allclose(
        jax.jit(lambda m, *x: m(*x))(mine, state, z[:, 0]), expected, atol=1e-4
    )


def test_the_scores_of_a_team_are_those_of_its_agents_each_on_its_own(mine, batch, reference):
    """`scores[m, k, i]` is T(s_m, z_ki)."""
    state, z = batch
    f, g = branches(reference, mine, state, z)
    found = jax.jit(lambda m, *x: m.team_scores(*x))(mine, state, z)
    assert found.shape == (BATCH, BATCH, AGENTS)
    for m, k, i in np.ndindex(found.shape):
        np.testing.assert_allclose(found[m, k, i], f[m] @ g[k, i], atol=1e-4)


def test_the_branches_have_the_papers_layers():
    """State: two of 128; representation: one of 128 (App. A.1)."""
    mine = jax.eval_shape(lambda k: Mine(STATE, FEATURES, 128, key=k), jax.random.key(0))
    assert [layer.weight.shape for layer in mine.state_branch.layers] == [(STATE, 128), (128, 128)]
    assert [layer.weight.shape for layer in mine.z_branch.layers] == [(FEATURES, 128)]
