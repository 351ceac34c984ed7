"""A trained team as an object that acts greedily, step by step, as it does when it is evaluated."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from comarl.runs.identity import to_config
from comarl.teams.acting import Acting, Form, Mixed, advance, begin, clock_of
from comarl.teams.inputs import check_agent, read_own, read_state, read_timestep
from comarl.training.settings import Run
from comarl.training.train import Trained
from comarl.types import (
    Algorithm,
    Clock,
    Communicates,
    Environment,
    EnvSpec,
    Evolutionary,
    HostTimestep,
    Key,
    Timestep,
)
from comarl.validation import counted, is_whole, short

Which = Literal["marl_team", "best_team"]
"""of a population: the team that MARL trains, or the one that did best in training"""


@dataclass(frozen=True)
class About:
    """Where a team comes from: plain data."""

    config: dict[str, Any]
    """`algorithm_name`, `task_name`, `algorithm` and `task`, as in a run's config.json"""
    seed: int = 0
    which: Which = "marl_team"
    scores: dict[str, Any] = field(default_factory=dict)
    """what it reached, if that is known"""


class Steps:
    """An episode as it goes on: its key, how many steps it has had, and what is remembered."""

    def __init__(self, acting: Acting | Mixed):
        self.acting = acting
        self.key: Key | None = None
        self.time = 0
        self.memory: PyTree = ()

    def reset(self, key: Key | int) -> None:
        """Begins an episode with this key, or with the key of this seed."""
        self.key, self.time = read_key(key), 0

    def read_state(self, state: Any) -> np.ndarray:
        """The state of the task as it was given, or zeros. Raises ValueError where it is needed,
        and before the first episode."""
        if self.key is None:
            raise ValueError("no episode has begun: call reset() before the first act()")
        form = self.acting.form
        needed = form.needs_state or (form.first_needs_state and self.time == 0)
        return read_state(form.spec, state, needed)

    def act(self, seen: HostTimestep) -> np.ndarray:
        """The joint action at the next step."""
        assert self.key is not None
        if self.time == 0:
            self.memory = begin(self.acting, seen, self.key)
        now = np.int32(self.time)
        self.memory, action = advance(self.acting, self.memory, seen, self.key, now)
        self.time += 1
        return np.asarray(action)


class Team:
    """A team that acts greedily. It remembers what its policies carry from step to step.

        actions = team.reset().act(obs, available)

    Arrays are NumPy's. With the key of an episode of `comarl.play` it does what it does there.
    """

    def __init__(self, acting: Acting | Mixed, about: About):
        self.acting, self.about = acting, about
        self._steps = Steps(acting)

    @classmethod
    def of_run(
        cls,
        run: Run,
        config: dict[str, Any],
        trained: Trained,
        seed: int,
        which: Which = "marl_team",
    ) -> "Team":
        """The team that a seed of a run has trained, or of a population the best in training.

        `config` has the run's names, as its config.json. Raises ValueError for a seed or a team
        that the run has not.
        """
        place = seed_place(run, seed)
        agent, clock = of_seed(trained, place)
        form = Form.of(
            run.algorithm,
            run.spec,
            team_index(run.algorithm, agent, which),
            isinstance(run.task, Environment),
        )
        about = {
            "algorithm_name": config["algorithm_name"],
            "task_name": config["task_name"],
            "algorithm": to_config(run.algorithm),
            "task": to_config(run.task),
        }
        return cls(Acting.of(form, agent, clock), About(about, seed, which))

    def with_scores(self, scores: dict[str, Any]) -> "Team":
        """The same team, of which it is known what it reached: plain numbers by their names."""
        return Team(self.acting, replace(self.about, scores=scores))

    @property
    def algorithm(self) -> Algorithm:
        """The algorithm and its settings."""
        return self.acting.form.algorithm

    @property
    def spec(self) -> EnvSpec:
        """The sizes of the task."""
        return self.acting.spec

    @property
    def env_steps(self) -> int:
        """Environment steps of the training of its seed; of a mixed team, of its first agent's."""
        acting = self.acting
        member = acting if isinstance(acting, Acting) else acting.members[acting.places[0]]
        return int(member.clock.env_steps)

    def __repr__(self) -> str:
        """What it is, on one line."""
        config = self.about.config
        return (
            f"<Team of {self.spec.num_agents} agents: {config['algorithm_name']} on "
            f"{config['task_name']}, seed {self.about.seed}>"
        )

    def reset(self, key: Key | int = 0) -> "Team":
        """Begins an episode with this key, or with the key of this seed, and returns the team
        itself.

        The key decides what is drawn while the team acts greedily, which few algorithms do.
        """
        self._steps.reset(key)
        return self

    def act(self, obs: Any, available: Any = None, state: Any = None) -> np.ndarray:
        """The joint action at the next step: `[agents]` of discrete actions, or `[agents action]`,
        in [-1, 1], with zeros where an agent has fewer.

        `obs` is `[agents obs]`, and `available` `[agents actions]` where actions are discrete; of
        agents of unequal size, lists of rows without padding do as well. `state` is the task's: it
        is needed at the first step alone, and only where the algorithm draws a latent from it.
        Raises ValueError for what is missing or has another shape, and before the first `reset`.
        """
        given = self._steps.read_state(state)
        return self._steps.act(read_timestep(self.spec, obs, available, given))

    def first_memory(self, timestep: Timestep, key: Key) -> PyTree:
        """What the team carries into an episode that begins with this timestep: a pure function."""
        return self.acting.first_memory(timestep, key)

    def step(self, memory: PyTree, timestep: Timestep, key: Key) -> tuple[PyTree, Array]:
        """The next memory and the joint action: a pure function, for a loop of your own inside
        JAX."""
        return self.acting.step(memory, timestep, key)

    def agent(self, agent: int) -> "AgentAlone":
        """One agent by itself. Raises ValueError for one that the team has not."""
        return AgentAlone(self, check_agent(self.spec, agent))


