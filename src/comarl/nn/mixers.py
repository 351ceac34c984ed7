"""What joins the agents' utilities into the value of the team."""

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from comarl.nn.mlp import MLP, Linear
from comarl.types import Key


class Mixer(eqx.Module):
    """QMIX's mixing network (Rashid et al., ICML 2018, Sec. 4): two layers, whose weights are made
    from the state.

        Q_tot = |W2(s)| elu(|W1(s)| q + b1(s)) + b2(s)

    With `monotonic` off the weights may be negative: FACMAC's non-monotonic critic (Peng et al.,
    NeurIPS 2021).
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
        """`hypernet` is the width of its hidden layer; 0 leaves it a single linear layer, as older
        code has it."""
        keys = jax.random.split(key, 4)

        def make(outputs: int, key: Key) -> MLP | Linear:
            if hypernet == 0:
                return Linear(state_size, outputs, key=key)
            return MLP((state_size, hypernet, outputs), activation=jax.nn.relu, key=key)

        self.first_weights = make(num_agents * width, keys[0])
        self.first_bias = Linear(state_size, width, key=keys[1])
        self.second_weights = make(width, keys[2])
        self.second_bias = MLP((state_size, width, 1), activation=jax.nn.relu, key=keys[3])
        self.monotonic, self.width = monotonic, width

    def __call__(
        self, utilities: Float[Array, "*batch agents"], state: Float[Array, "*batch state"]
    ) -> Float[Array, "*batch"]:
        sign = jnp.abs if self.monotonic else lambda w: w
        first = sign(self.first_weights(state)).reshape(*utilities.shape, self.width)
        hidden = jax.nn.elu((utilities[..., None] * first).sum(-2) + self.first_bias(state))
        second = sign(self.second_weights(state))
        return (hidden * second).sum(-1) + self.second_bias(state)[..., 0]


class Sum(eqx.Module):
    """VDN's mixer (Sunehag et al., AAMAS 2018, Eq. 3): the team's value is the sum of the
    utilities."""

    def __call__(
        self, utilities: Float[Array, "*batch agents"], state: Float[Array, "*batch state"]
    ) -> Float[Array, "*batch"]:
        return utilities.sum(-1)


Mixing = Literal["monotonic", "any", "sum"]


def make_mixer(
    mixing: Mixing, num_agents: int, state_size: int, *, width: int, hypernet: int, key: Key
) -> Mixer | Sum:
    """The mixer of a name: QMIX's, the same without its sign constraint, or VDN's."""
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
