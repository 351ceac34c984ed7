import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.nn.mlp import MLP, LayerNorm, Linear, Torso, leaky_relu


def test_layer_norm_divides_by_the_unbiased_deviation_plus_epsilon(scramble):
    norm = scramble(LayerNorm(4), seed=0)
    # So small that epsilon matters
    x = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32) * 1e-5
    expected = np.zeros_like(x)
    for row in range(3):
        mean = sum(x[row]) / 4
        std = np.sqrt(sum((v - mean) ** 2 for v in x[row].astype(np.float64)) / 3)
        expected[row] = norm.scale * (x[row] - mean) / (std + 1e-6) + norm.offset
    np.testing.assert_allclose(jax.jit(norm.__call__)(x), expected, rtol=1e-4)


def test_layer_norm_by_hand():
    """(1, 3): mean 2, unbiased deviation sqrt(2)."""
    np.testing.assert_allclose(
        LayerNorm(2)(jnp.array([1.0, 3.0])), [-(0.5**0.5), 0.5**0.5], rtol=1e-5
    )


def test_layer_norm_of_equal_features_has_a_finite_gradient():
    norm = LayerNorm(4)
    value, gradient = jax.value_and_grad(lambda x: (norm(x) * jnp.arange(4.0)).sum())(
        jnp.full(4, 3.0)
    )
    assert value == 0 and np.isfinite(gradient).all()


@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_linear_layers_start_uniform_within_one_over_the_root_of_their_inputs(scale):
    layer = Linear(25, 400, key=jax.random.key(0), scale=scale)
    bound = scale / 5
    for leaf in (layer.weight, layer.bias):
        assert np.abs(leaf).max() <= bound
        assert np.abs(leaf).max() > 0.98 * bound
        assert abs(np.std(leaf) / (bound / 3**0.5) - 1) < 0.1
        assert abs(np.mean(leaf)) < 0.1 * bound


def test_a_linear_layer_is_x_times_weight_plus_bias_for_any_leading_axes():
    layer = Linear(3, 2, key=jax.random.key(0))
    x = np.random.default_rng(0).normal(size=(4, 5, 3)).astype(np.float32)
    expected = np.zeros((4, 5, 2))
    for t, b, o in np.ndindex(4, 5, 2):
        expected[t, b, o] = sum(x[t, b, i] * layer.weight[i, o] for i in range(3)) + layer.bias[o]
    np.testing.assert_allclose(layer(jnp.asarray(x)), expected, atol=1e-5)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_an_mlp_equals_its_equations_layer_by_layer(reference, scramble, layer_norm):
    mlp = scramble(
        MLP((5, 7, 6, 2), activation=leaky_relu, layer_norm=layer_norm, key=jax.random.key(1)),
        seed=1,
    )
    x = np.random.default_rng(2).normal(size=(9, 5))
    found = jax.jit(lambda m, x: m(x))(mlp, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, reference.mlp(reference.doubles(mlp), x), atol=2e-5)


def test_a_torso_activates_its_last_layer_too():
    torso = Torso((3, 4, 4), activation=jnp.tanh, key=jax.random.key(0))
    assert np.abs(torso(100.0 * jnp.ones(3))).max() <= 1.0


def test_leaky_relu_has_slope_one_hundredth_below_zero():
    np.testing.assert_allclose(
        leaky_relu(jnp.array([-2.0, 0.0, 3.0])), [-0.02, 0.0, 3.0], rtol=1e-6
    )


def test_only_the_output_of_an_mlp_is_scaled_down():
    make = lambda scale: MLP(
        (4, 50, 3), activation=leaky_relu, output_scale=scale, key=jax.random.key(0)
    )
    full, tenth = make(1.0), make(0.1)
    np.testing.assert_array_equal(full.torso.layers[0].weight, tenth.torso.layers[0].weight)
    np.testing.assert_allclose(full.output.weight, 10 * np.asarray(tenth.output.weight), rtol=1e-5)
    np.testing.assert_allclose(full.output.bias, 10 * np.asarray(tenth.output.bias), rtol=1e-5)