class AgentAlone:
    """One agent of a team, which sees, remembers and knows nothing of the others.

    It does what it does in the team: exactly, where agents do not communicate; of those that do,
    it receives nothing. A latent that a team shares is drawn from the key of `reset`: agents with
    equal keys have the same one.
    """

    def __init__(self, team: Team, agent: int):
        self.acting, self.index = team.acting.alone(agent), agent
        self._steps = Steps(self.acting)

    @property
    def spec(self) -> EnvSpec:
        """The sizes of the task."""
        return self.acting.spec

    def reset(self, key: Key | int = 0) -> "AgentAlone":
        """Begins an episode with this key, or with the key of this seed, and returns the agent
        itself."""
        self._steps.reset(key)
        return self

    def act(self, obs: Any, available: Any = None, state: Any = None) -> Any:
        """The agent's action at the next step: an int, or `[action]` without padding.

        `obs` is `[obs]`, and `available` `[actions]` where actions are discrete, with or without
        padding; `state` as for the team. Raises ValueError as the team does.
        """
        given = self._steps.read_state(state)
        action = self._steps.act(read_own(self.spec, self.index, obs, available, given))[self.index]
        if self.spec.discrete:
            return int(action)
        sizes = self.spec.action_sizes
        return action[: sizes[self.index]] if sizes else action


def mixed(teams: Sequence[Team]) -> Team:
    """A team whose agent i is that of `teams[i]`: partners that have not trained together.

    The teams may be of different seeds and of different algorithms, on a task of equal sizes.
    Raises ValueError for another number of teams, for other sizes, and where agents communicate:
    those of different teams have no common language.
    """
    if not teams or len(teams) != (agents := teams[0].spec.num_agents):
        needed = f"{agents}, one for each agent" if teams else "one for each agent"
        raise ValueError(f"{counted(len(teams), 'team')} given; there must be {needed}")
    members: list[Acting] = []
    places = []
    for i, team in enumerate(teams):
        if team.spec != teams[0].spec:
            raise ValueError(f"team {i} is for a task of other sizes than team 0: {team.spec}")
        if isinstance(team.algorithm, Communicates):
            raise ValueError(
                f"team {i} is of {type(team.algorithm).__name__}, whose agents communicate: those "
                "of different teams have no common language"
            )
        if not isinstance(team.acting, Acting):
            raise ValueError(f"team {i} is itself mixed; name the teams that its agents come from")
        known = [place for place, member in enumerate(members) if member is team.acting]
        places.append(known[0] if known else len(members))
        members += [] if known else [team.acting]
    return Team(Mixed(tuple(members), tuple(places)), teams[0].about)


def read_key(key: Any) -> Key:
    """A random key, or the one of a seed. Raises ValueError for anything else."""
    if is_whole(key) and 0 <= key < 2**32:
        return jax.random.key(np.uint32(key))
    if hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key) and not key.shape:
        return key
    given = f"keys of shape {list(key.shape)}" if hasattr(key, "shape") else f"key={short(key)}"
    raise ValueError(
        f"{given} must be a seed of 0 or more, below 2**32, or a key of jax.random.key"
    )


def seed_place(run: Run, seed: int) -> int:
    """The place of a seed among those of a run. Raises ValueError for one that it has not."""
    seeds = run.seed_numbers
    if not is_whole(seed) or seed not in seeds:
        given = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        raise ValueError(f"seed={short(seed)} must be one that the run has: {given}")
    return seeds.index(int(seed))


def of_seed(trained: Trained, place: int) -> tuple[PyTree, Clock]:
    """What the seed at this place has learnt, and its clock."""
    clock = clock_of(trained.clock.env_steps[place], trained.clock.updates[place])
    return jax.tree.map(lambda x: x[place], trained.agent), clock


def team_index(algorithm: Algorithm, agent: PyTree, which: Which) -> int:
    """Which team of one seed's population is meant. Raises ValueError for one that is not there."""
    if which not in ("marl_team", "best_team"):
        raise ValueError(f"which={short(which)} must be 'marl_team' or 'best_team'")
    if isinstance(algorithm, Evolutionary) and algorithm.num_teams > 1:
        pick = algorithm.trained_team if which == "marl_team" else algorithm.best_team
        return int(pick(agent))
    if which == "best_team":
        raise ValueError(
            f"which='best_team': {type(algorithm).__name__} trains one team only, 'marl_team'"
        )
    return 0
