"""Random episodes, noisy networks, and what tells whether two trees are equal."""

import copy
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from comarl.ops.learner import Adam
from comarl.types import EnvSpec, Episode, Timestep

# One step of it moves a parameter by -0.1 g / (|g| + 1): smooth in g, so that a wrong gradient
# shows in the parameter.
SMOOTH = Adam(0.1, max_grad_norm=0.0, epsilon=1.0)
# Clips whatever is not tiny, and its first step shows what is left of the gradient
CLIPPED = Adam(10.0, max_grad_norm=0.01, epsilon=1.0)


def clipped_norms(before: PyTree, after: PyTree) -> np.ndarray:
    """For each module of a stack: the norm of the gradient that the first step of `CLIPPED` had,
    after it was clipped."""
    leaves = zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True)
    step = np.concatenate([(np.float64(b) - a).reshape(len(a), -1) for a, b in leaves], axis=1)
    return np.linalg.norm(step / (CLIPPED.learning_rate - np.abs(step)), axis=1)


def make_episodes(
    spec: EnvSpec, lengths, terminated=(0,), *, seed: int = 0, garbage: float = 0.0
) -> Episode:
    """Random episodes of these lengths, of which some terminated and the others were cut.

    What comes after an end is garbage. The action taken is always available.
    """
    random, size, horizon = np.random.default_rng(seed), len(lengths), spec.horizon
    agents, actions = spec.num_agents, spec.action_size
    mask = np.arange(horizon) < np.array(lengths)[:, None]
    seen = np.arange(horizon + 1) <= np.array(lengths)[:, None]
    action = random.integers(0, actions, (size, horizon, agents))
    available = random.random((size, horizon + 1, agents, actions)) < 0.5
    chosen = np.concatenate([action, random.integers(0, actions, (size, 1, agents))], axis=1)
    np.put_along_axis(available, chosen[..., None], True, axis=-1)
    last = (np.arange(horizon) == np.array(lengths)[:, None] - 1) & np.isin(
        np.arange(size), terminated
    )[:, None]

    def keep(x, there, otherwise):
        return np.where(there.reshape(*there.shape, *[1] * (x.ndim - 2)), x, otherwise)

    draw = lambda *shape: random.normal(size=(size, *shape))
    float32 = lambda x: jnp.asarray(x, jnp.float32)
    return Episode(
        memory=(),
        timesteps=Timestep(
            obs=float32(keep(draw(horizon + 1, agents, spec.obs_size), seen, garbage)),
            state=float32(keep(draw(horizon + 1, spec.state_size), seen, -garbage)),
            available=jnp.asarray(keep(available, seen, garbage != 0)),
        ),
        action=jnp.asarray(keep(action, mask, (actions - 1) * (garbage != 0)), jnp.int32),
        reward=float32(keep(draw(horizon), mask, garbage)),
        terminated=jnp.asarray(last | (~mask & (garbage != 0))),
        mask=jnp.asarray(mask),
    )


def scramble(tree, seed: int, std: float = 0.3):
    """Noise on every float leaf, so that no two networks are equal and no scale is 1 or offset
    0."""
    random = np.random.default_rng(seed)
    noisy = lambda x: x + jnp.asarray(std * random.normal(size=x.shape), x.dtype)
    return jax.tree.map(lambda x: noisy(x) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def bits(tree) -> list:
    """The bytes of every leaf: equal only if the trees are, bit for bit."""
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


def changed(settings: Any, **changes: Any) -> Any:
    """What `dataclasses.replace` makes outside the tests; here every field's type is checked before
    its value."""
    settings = copy.copy(settings)
    for name, value in changes.items():
        object.__setattr__(settings, name, value)
    settings.__post_init__()
    return settings
