import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.nn.critics import Critic, FactoredCritic, TeamCritic, TeamFactoredCritic
from comarl.nn.policies import make_heads

FEATURES = 8


@pytest.fixture(scope="module")
def critic(spec, scramble):
    make = jax.jit(lambda k: Critic(spec, (16, 8), critics=3, layer_norm=True, key=k))
    return scramble(make(jax.random.key(0)), seed=0)


@pytest.fixture(scope="module")
def team_critic(spec, scramble):
    make = jax.jit(lambda k: TeamCritic(spec, FEATURES, (16, 8), 4, layer_norm=True, key=k))
    return scramble(make(jax.random.key(1)), seed=1)


@pytest.fixture(scope="module")
def heads(spec):
    return make_heads(spec, FEATURES, jax.random.key(2))


@pytest.fixture(scope="module")
def batch(make_batch, spec):
    return make_batch(spec, 6)


call = jax.jit(lambda critic, *inputs: critic(*inputs))
first = jax.jit(lambda critic, *inputs: critic.first(*inputs))


@jax.jit
def embedding(critic, heads):
    return critic.embed(jax.tree.map(lambda leaf: leaf[0], critic.embedders), heads)


def test_a_critic_equals_its_equations(critic, batch, reference):
    expected = reference.critic(
        reference.doubles(critic), np.float64(batch.now.state), np.float64(batch.action)
    )
    assert expected.shape == (3, 6)
    np.testing.assert_allclose(call(critic, batch.now.state, batch.action), expected, atol=2e-5)


def test_stacked_critics_start_apart_with_outputs_scaled_down(spec):
    critic = Critic(spec, (16, 8), critics=2, layer_norm=True, key=jax.random.key(0))
    first, second = critic.critics.torso.layers[0].weight
    assert not np.any(first == second)
    assert np.abs(critic.critics.output.weight).max() <= 0.1 / 8**0.5
    assert np.abs(critic.critics.output.weight).max() > 0.05 / 8**0.5


def test_the_first_critic_is_row_0(critic, batch):
    inputs = (batch.now.state, batch.action)
    np.testing.assert_allclose(first(critic, *inputs), call(critic, *inputs)[0], atol=1e-6)


def test_the_first_team_critic_is_row_0(team_critic, batch, heads):
    inputs = (batch.now.state, batch.action, heads)
    np.testing.assert_allclose(
        first(team_critic, *inputs), call(team_critic, *inputs)[0], atol=1e-6
    )


def test_a_team_critic_equals_its_equations(team_critic, batch, heads, spec, reference):
    state, action = np.float64(batch.now.state), np.float64(batch.action)
    expected = reference.team_critic(
        reference.doubles(team_critic), state, action, reference.doubles(heads), spec
    )
    assert expected.shape == (2, 6)
    np.testing.assert_allclose(
        call(team_critic, batch.now.state, batch.action, heads), expected, atol=2e-5
    )


def test_the_team_embedding_ignores_the_order_of_action_columns(team_critic, heads, spec):
    """The five real columns, dealt out again to agents and actions; weights move with their own
    bias."""
    places = [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]
    order = [3, 0, 4, 1, 2]
    weight, bias = np.array(heads.weight), np.array(heads.bias)
    for to, source in zip(places, [places[i] for i in order], strict=True):
        weight[to[0], :, to[1]] = heads.weight[source[0], :, source[1]]
        bias[to] = heads.bias[source]
    moved = jax.tree.unflatten(jax.tree.structure(heads), [jnp.asarray(weight), jnp.asarray(bias)])
    np.testing.assert_allclose(
        embedding(team_critic, moved), embedding(team_critic, heads), atol=1e-6
    )

    swapped_bias = eqx.tree_at(lambda h: h.bias, heads, heads.bias[:, ::-1])
    assert np.abs(embedding(team_critic, swapped_bias) - embedding(team_critic, heads)).max() > 1e-4


