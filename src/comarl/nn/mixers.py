"""Mixers: networks that join the agents' utilities into the value of the team."""

from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from comarl.nn.mlp import MLP, Linear
from comarl.types import Key

Mixing = Literal["monotonic", "any", "sum"]


@runtime_checkable
class UtilityMixer(Protocol):
    """Any module that joins utilities: what `make_mixer` of an algorithm may return."""

    def __call__(
        self, utilities: Float[Array, "*batch agents"], state: Float[Array, "*batch state"]
    ) -> Float[Array, "*batch"]:
        """Q_tot from the utilities of the chosen actions and the state."""
        ...


class Mixer(eqx.Module):
    """QMIX's mixing network (Rashid et al., ICML 2018, Sec. 4).

    It has two layers, whose weights are made from the state:

        Q_tot = |W2(s)| elu(|W1(s)| q + b1(s)) + b2(s)

    With `monotonic` off the weights may be negative, as in FACMAC's non-monotonic critic (Peng et
    al., NeurIPS 2021).

    >>> mixer = Mixer(num_agents=3, state_size=4, key=jax.random.key(0))
    >>> mixer(jnp.zeros((8, 3)), jnp.ones((8, 4))).shape
    (8,)
    >>> slope = jax.grad(mixer)(jnp.zeros(3), jnp.ones(4))
    >>> bool((slope >= 0).all())
    True
    """

    first_weights: MLP | Linear
    first_bias: Linear
    second_weights: MLP | Linear
    second_bias: MLP
    monotonic: bool = eqx.field(static=True)
    width: int = eqx.field(static=True)

    def __init__(
        self,
        num_agents: int,
        state_size: int,
        *,
        width: int = 32,
        hypernet: int = 64,
        monotonic: bool = True,
        key: Key,
    ):
        """The hidden layer has `width` units; the networks that make its weights have `hypernet`.

        With `hypernet` 0 the weights are linear in the state, as in older code.
        """
        keys = jax.random.split(key, 4)

        def make(outputs: int, key: Key) -> MLP | Linear:
            if hypernet == 0:
                return Linear(state_size, outputs, key=key)
            return MLP((state_size, hypernet, outputs), activation=jax.nn.relu, key=key)

        self.first_weights = make(num_agents * width, keys[0])
        self.first_bias = Linear(state_size, width, key=keys[1])
        self.second_weights = make(width, keys[2])
        self.second_bias = MLP((state_size, width, 1), activation=jax.nn.relu, key=keys[3])
        self.monotonic = monotonic
        self.width = width

    def __call__(
        self, utilities: Float[Array, "*batch agents"], state: Float[Array, "*batch state"]
    ) -> Float[Array, "*batch"]:
        """Q_tot from the utilities of the chosen actions and the state."""
        sign: Callable[[Array], Array] = jnp.abs if self.monotonic else lambda w: w
        first = sign(self.first_weights(state)).reshape(*utilities.shape, self.width)
        hidden = jax.nn.elu((utilities[..., None] * first).sum(-2) + self.first_bias(state))
        second = sign(self.second_weights(state))
        return (hidden * second).sum(-1) + self.second_bias(state)[..., 0]


class Sum(eqx.Module):
    """VDN's mixer (Sunehag et al., AAMAS 2018, Eq. 3): Q_tot is the sum of the utilities.

    >>> float(Sum()(jnp.array([1.0, 2.0]), jnp.zeros(4)))
    3.0
    """

    def __call__(
        self, utilities: Float[Array, "*batch agents"], state: Float[Array, "*batch state"]
    ) -> Float[Array, "*batch"]:
        """Q_tot from the utilities of the chosen actions; the state makes no difference."""
        return utilities.sum(-1)


def mix(
    mixer: UtilityMixer,
    utilities: Float[Array, "*batch agents"],
    state: Float[Array, "*batch state"],
) -> Float[Array, "*batch"]:
    """Q_tot by any mixer.

    Raises ValueError, while JAX traces, if what the mixer gives has another shape.

    >>> mix(Sum(), jnp.ones((8, 3)), jnp.ones((8, 4))).shape
    (8,)
    """
    q_tot = mixer(utilities, state)
    if q_tot.shape != utilities.shape[:-1]:
        raise ValueError(
            f"the mixer {type(mixer).__name__} gives an array of shape {q_tot.shape}: it must be "
            f"{utilities.shape[:-1]}, one Q_tot for the agents' utilities {utilities.shape}"
        )
    return q_tot


def make_mixer(
    mixing: Mixing, num_agents: int, state_size: int, *, width: int, hypernet: int, key: Key
) -> Mixer | Sum:
    """The mixer of a name: QMIX's, the same without its sign constraint, or VDN's sum.

    >>> make_mixer("sum", 2, 4, width=32, hypernet=64, key=jax.random.key(0))
    Sum()
    >>> make_mixer("any", 2, 4, width=32, hypernet=64, key=jax.random.key(0)).monotonic
    False
    """
    if mixing == "sum":
        return Sum()
    return Mixer(
        num_agents,
        state_size,
        width=width,
        hypernet=hypernet,
        monotonic=mixing == "monotonic",
        key=key,
    )
