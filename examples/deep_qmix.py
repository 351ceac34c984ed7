"""An algorithm of one's own: QMIX with a mixer of three layers.

comarl train deep_qmix:DeepQmix smax/3m --algorithm.depth 3
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp

from comarl import Qmix


class DeepMixer(eqx.Module):
    """A network of the utilities whose weights, made from the state, are never negative."""

    hypernets: list[eqx.nn.Linear]
    widths: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, num_agents, state_size, width, depth, key):
        self.widths = (num_agents, *[width] * (depth - 1), 1)
        pairs = zip(self.widths[:-1], self.widths[1:], jax.random.split(key, depth), strict=True)
        self.hypernets = [eqx.nn.Linear(state_size, (i + 1) * o, key=k) for i, o, k in pairs]

    def __call__(self, utilities, state):
        x = utilities
        for hypernet, i, o in zip(self.hypernets, self.widths[:-1], self.widths[1:], strict=True):
            made = jnp.vectorize(hypernet, signature="(s)->(w)")(state)
            weight, bias = jnp.abs(made[..., : i * o]), made[..., i * o :]
            x = jnp.einsum("...i,...io->...o", x, weight.reshape(*made.shape[:-1], i, o)) + bias
            x = x if o == 1 else jax.nn.elu(x)
        return x[..., 0]


@dataclass(frozen=True)
class DeepQmix(Qmix):
    """QMIX with a deeper mixer."""

    depth: int = 3
    """layers of the mixer"""

    def make_mixer(self, spec, key):
        return DeepMixer(spec.num_agents, spec.state_size, self.mixer_width, self.depth, key)
