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


def leaky_relu(x: Array) -> Array:
    """PyTorch's leaky ReLU, slope 0.01: what RACE's critics use."""
    return jnp.maximum(x, 0.01 * x)


class Linear(eqx.Module):
    """`x @ weight + bias`, drawn from U(-scale/sqrt(inputs), scale/sqrt(inputs)) as PyTorch
    does."""

    weight: Float[Array, "*stack inputs outputs"]
    bias: Float[Array, "*stack outputs"]

    def __init__(self, inputs: int, outputs: int, *, key: Key, scale: float = 1.0):
        # One draw for weights and bias: each draw costs compile time.
        both = jax.random.uniform(key, (inputs + 1, outputs), minval=-1.0, maxval=1.0) * (
            scale / inputs**0.5
        )
        self.weight, self.bias = both[:-1], both[-1]

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch outputs"]:
        return x @ self.weight + self.bias


class LayerNorm(eqx.Module):
    """ERL-Re2's layer normalisation: unbiased standard deviation, with the epsilon added to it, not
    to the variance."""

    scale: Float[Array, "*stack features"]
    offset: Float[Array, "*stack features"]

    def __init__(self, features: int):
        self.scale, self.offset = jnp.ones(features), jnp.zeros(features)

    def __call__(self, x: Float[Array, "*batch features"]) -> Float[Array, "*batch features"]:
        size = x.shape[-1]
        mean = x.mean(-1, keepdims=True)
        centred = x - mean
        variance = jnp.square(centred).sum(-1, keepdims=True) / (size - 1)
        # The tiny floor keeps the gradient finite where all features are equal.
        deviation = jnp.sqrt(jnp.maximum(variance, 1e-24)) + 1e-6
        return self.scale * (centred / deviation) + self.offset


class Torso(eqx.Module):
    """Hidden layers: each linear, then normalised if asked, then activated."""

    layers: tuple[Linear, ...]
    norms: tuple[LayerNorm, ...]
    activation: Activation = eqx.field(static=True)

    def __init__(
        self, sizes: Sequence[int], *, activation: Activation, layer_norm: bool = False, key: Key
    ):
        keys = jax.random.split(key, len(sizes) - 1)
        self.layers = tuple(
            Linear(i, o, key=k) for i, o, k in zip(sizes[:-1], sizes[1:], keys, strict=True)
        )
        self.norms = tuple(LayerNorm(size) for size in sizes[1:]) if layer_norm else ()
        self.activation = activation

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Float[Array, "*batch features"]:
        for i, layer in enumerate(self.layers):
            x = layer(x)
            x = self.activation(self.norms[i](x) if self.norms else x)
        return x


class MLP(eqx.Module):
    """Hidden layers and a linear output, whose initial weights may be scaled down."""

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
