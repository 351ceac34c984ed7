"""The recurrent encoder against PyTorch's equations in NumPy, and its gradient against that of a
plain scan."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.nn.recurrent import (
    GatedLinear,
    Gates,
    Gru,
    Memory,
    RecurrentEncoder,
    agent_inputs,
    gru_unroll,
    input_size,
    last_actions,
)
from comarl.types import EnvSpec

SPEC = EnvSpec(num_agents=2, obs_size=2, state_size=3, action_size=3, discrete=True, horizon=4)
TIME, AGENTS, INPUTS, HIDDEN, BATCH = 5, 3, 4, 6, 2


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def torch_gru_cell(gru, x, h):
    """torch.nn.GRUCell's documentation, agent by agent, where W_i, b_i take the input and W_h, b_h
    the memory."""
    after = np.zeros_like(h)
    w_i, b_i, w_h, b_h = (
        gru.from_input.weight,
        gru.from_input.bias,
        gru.from_memory.weight,
        gru.from_memory.bias,
    )
    for agent in range(len(h)):
        r = sigmoid(x[agent] @ w_i[0] + b_i[0] + h[agent] @ w_h[0] + b_h[0])
        z = sigmoid(x[agent] @ w_i[1] + b_i[1] + h[agent] @ w_h[1] + b_h[1])
        n = np.tanh(x[agent] @ w_i[2] + b_i[2] + r * (h[agent] @ w_h[2] + b_h[2]))
        after[agent] = (1 - z) * n + z * h[agent]
    return after


def plain_unroll(from_memory, inputs, keep):
    """A scan whose gradient is left to JAX; a whole gate at a time, from arrays."""

    def step(h, item):
        x, kept = item
        h = jnp.where(kept == 0, 0.0, h)
        u = [h @ from_memory.weight[i] + from_memory.bias[i] for i in range(3)]
        r, z = jax.nn.sigmoid(x.r + u[0]), jax.nn.sigmoid(x.z + u[1])
        h = (1.0 - z) * jnp.tanh(x.n + r * u[2]) + z * h
        return h, h

    return jax.lax.scan(step, jnp.zeros(inputs.r.shape[1:]), (inputs, keep))[1]


@pytest.fixture(scope="module")
def encoder(scramble):
    return scramble(RecurrentEncoder(INPUTS, HIDDEN, key=jax.random.key(0)), seed=0)


@pytest.fixture(scope="module")
def inputs():
    return jnp.asarray(np.random.default_rng(1).normal(size=(TIME, AGENTS, INPUTS)), jnp.float32)


@pytest.fixture(scope="module")
def unrolled(encoder, inputs):
    return jax.jit(lambda encoder, x: encoder.unroll(x))(encoder, inputs)


def test_the_encoder_is_a_linear_layer_a_relu_and_pytorchs_gru(
    encoder, inputs, unrolled, reference
):
    network = reference.doubles(encoder)
    h = np.zeros((AGENTS, HIDDEN))
    for t in range(TIME):
        x = np.maximum(np.float64(inputs[t]) @ network.layer.weight + network.layer.bias, 0.0)
        h = torch_gru_cell(network.gru, x, h)
        np.testing.assert_allclose(unrolled[t], h, atol=1e-5)


def test_a_gru_of_one_unit_by_hand():
    """Input gates 0, 1, 2; memory weights 1, 2, 3 and no biases: from nothing to h = (1 - s(1))
    tanh(2), and on."""
    weights = GatedLinear(1, 1, key=jax.random.key(0))
    weights = eqx.tree_at(
        lambda w: (w.weight, w.bias),
        weights,
        (jnp.array([[[1.0]], [[2.0]], [[3.0]]]), jnp.zeros((3, 1))),
    )
    found = gru_unroll(
        weights, Gates(*(jnp.full((2, 1, 1), x) for x in (0.0, 1.0, 2.0))), jnp.ones(2)
    )
    first = (1 - sigmoid(1.0)) * np.tanh(2.0)
    r, z = sigmoid(first), sigmoid(1 + 2 * first)
    second = (1 - z) * np.tanh(2 + r * 3 * first) + z * first
    np.testing.assert_allclose(found[:, 0, 0], [first, second], rtol=1e-5)


def test_unrolling_equals_step_after_step(encoder, inputs, unrolled):
    step = jax.jit(lambda encoder, memory, x: encoder(memory, x))
    memory = Memory.empty(AGENTS, HIDDEN).hidden
    for t in range(TIME):
        memory = step(encoder, memory, inputs[t])
        np.testing.assert_allclose(memory, unrolled[t], atol=1e-6)


def test_agents_do_not_see_each_other_and_the_past_does_not_see_the_future(
    encoder, inputs, unrolled
):
    changed = jax.jit(lambda encoder, x: encoder.unroll(x))(encoder, inputs.at[2, 1].add(1.0))
    differs = (np.asarray(changed) != np.asarray(unrolled)).any(-1)
    np.testing.assert_array_equal(
        differs, (np.arange(TIME) >= 2)[:, None] & (np.arange(AGENTS) == 1)
    )


@pytest.fixture(scope="module")
def gradients(scramble):
    """By both ways: of a loss that weighs every memory differently, by all weights, biases and
    inputs."""
    random = np.random.default_rng(2)
    draw = lambda *shape: jnp.asarray(random.normal(size=shape), jnp.float32)
    weights = scramble(GatedLinear(HIDDEN, HIDDEN, key=jax.random.key(3)), seed=3)
    inputs = Gates(*(draw(BATCH, TIME, AGENTS, HIDDEN) for _ in range(3)))

    keep = jnp.ones(TIME).at[2].set(0.0)  # a second sequence begins in the middle

    def by(unroll):
        def loss(weights, inputs, w):
            memories = unroll(weights, inputs, keep)
            return (w * memories + jnp.square(memories)).sum()

        each = jax.vmap(jax.grad(loss, argnums=(0, 1)), (None, 0, 0))
        mean = jax.grad(lambda *args: jax.vmap(loss, (None, 0, 0))(*args).mean(), argnums=(0, 1))
        return {"of each of a batch": each(*arguments), "of a batch's mean": mean(*arguments)}

    arguments = weights, inputs, draw(BATCH, TIME, AGENTS, HIDDEN)
    return jax.jit(lambda: (by(gru_unroll), by(plain_unroll)))()


@pytest.mark.parametrize("which", ["of each of a batch", "of a batch's mean"])
def test_the_written_out_gradient_is_that_of_a_plain_scan(gradients, which):
    found, expected = (jax.tree.leaves_with_path(one[which]) for one in gradients)
    assert len(found) == 5  # weight and bias; r, z and n
    for (path, f), (_, e) in zip(found, expected, strict=True):
        assert f.shape == e.shape
        np.testing.assert_allclose(f, e, atol=2e-5, err_msg=jax.tree_util.keystr(path))
        assert np.abs(e).max() > 0.01


def test_a_gru_starts_uniform_within_one_over_the_root_of_its_memory():
    """Weights and biases, from input and from memory alike, whatever the input's size."""
    gru = Gru(9, 64, key=jax.random.key(0))
    for leaf in jax.tree.leaves(gru):
        assert np.abs(leaf).max() <= 1 / 8
        assert np.abs(leaf).max() > 0.97 / 8
        assert abs(np.std(leaf) * 8 * 3**0.5 - 1) < 0.1
        assert abs(np.mean(leaf)) < 0.1 / 8 * 1.5
    assert gru.from_input.weight.shape == (3, 9, 64) and gru.from_memory.bias.shape == (3, 64)
    assert not np.allclose(gru.from_input.bias, gru.from_memory.bias)