def test_the_content_of_a_padded_column_does_not_reach_the_team_embedding(team_critic, heads):
    garbage = eqx.tree_at(
        lambda h: (h.weight, h.bias),
        heads,
        (heads.weight.at[1, :, 1].set(1e3), heads.bias.at[1, 1].set(-1e3)),
    )
    np.testing.assert_array_equal(embedding(team_critic, garbage), embedding(team_critic, heads))


@pytest.mark.parametrize("place", [(0, 0, 0), (0, 7, 1), (1, 3, 0), (2, 7, 1)])
def test_every_real_weight_and_bias_reaches_the_team_embedding(team_critic, heads, place):
    agent, feature, action = place
    for changed in (
        eqx.tree_at(lambda h: h.weight, heads, heads.weight.at[agent, feature, action].add(1.0)),
        eqx.tree_at(lambda h: h.bias, heads, heads.bias.at[agent, action].add(1.0)),
    ):
        assert np.abs(embedding(team_critic, changed) - embedding(team_critic, heads)).max() > 1e-4


def test_values_depend_on_the_team_and_on_the_action(team_critic, batch, heads):
    values = call(team_critic, batch.now.state, batch.action, heads)
    other = eqx.tree_at(lambda h: h.weight, heads, heads.weight.at[0].add(0.5))
    assert np.abs(call(team_critic, batch.now.state, batch.action, other) - values).max() > 1e-4
    assert np.abs(call(team_critic, batch.now.state, -batch.action, heads) - values).max() > 1e-3


def test_without_sizes_every_column_is_real(spec, heads, reference):
    whole = dataclasses.replace(spec, action_sizes=None)
    critic = jax.jit(lambda k: TeamCritic(whole, FEATURES, (4,), 4, layer_norm=False, key=k))(
        jax.random.key(3)
    )
    garbage = eqx.tree_at(lambda h: h.bias, heads, heads.bias.at[1, 1].add(3.0))
    assert np.abs(embedding(critic, garbage) - embedding(critic, heads)).max() > 1e-4
    expected = reference.team_embedding(
        reference.doubles(reference.part(critic.embedders, 0)),
        reference.doubles(heads),
        dataclasses.replace(spec, action_sizes=(2, 2, 2)),
    )
    np.testing.assert_allclose(embedding(critic, heads), expected, atol=1e-5)


# Factored critics


SIZE: dict[str, Any] = dict(width=4, hypernet=3)


@pytest.fixture(scope="module")
def factored(spec, scramble):
    """`factored(mixing, with_identity)`"""

    def make(mixing, with_identity=False):
        build = lambda k: FactoredCritic(
            spec, (6, 5), mixing, **SIZE, with_identity=with_identity, key=k
        )
        return scramble(jax.jit(build)(jax.random.key(4)), seed=4)

    return make


@pytest.fixture(scope="module")
def team_factored(spec, scramble):
    make = lambda k: TeamFactoredCritic(spec, FEATURES, (6, 5), 4, "any", **SIZE, key=k)
    return scramble(jax.jit(make)(jax.random.key(5)), seed=5)


@pytest.mark.parametrize("mixing", ["monotonic", "sum"])
def test_a_factored_critic_equals_its_equations(factored, batch, reference, mixing):
    critic = factored(mixing)
    inputs = (batch.now.obs, batch.action, batch.now.state)
    expected = reference.factored_critic(reference.doubles(critic), *map(np.float64, inputs))
    assert expected.shape == (6,)
    np.testing.assert_allclose(call(critic, *inputs), expected, atol=1e-4)


def test_a_factored_critic_values_any_leading_axes_item_by_item(
    factored, team_factored, batch, heads
):
    inputs = (batch.now.obs, batch.action, batch.now.state)
    folded = tuple(x.reshape(2, 3, *x.shape[1:]) for x in inputs)
    for critic, more in ((factored("any"), ()), (team_factored, (heads,))):
        found = call(critic, *folded, *more)
        np.testing.assert_allclose(found.reshape(-1), call(critic, *inputs, *more), atol=1e-5)


