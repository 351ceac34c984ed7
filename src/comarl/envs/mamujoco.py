"""Multi-Agent MuJoCo: one robot whose joints are shared out among agents that see only what is near
them.

The tasks are those of gymnasium-robotics (`mamujoco_v1`, after Peng et al., FACMAC, NeurIPS 2021),
which gives models, partitions and observations. States, observations, rewards and ends equal those
of gymnasium-robotics to 1e-9. Its default differs in one setting: there every agent sees the torso,
too (`global_categories=("qpos", "qvel")`); here, as in the benchmark's first version and in RACE,
it does not.
"""

import functools
import itertools
import re
from dataclasses import dataclass, field
from typing import Annotated

import numpy as np
import tyro
from jaxtyping import Bool, Float, Int
from tyro.constructors import PrimitiveConstructorSpec

from comarl.envs.known import PARTITIONS
from comarl.envs.mamujoco_physics import (
    ROBOTS,
    BatchPhysics,
    GymnasiumPhysics,
    Reference,
    ViewSettings,
    new_reference,
)
from comarl.machine.hardware import usable_cores
from comarl.types import EnvSpec, HostTimestep, TaskDied
from comarl.validation import check_fields, unknown

CATEGORIES = (
    "qpos",
    "qvel",
    "qfrc_actuator",
    "cinert",
    "cvel",
    "cfrc_ext",
    "fingertip_dist",  # of Reacher
    "ten_J",  # of CoupledHalfCheetah, as the next two
    "ten_length",
    "ten_velocity",
)
"""what can be seen of joints and bodies, by MuJoCo's names"""

LocalCategories = tuple[tuple[str, ...], ...] | None


def _written(categories: LocalCategories) -> list[str]:
    return ["None"] if categories is None else [",".join(names) for names in categories]


def _read(words: list[str]) -> LocalCategories:
    """
    >>> _read(["qpos,qvel", "qpos"])
    (('qpos', 'qvel'), ('qpos',))
    """
    if words == ["None"]:
        return None
    return tuple(tuple(name for name in word.split(",") if name) for word in words)


_ONE_WORD_FOR_EACH_DISTANCE = PrimitiveConstructorSpec(
    nargs="*",
    metavar="{None}|[CATEGORY,CATEGORY,... ...]",
    instance_from_str=_read,
    is_instance=lambda value: value is None or isinstance(value, tuple),
    str_from_instance=_written,
)
"""how the command line has local categories: a list of lists would have no end between two"""


