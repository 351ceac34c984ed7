"""The settings of a run: what determines its result, and its budget."""

from dataclasses import dataclass
from typing import Any

from comarl.algorithms import ALGORITHMS
from comarl.types import Algorithm, Environment, EnvSpec, Evolutionary, Task
from comarl.validation import (
    LARGEST_INT,
    MOST_SEEDS,
    Wide,
    WrongSetting,
    check_fields,
    check_range,
    short,
)

MOST_STEPS = 2_000_000_000
"""of a seed: its clock counts in 32 bits, and the last round is finished"""
MOST_EPISODES = 100_000
"""of an evaluation"""
SEED_RANGE = 2**32
"""seeds are numbers of 32 bits without a sign"""


@dataclass(frozen=True)
class Run:
    """Everything that determines a result, and the budget."""

    algorithm: Algorithm
    """the algorithm and its hyperparameters"""
    task: Any
    """the task and its settings"""
    seeds: int = 1
    """how many seeds train together"""
    first_seed: Wide = 0
    """the first seed; the others count up from it"""
    steps: int = 1_000_000
    """environment steps of each seed, those of all its teams together; a round begun is finished"""
    evaluate_every: int = 10_000
    """environment steps between evaluations"""
    evaluation_episodes: int = 10
    """greedy episodes of each evaluation"""
    begun_from: str | None = None
    """fingerprint of the trained networks that the run begins with
    (`comarl.training.networks.read_networks`); None: it draws its own"""

    def __post_init__(self):
        check_algorithm(self.algorithm)
        check_task(self.task)
        check_fields(self)
        check_range(self, 1, MOST_SEEDS, "seeds")
        check_range(self, 1, MOST_STEPS, "steps", "evaluate_every")
        check_range(self, 1, MOST_EPISODES, "evaluation_episodes")
        check_range(self, 0, SEED_RANGE - self.seeds, "first_seed")
        check_pair(self.algorithm, self.task)
        self._check_round()
        self.algorithm.pace.check(self.num_copies, self.spec.horizon)

    def _check_round(self) -> None:
        """Raises WrongSetting where a seed's clock could not count the steps of a round."""
        round_steps = self.num_copies * self.spec.horizon
        if round_steps > LARGEST_INT - MOST_STEPS:
            raise WrongSetting(
                f"a round has {self.num_copies} episodes of up to {self.spec.horizon} steps, and "
                f"may have {LARGEST_INT - MOST_STEPS:,} steps in all: lower the task's horizon or "
                "the algorithm's parallel_envs",
                "parallel_envs",
            )

    @property
    def seed_numbers(self) -> range:
        """The seeds themselves."""
        return range(self.first_seed, self.first_seed + self.seeds)

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


def check_algorithm(algorithm: Any) -> None:
    """Raises WrongSetting for what is no algorithm, such as its class."""
    if isinstance(algorithm, type) or not isinstance(algorithm, Algorithm):
        example = 'an algorithm, such as comarl.algorithm("qmix")'
        raise WrongSetting(
            f"algorithm of Run must be {example}, not {described(algorithm, Algorithm)}",
            "algorithm",
        )


def check_task(task: Any) -> None:
    """Raises WrongSetting for what is no task, such as its name."""
    if isinstance(task, type) or not isinstance(task, Environment | Task):
        example = 'a task, such as comarl.task("matrix/climbing")'
        raise WrongSetting(
            f"task of Run must be {example}, not {described(task, Environment, Task)}", "task"
        )
    if callable(getattr(type(task), "spec", None)):
        raise WrongSetting(
            f"spec of {type(task).__name__} must be a property: put @property above it", "task"
        )


def described(value: Any, *protocols: type) -> str:
    """A value that keeps none of the protocols, with what would be right: one of its class, or what
    it lacks of the protocol of which it lacks least."""
    if isinstance(value, type):
        return f"its class: write {value.__name__}()"
    members = [{name for name in dir(protocol) if name[0] != "_"} for protocol in protocols]
    nearest = min(members, key=lambda names: len(names - set(dir(value))))
    missing = nearest - set(dir(value))
    lacks = f", which lacks {', '.join(sorted(missing))}" if missing < nearest else ""
    return f"{short(value)}{lacks}"


def check_pair(algorithm: Algorithm, task: Any) -> None:
    """Raises WrongSetting where the algorithm cannot choose the task's kind of actions, with the
    algorithms that can."""
    kind = "discrete" if task.spec.discrete else "continuous"
    if kind not in algorithm.actions:
        able = [name for name, entry in ALGORITHMS.items() if kind in entry.algorithm.actions]
        raise WrongSetting(
            f"{type(algorithm).__name__} chooses {' or '.join(sorted(algorithm.actions))} actions "
            f"and {type(task).__name__} has {kind} ones; algorithms for it are {', '.join(able)}",
            "algorithm",
        )
