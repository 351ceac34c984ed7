"""How many gradient steps follow from what is played: the replay ratio of a run."""

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from comarl.validation import check_fields, check_range


@dataclass(frozen=True)
class StepPace:
    """Gradient steps per environment step, after a warm-up of random actions.

    >>> pace = StepPace(warmup_steps=0, updates_per_step=0.5)
    >>> float(pace.due(jnp.array([[True, True, True], [True, False, False]])))
    2.0
    """

    warmup_steps: int = 10_000
    """steps of random actions before learning starts"""
    updates_per_step: float = 1.0
    """gradient steps per environment step of all teams"""
    parallel_envs: int = 1
    """episodes that each team plays side by side in a round"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 1, None, "parallel_envs")
        check_range(self, 0, None, "warmup_steps", "updates_per_step")

    def due(self, mask: Bool[Array, "episodes time"]) -> Float[Array, ""]:
        """The gradient steps that a round's steps ask for, not yet rounded."""
        return mask.sum().astype(jnp.float32) * self.updates_per_step

    def most(self, episodes: int, horizon: int) -> int:
        """The most gradient steps that a round of so many episodes may ask for; 1 at least."""
        return max(1, math.ceil(episodes * (horizon * self.updates_per_step)))

    def check(self, episodes: int, horizon: int) -> None:
        """Raises ValueError if no round of so many episodes would ever come to an update."""
        rate = self.updates_per_step
        if 0 < rate <= 0.5 and rate * episodes * horizon <= 0.5:
            raise ValueError(
                f"algorithm.pace.updates_per_step {rate}: a round of {episodes} episode(s) of at "
                f"most {horizon} steps would never come to an update, which takes more than "
                f"{0.5 / rate:g} steps: raise it, or play longer episodes"
            )


@dataclass(frozen=True)
class EpisodePace:
    """Gradient steps per episode, from when the replay holds a batch.

    >>> pace = EpisodePace(parallel_envs=2, updates_per_episode=0.5)
    >>> float(pace.due(jnp.array([[True, True, True], [True, False, False]])))
    1.0
    """

    parallel_envs: int = 1
    """episodes that each team plays side by side in a round"""
    updates_per_episode: float = 1.0
    """gradient steps per episode played, of any team"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 1, None, "parallel_envs")
        check_range(self, 0, None, "updates_per_episode")

    @property
    def warmup_steps(self) -> int:
        """None: teams explore from the first episode."""
        return 0

    def due(self, mask: Bool[Array, "episodes time"]) -> Float[Array, ""]:
        """The gradient steps that a round's episodes ask for, not yet rounded."""
        return mask[:, 0].sum().astype(jnp.float32) * self.updates_per_episode

    def most(self, episodes: int, horizon: int) -> int:
        """The most gradient steps that a round of so many episodes may ask for; 1 at least."""
        return max(1, math.ceil(episodes * self.updates_per_episode))

    def check(self, episodes: int, horizon: int) -> None:
        """Raises ValueError if no round of so many episodes would ever come to an update."""
        rate = self.updates_per_episode
        if 0 < rate * episodes <= 0.5:
            raise ValueError(
                f"algorithm.pace.updates_per_episode {rate}: a round of {episodes} episode(s) "
                "would never come to an update; with this number it takes more than "
                f"{0.5 / rate:g} episodes: set --algorithm.pace.parallel-envs"
            )