@dataclass(frozen=True)
class MultiAgentMujoco:
    """One robot of Multi-Agent MuJoCo, and how its joints are shared out among agents."""

    robot: tyro.conf.Suppress[str]
    """which robot: HalfCheetah, Ant, Hopper, Humanoid, HumanoidStandup, Walker2d, Swimmer, Reacher,
    ..."""
    partition: tyro.conf.Suppress[str]
    """which agent moves which joints; 2x3 is two agents of three joints each"""
    agent_obsk: int = 0
    """how many joints away an agent sees: 0 is its own joints only (RACE), 1 is what the benchmark
    recommends"""
    global_categories: tuple[str, ...] = ()
    """what every agent sees of the robot's root besides: nothing (the benchmark's first version and
    RACE), or qpos qvel (gymnasium-robotics' default), the torso's position and velocity"""
    local_categories: Annotated[LocalCategories, _ONE_WORD_FOR_EACH_DISTANCE] = None
    """what an agent sees of the joints at each distance, those of distance 0 first, such as
    qpos,qvel qpos for `agent_obsk` 1; by default gymnasium-robotics' choice: position and velocity
    of its own joints (and what else its state has of them), position of others"""
    reward_delay: int = 1
    """steps between rewards: at every such step and at the end of an episode the team gets the sum
    of those since the last; 1 is no delay. Sparse rewards are where RACE's introduction places the
    strength of evolution"""
    horizon: int = 1000
    """steps after which an episode is truncated"""
    num_threads: int | None = field(default=None, compare=False)
    """processor threads that step the copies, by default all there are; results do not depend on
    it"""

    def __post_init__(self):
        check_fields(self)
        known = PARTITIONS.get(self.robot)
        if known is None:
            raise unknown(
                "robot", self.robot, PARTITIONS, f"The robots are {', '.join(PARTITIONS)}."
            )
        of_any_size = self.robot.startswith("ManySegment")
        sized = re.fullmatch(r"[1-9]\d*x[1-9]\d*", self.partition)
        if not (sized if of_any_size else self.partition in known):
            raise unknown(
                "partition", self.partition, known, f"{self.robot} has {', '.join(known)}."
            )
        limits = (("agent_obsk", 0), ("reward_delay", 1), ("horizon", 1), ("num_threads", 1))
        for name, minimum in limits:
            value = getattr(self, name)
            if value is not None and value < minimum:
                raise ValueError(f"{name}={value} is too small: it must be {minimum} or more")
        self._check_categories()

    def _check_categories(self) -> None:
        seen_by_distance = self.local_categories or ()
        for name in itertools.chain(self.global_categories, *seen_by_distance):
            if name not in CATEGORIES:
                hint = f"The categories are {', '.join(CATEGORIES)}."
                raise unknown("category", name, CATEGORIES, hint)
        if self.local_categories is not None and len(seen_by_distance) != self.agent_obsk + 1:
            raise ValueError(
                f"local_categories={self.local_categories} has {len(seen_by_distance)} entries: it "
                f"must have one for each distance from 0 to agent_obsk={self.agent_obsk}"
            )

    def __str__(self) -> str:
        return f"{self.robot}-{self.partition}"

    @property
    def view(self) -> ViewSettings:
        """What its agents see, as `new_reference` takes it."""
        return ViewSettings(self.agent_obsk, self.global_categories, self.local_categories)

    @functools.cached_property
    def spec(self) -> EnvSpec:
        """The sizes of the task; `obs_from_state` is None for the few robots whose agents see what
        no state has."""
        reference = _reference(self.robot, self.partition, self.view)
        obs_sizes = tuple(
            reference.observation_space(agent).shape[0] for agent in reference.possible_agents
        )
        action_sizes = tuple(len(part) for part in reference.agent_action_partitions)
        robot = ROBOTS.get(self.robot)
        gathered = robot is not None and (robot.velocity_limit is None or robot.agents_see_limit)
        rows = reference.observation_factorization.values() if gathered else ()
        return EnvSpec(
            num_agents=len(obs_sizes),
            obs_size=max(obs_sizes),
            state_size=reference.single_agent_env.observation_space.shape[0],
            action_size=max(action_sizes),
            discrete=False,
            horizon=self.horizon,
            obs_sizes=obs_sizes if len(set(obs_sizes)) > 1 else None,
            action_sizes=action_sizes if len(set(action_sizes)) > 1 else None,
            obs_from_state=tuple(tuple(int(i) for i in row) for row in rows) or None,
        )

    def make(self, num_copies: int) -> "MultiAgentMujocoCopies":
        """`num_copies` robots side by side, each in a world of its own."""
        return MultiAgentMujocoCopies(self, num_copies)


def parse(name: str) -> MultiAgentMujoco:
    """The task of a name.

    >>> task = parse("Humanoid-9|8")
    >>> task.robot, task.partition
    ('Humanoid', '9|8')

    Raises:
        UnknownName: a ValueError, if there is no such robot or partition; it says what would be
            right.
    """
    robot, dash, partition = name.partition("-")
    if not dash:
        names = [f"{robot}-{parts}" for robot in PARTITIONS for parts in PARTITIONS[robot]]
        raise unknown("task", name, names, "A name is <robot>-<partition>.")
    return MultiAgentMujoco(robot, partition)