def test_agents_share_the_utility_and_only_their_number_tells_them_apart(factored, batch, spec):
    """With a sum for a mixer, agents that swap what they see and do leave the team's value as it
    was."""
    order = jnp.array([2, 0, 1])
    obs, action, state = batch.now.obs, batch.action, batch.now.state
    plain = factored("sum")
    before, after = (
        call(plain, *x, state) for x in ((obs, action), (obs[:, order], action[:, order]))
    )
    np.testing.assert_allclose(before, after, atol=1e-5)
    numbered = factored("sum", with_identity=True)
    identity = jnp.broadcast_to(jnp.eye(3), (6, 3, 3))
    see = lambda o: jnp.concatenate([o, identity], axis=-1)
    before, after = (
        call(numbered, *x, state)
        for x in ((see(obs), action), (see(obs[:, order]), action[:, order]))
    )
    assert np.abs(before - after).max() > 1e-3


def test_a_team_factored_critic_equals_its_equations(team_factored, batch, heads, reference):
    """chi_i for the utility of agent i, the sum of another chi_i over agents for the mixer."""
    inputs = (batch.now.obs, batch.action, batch.now.state)
    expected = reference.team_factored_critic(
        reference.doubles(team_factored), *map(np.float64, inputs), reference.doubles(heads)
    )
    np.testing.assert_allclose(call(team_factored, *inputs, heads), expected, atol=1e-4)


def embedded_alone(critic, which):
    """The critic with the other embedder's output made 0."""
    where = lambda c: (getattr(c, which).output.weight, getattr(c, which).output.bias)
    return eqx.tree_at(where, critic, tuple(jnp.zeros_like(x) for x in where(critic)))


def test_the_utility_knows_whose_policy_is_whose_and_the_mixer_does_not(
    team_factored, batch, heads
):
    """Policies that change places change chi_i, and not the sum over agents."""
    inputs = (batch.now.obs, batch.action, batch.now.state)
    moved = jax.tree.map(lambda w: w[jnp.array([2, 0, 1])], heads)
    for_mixer, for_utility = (
        embedded_alone(team_factored, f"{which}_embedder") for which in ("utility", "mixer")
    )
    np.testing.assert_allclose(
        call(for_mixer, *inputs, moved), call(for_mixer, *inputs, heads), atol=1e-4
    )
    assert (
        np.abs(call(for_utility, *inputs, moved) - call(for_utility, *inputs, heads)).max() > 1e-3
    )
    changed = eqx.tree_at(lambda h: h.bias, heads, heads.bias.at[1, 0].add(1.0))
    assert np.abs(call(for_mixer, *inputs, changed) - call(for_mixer, *inputs, heads)).max() > 1e-4


def test_the_order_of_an_agents_actions_does_not_reach_its_embeddings(team_factored, batch, heads):
    inputs = (batch.now.obs, batch.action, batch.now.state)
    turned = jax.tree.map(lambda w: w.at[1].set(w[1][..., ::-1]), heads)
    np.testing.assert_allclose(
        call(team_factored, *inputs, turned), call(team_factored, *inputs, heads), atol=1e-4
    )
    torn = eqx.tree_at(lambda h: h.bias, heads, heads.bias[:, ::-1])
    assert (
        np.abs(call(team_factored, *inputs, torn) - call(team_factored, *inputs, heads)).max()
        > 1e-4
    )


@pytest.mark.parametrize("place", [(0, 0, 0), (1, 3, 0), (2, 7, 1)])
def test_every_weight_and_bias_of_a_policy_reaches_the_factored_value(
    team_factored, batch, heads, place
):
    agent, feature, action = place
    inputs = (batch.now.obs, batch.action, batch.now.state)
    for changed in (
        eqx.tree_at(lambda h: h.weight, heads, heads.weight.at[agent, feature, action].add(1.0)),
        eqx.tree_at(lambda h: h.bias, heads, heads.bias.at[agent, action].add(1.0)),
    ):
        assert (
            np.abs(
                call(team_factored, *inputs, changed) - call(team_factored, *inputs, heads)
            ).max()
            > 1e-4
        )
