"""The settings of a run: what determines its result, and its budget."""

import math
from dataclasses import dataclass
from typing import Any

from comarl.types import Algorithm, EnvSpec, Evolutionary
from comarl.validation import check_range


@dataclass(frozen=True)
class Run:
    """Everything that determines a result, and the budget."""

    algorithm: Algorithm
    """the algorithm and its hyperparameters"""
    task: Any
    """the task and its settings"""
    seeds: int = 1
    """how many seeds train together"""
    first_seed: int = 0
    """the first seed; the others count up from it"""
    steps: int = 1_000_000
    """environment steps of each seed, those of all its teams together; a round begun is finished"""
    evaluate_every: int = 10_000
    """environment steps between evaluations"""
    evaluation_episodes: int = 10
    """greedy episodes of each evaluation"""

    def __post_init__(self):
        check_range(self, 1, None, "seeds", "steps", "evaluate_every", "evaluation_episodes")
        rate = getattr(self.algorithm, "updates_per_episode", 0.0)
        if 0 < rate * self.num_copies <= 0.5:
            raise ValueError(
                f"algorithm.updates_per_episode {rate}: a round of {self.num_copies} episode(s) would never come to an "
                f"update; with this number it takes more than {0.5 / rate:g} episodes: set --algorithm.parallel-envs"
            )
        rate = getattr(self.algorithm, "updates_per_step", 0.0)
        if 0 < rate <= 0.5 and rate * self.num_copies * self.spec.horizon <= 0.5:
            raise ValueError(
                f"algorithm.updates_per_step {rate}: a round of {self.num_copies} episode(s) of at most "
                f"{self.spec.horizon} steps would never come to an update; it takes more than {0.5 / rate:g} steps: "
                "raise it, or play more episodes side by side (parallel_envs) or longer ones"
            )

    @property
    def num_teams(self) -> int:
        return num_teams(self.algorithm)

    @property
    def num_copies(self) -> int:
        """Episodes that a seed's teams play side by side in a round."""
        return self.num_teams * getattr(self.algorithm, "parallel_envs", 1)

    @property
    def most_updates(self) -> int:
        """Gradient steps that a seed may come to in a round, 1 at least."""
        if self.algorithm.learns_from == "transitions":
            of_episode = self.spec.horizon * self.algorithm.updates_per_step  # type: ignore[attr-defined]
        else:
            of_episode = self.algorithm.updates_per_episode  # type: ignore[attr-defined]
        return max(1, math.ceil(self.num_copies * of_episode))

    @property
    def spec(self) -> EnvSpec:
        return self.task.spec


def num_teams(algorithm: Algorithm) -> int:
    return algorithm.num_teams if isinstance(algorithm, Evolutionary) else 1
