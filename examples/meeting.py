"""A task of one's own, in JAX: two agents on a line are to meet.

comarl check meeting:Meeting
comarl train vdn meeting:Meeting --steps 20000
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from comarl import EnvSpec, Timestep


@dataclass(frozen=True)
class Meeting:
    """Two agents on a line of `cells` cells; each sees its own place and the way to the other."""

    cells: int = 8
    """cells of the line"""
    horizon: int = 20
    """steps after which an episode is truncated"""

    @property
    def spec(self):
        """Sizes of the task; actions are left, stay and right."""
        return EnvSpec(2, 2, 2, 3, discrete=True, horizon=self.horizon)

    def reset(self, key):
        """Both agents on random cells."""
        places = jax.random.randint(key, (2,), 0, self.cells)
        return (places, jnp.int32(0)), self.show(places)

    def step(self, env_state, action, key):
        """Reward 1 and the end where both are on one cell."""
        del key
        places, time = env_state
        places = jnp.clip(places + action - 1, 0, self.cells - 1)
        met, time = places[0] == places[1], time + 1
        reward = jnp.where(met, 1.0, -0.05)
        truncated = ~met & (time >= self.horizon)
        return (places, time), self.show(places), reward, met, truncated

    def metrics(self, env_state):
        """Whether they met."""
        places, _ = env_state
        return {"met": jnp.float32(places[0] == places[1])}

    def show(self, places):
        """What the agents see, and the state."""
        place = places / self.cells
        other = place[::-1] - place
        available = jnp.ones((2, 3), bool)
        return Timestep(jnp.stack([place, other], axis=1), place, available)
