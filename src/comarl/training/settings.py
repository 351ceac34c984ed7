"""The settings of a run: what determines its result, and its budget."""

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
        self.algorithm.pace.check(self.num_copies, self.spec.horizon)

    @property
    def num_teams(self) -> int:
        """Teams that play: those that evolve, and the one that MARL trains."""
        return num_teams(self.algorithm)

    @property
    def num_copies(self) -> int:
        """Episodes that a seed's teams play side by side in a round."""
        return self.num_teams * self.algorithm.pace.parallel_envs

    @property
    def most_updates(self) -> int:
        """Gradient steps that a seed may come to in a round, 1 at least."""
        return self.algorithm.pace.most(self.num_copies, self.spec.horizon)

    @property
    def spec(self) -> EnvSpec:
        """The sizes of the task."""
        return self.task.spec


def num_teams(algorithm: Algorithm) -> int:
    """Teams that play: those that evolve, and the one that MARL trains."""
    return algorithm.num_teams if isinstance(algorithm, Evolutionary) else 1