class MultiAgentMujocoCopies:
    """Copies of one task, as `comarl.types.HostEnvironment` says; their episodes start together.

    An action is [copies, agents, action] in [-1, 1], which stands for each actuator's own range;
    padding is ignored. Beyond it MuJoCo limits the torque and Gymnasium's reward counts the cost of
    the whole action. `physics` is what moves the robots: positions and velocities are read there.
    `agent_of_actuator` says which agent moves each actuator.
    """

    def __init__(self, task: MultiAgentMujoco, num_copies: int, dtype: type = np.float32):
        self.spec, self.num_copies = task.spec, num_copies
        self._task, self._dtype = task, dtype
        names = task.robot, task.partition, task.view
        reference = _reference(*names)
        entries = {  # of a team's flattened action, by actuator
            node.act_ids: agent * self.spec.action_size + slot
            for agent, part in enumerate(reference.agent_action_partitions)
            for slot, node in enumerate(part)
        }
        self._entries = np.array([entries[actuator] for actuator in range(len(entries))])
        self.agent_of_actuator = self._entries // self.spec.action_size
        low, high = reference.single_agent_env.unwrapped.model.actuator_ctrlrange.T
        self._centre, self._half_range = (high + low) / 2, (high - low) / 2
        if task.robot in ROBOTS:
            threads = min(num_copies, task.num_threads or usable_cores())
            self.physics = BatchPhysics(reference, ROBOTS[task.robot], num_copies, threads, dtype)
        else:
            sizes = self.spec.num_agents, self.spec.obs_size, self.spec.state_size
            self.physics = GymnasiumPhysics(
                [new_reference(*names) for _ in range(num_copies)], *sizes, dtype
            )
        self._elapsed = 0
        self._withheld = np.zeros(num_copies)  # rewards that `reward_delay` has not yet paid
        self._play(np.zeros(num_copies, bool))

    def reset(
        self, seeds: Int[np.ndarray, " copies"], playing: Bool[np.ndarray, " copies"]
    ) -> HostTimestep:
        """Starts an episode in the copies that play, each drawn as Gymnasium draws it from the
        copy's seed alone."""
        self._elapsed = 0
        self._withheld[:] = 0
        self._play(playing.copy())
        self.physics.start(self._ids, seeds)
        return self._timestep()

    def step(
        self, action: Float[np.ndarray, "copies agents action"]
    ) -> tuple[
        HostTimestep,
        Float[np.ndarray, " copies"],
        Bool[np.ndarray, " copies"],
        Bool[np.ndarray, " copies"],
    ]:
        """`(timestep, team rewards, terminated, truncated)`, each with an axis of copies.

        Raises:
            TaskDied: if a simulation diverges or an action is not finite; it names task, copy and
                step.
        """
        playing, truncated = self._playing, np.zeros(self.num_copies, bool)
        if not len(self._ids):
            rewards = np.zeros(self.num_copies, self._dtype)
            return self._timestep(), rewards, truncated, truncated.copy()
        by_actuator = action.reshape(self.num_copies, -1).take(self._entries, axis=1)
        controls = by_actuator * self._half_range + self._centre
        reward, fallen = self.physics.advance(self._ids, controls)
        self._elapsed += 1
        if problem := self.physics.problem():
            raise TaskDied(f"{self._task}, step {self._elapsed} of the episode: {problem}")
        terminated = fallen & playing
        if self._elapsed >= self.spec.horizon:
            truncated = playing & ~terminated
        over = terminated | truncated
        if over.any():
            self._play(playing & ~over)
        rewards = self._pay(reward * playing, over).astype(self._dtype)
        return self._timestep(), rewards, terminated, truncated

    def _pay(
        self, earned: Float[np.ndarray, " copies"], over: Bool[np.ndarray, " copies"]
    ) -> Float[np.ndarray, " copies"]:
        """What the team gets now for what it has earned since it was last paid."""
        self._withheld += earned
        is_due = over | (self._elapsed % self._task.reward_delay == 0)
        paid = np.where(is_due, self._withheld, 0.0)
        self._withheld[is_due] = 0
        return paid

    def close(self) -> None:
        """Gives back threads and memory; the copies cannot be used any more."""
        del self.physics

    def _timestep(self) -> HostTimestep:
        return HostTimestep(*self.physics.observe())

    def _play(self, playing: Bool[np.ndarray, " copies"]) -> None:
        self._playing, self._ids = playing, np.flatnonzero(playing)


@functools.lru_cache
def _reference(robot: str, partition: str, view: ViewSettings) -> Reference:
    """What a task's sizes and model are read from; it is never stepped."""
    return new_reference(robot, partition, view)
