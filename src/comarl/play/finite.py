"""NaN and infinite numbers in the episodes of a task, named before anything learns from them."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from comarl.types import Episode, TaskDied


@jax.jit
def all_finite(episodes: Episode) -> Bool[Array, ""]:
    """Whether all rewards, observations and states of steps that were played are finite."""
    good = jnp.bool_(True)
    for array, mask in checked(episodes).values():
        mask = mask.reshape(*mask.shape, *[1] * (array.ndim - mask.ndim))
        good &= (jnp.isfinite(array) | ~mask).all()
    return good


def checked(episodes: Episode) -> dict[str, tuple[Array, Array]]:
    """What must be finite, `[seeds copies time ...]`, and where, `[seeds copies time]`.

    A task may show anything after the end of an episode, but the last timestep counts.
    """
    mask = episodes.mask
    seen = jnp.concatenate([mask[..., :1], mask], axis=-1)
    timesteps = episodes.timesteps
    found = {
        "the reward": (episodes.reward, mask),
        "the observation": (timesteps.obs, seen),
        "the state": (timesteps.state, seen),
    }
    # Observations that are a gather of the state are left out of some episodes.
    return {name: pair for name, pair in found.items() if pair[0].size}


def check_finite(episodes: Episode, task: str, first_seed: int = 0) -> None:
    """Raises TaskDied for the first number that is not finite, by its kind, seed, copy, step, agent
    and entry."""
    if all_finite(episodes):
        return
    for name, (array, mask) in checked(episodes).items():
        values, played = np.asarray(array), np.asarray(mask)
        bad = np.argwhere(~np.isfinite(values) & np.expand_dims(played, (*range(3, values.ndim),)))
        if not len(bad):
            continue
        index = bad[bad[:, 2].argmin()].tolist()
        seed, copy, time, *entry = index
        value = values[tuple(index)]
        if name == "the reward":
            where = f"step {time + 1} of the episode"
        else:
            where = f"step {time} of the episode" if time else "the start of the episode"
        agent = f" of agent {entry[0]}" if len(entry) == 2 else ""
        place = f" at entry {entry[-1]}" if entry else ""
        raise TaskDied(
            f"{task}, seed {first_seed + seed}, copy {copy}, {where}: {name}{agent} is "
            f"{value}{place}; it must be finite"
        )
