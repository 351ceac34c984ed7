"""Fully connected networks. Every leaf is an array and all else is static, so plain `jax`
transforms apply.

Weights are stored `[inputs, outputs]` and inputs may have any leading axes: a batch then is one
matrix product.
"""

from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from comarl.types import Key

Activation = Callable[[Array], Array]
"""what stands between two layers, entry by entry"""


def leaky_relu(x: Array) -> Array:
    """PyTorch's leaky ReLU, of slope 0.01 below 0, which RACE's critics use.

    >>> leaky_relu(jnp.array([-100.0, 3.0])).tolist()
    [-1.0, 3.0]
    """
    return jnp.maximum(x, 0.01 * x)


class Linear(eqx.Module):
    """`x @ weight + bias`, drawn from U(-scale/sqrt(inputs), scale/sqrt(inputs)) as PyTorch does.

    >>> layer = Linear(3, 5, key=jax.random.key(0))
    >>> layer(jnp.ones((8, 2, 3))).shape  # any leading axes
    (8, 2, 5)
    """

    weight: Float[Array, "*stack inputs outputs"]
    bias: Float[Array, "*stack outputs"]

    def __init__(self, inputs: int, outputs: int, *, key: Key, scale: float = 1.0):
        # One draw for weights and bias: each draw costs compile time.
        both = jax.random.uniform(key, (inputs + 1, outputs), minval=-1.0, maxval=1.0)
        both = both * (scale / inputs**0.5)
        self.weight, self.bias = both[:-1], both[-1]

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        return x @ self.weight + self.bias


class LayerNorm(eqx.Module):
    """ERL-Re2's layer normalisation (Li et al., ICLR 2023, released code), which RACE uses.

    The standard deviation is the unbiased one, and the epsilon is added to it, not to the variance.

    >>> [f"{x:.3f}" for x in LayerNorm(2)(jnp.array([1.0, 3.0])).tolist()]
    ['-0.707', '0.707']
    """

    scale: Float[Array, "*stack features"]
    offset: Float[Array, "*stack features"]

    def __init__(self, features: int):
        self.scale = jnp.ones(features)
        self.offset = jnp.zeros(features)

    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        size = x.shape[-1]
        mean = x.mean(-1, keepdims=True)
        centred = x - mean
        variance = jnp.square(centred).sum(-1, keepdims=True) / (size - 1)
        # The tiny floor keeps the gradient finite where all features are equal.
        deviation = jnp.sqrt(jnp.maximum(variance, 1e-24)) + 1e-6
        return self.scale * (centred / deviation) + self.offset


class Torso(eqx.Module):
    """Hidden layers: each linear, then normalised if `layer_norm`, then activated.

    `sizes` are the widths of the inputs and of each layer.

    >>> torso = Torso((3, 64, 32), activation=jax.nn.relu, key=jax.random.key(0))
    >>> torso(jnp.ones((8, 3))).shape
    (8, 32)
    """

    layers: tuple[Linear, ...]
    norms: tuple[LayerNorm, ...]
    activation: Activation = eqx.field(static=True)

    def __init__(
        self, sizes: Sequence[int], *, activation: Activation, layer_norm: bool = False, key: Key
    ):
        keys = jax.random.split(key, len(sizes) - 1)
        widths = zip(sizes[:-1], sizes[1:], keys, strict=True)
        self.layers = tuple(Linear(inputs, outputs, key=k) for inputs, outputs, k in widths)
        self.norms = tuple(LayerNorm(size) for size in sizes[1:]) if layer_norm else ()
        self.activation = activation

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch features"]:
        for i, layer in enumerate(self.layers):
            x = layer(x)
            x = self.activation(self.norms[i](x) if self.norms else x)
        return x


class MLP(eqx.Module):
    """Hidden layers and a linear output, whose initial weights are `output_scale` times as large.

    `sizes` are the widths of the inputs, of each hidden layer and of the outputs.

    >>> mlp = MLP((3, 64, 1), activation=jax.nn.relu, key=jax.random.key(0))
    >>> mlp(jnp.ones((8, 3))).shape
    (8, 1)
    """

    torso: Torso
    output: Linear

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: Activation,
        layer_norm: bool = False,
        output_scale: float = 1.0,
        key: Key,
    ):
        torso_key, output_key = jax.random.split(key)
        self.torso = Torso(sizes[:-1], activation=activation, layer_norm=layer_norm, key=torso_key)
        self.output = Linear(sizes[-2], sizes[-1], key=output_key, scale=output_scale)

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        return self.output(self.torso(x))