def test_agents_see_their_observation_their_last_action_and_their_number():
    obs = jnp.array([[0.5, -1.0], [2.0, 3.0]])
    assert input_size(SPEC) == 7
    assert agent_inputs(SPEC, obs, jnp.array([-1, 2])).tolist() == [
        [0.5, -1.0, 0.0, 0.0, 0.0, 1.0, 0.0],
        [2.0, 3.0, 0.0, 0.0, 1.0, 0.0, 1.0],
    ]
    batch = agent_inputs(SPEC, jnp.stack([obs, obs]), jnp.array([[0, 1], [-1, 2]]))
    np.testing.assert_array_equal(batch[1], agent_inputs(SPEC, obs, jnp.array([-1, 2])))
    assert batch[0, :, 2:5].tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]


def test_sequences_behind_one_another_know_nothing_of_each_other(encoder, inputs, unrolled):
    """Neither forward, nor in what an early step is told by a loss on late ones."""
    starts = jnp.arange(TIME) == 2
    both = jax.jit(lambda encoder, x: encoder.unroll(x, starts))(encoder, inputs)
    np.testing.assert_array_equal(both[:2], unrolled[:2])
    np.testing.assert_allclose(
        both[2:], jax.jit(lambda e, x: e.unroll(x))(encoder, inputs[2:]), atol=1e-6
    )
    assert not np.allclose(both[2:], unrolled[2:], atol=1e-3)
    by_inputs = jax.jit(jax.grad(lambda x: jnp.square(encoder.unroll(x, starts)[2:]).sum()))(inputs)
    assert not by_inputs[:2].any() and by_inputs[2:].any()


def test_an_episode_that_follows_another_had_no_action_before():
    actions, starts = jnp.array([[0, 1], [2, 0], [1, 1]]), jnp.array([True, False, True, False])
    assert last_actions(actions, starts).tolist() == [[-1, -1], [0, 1], [-1, -1], [1, 1]]


def test_before_the_first_step_there_was_no_action():
    assert last_actions(jnp.array([[0, 1], [2, 0]])).tolist() == [[-1, -1], [0, 1], [2, 0]]
    memory = Memory.empty(2, 3)
    assert memory.last_action.tolist() == [-1, -1] and memory.hidden.tolist() == [[0.0] * 3] * 2
