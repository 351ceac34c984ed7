"""Cooperative navigation: agents are to cover as many landmarks, without being told who takes
which, and not collide.

The `simple_spread` of Lowe, Wu, Tamar, Harb, Abbeel and Mordatch, Multi-Agent Actor-Critic for
Mixed Cooperative-Competitive Environments (NeurIPS 2017). Agents are discs of radius 0.15 that push
each other apart; they and the landmarks start anywhere in [-1, 1]^2. There are three sets of rules
under this name, and their returns differ:

- `mpe2`: the maintained successor of the original, formerly in PettingZoo (`simple_spread_v3` of
  mpe2 1.1). An agent's reward is half the team's, minus the sum over landmarks of the distance to
  the nearest agent, and half its own, minus the number of agents that it overlaps. A step moves
  places by the velocity before it.
- `openai`: the original. An agent's reward is minus that sum and its collisions, whole, and an
  agent collides with itself: one less for each agent in every step, whatever they do. The team gets
  the sum of the agents' rewards; by the other rules, their mean. A step moves places by the
  velocity after it.
- `jaxmarl`: `MPE_simple_spread_v3` of JaxMARL (Rutherford et al., NeurIPS 2024). The rules of mpe2,
  but an episode is a step longer, as its end is looked for before the step is counted.

An action is the direction in which an agent accelerates, in [-1, 1]^2. The originals take a vector
of five, one for doing nothing and one for each direction, whose differences are this; `openai`
subtracts them the other way round. An agent observes its velocity, its place, the offsets to
landmarks and to the other agents, and their messages, all zero. The state is all observations, one
behind another. Nothing ends an episode but `horizon`.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from comarl.envs.particles import lengths, move, offsets, repulsion
from comarl.types import EnvSpec, Key, Timestep
from comarl.validation import check_fields, check_range

RADIUS = 0.15
FORCE = 5.0  # of an action of 1; an agent's mass is 1
COVERED = 0.1  # how near an agent is to a landmark that it covers

Rules = Literal["mpe2", "openai", "jaxmarl"]
LENGTHS: dict[Rules, int] = {"mpe2": 25, "openai": 25, "jaxmarl": 26}


class Plane(NamedTuple):
    """Who is where, and how fast."""

    agents: Float[Array, "agents 2"]
    velocity: Float[Array, "agents 2"]
    landmarks: Float[Array, "agents 2"]
    time: Int[Array, ""]


Step = tuple[Plane, Timestep, Float[Array, ""], Array, Array]


@dataclass(frozen=True)
class Navigation:
    """Settings of cooperative navigation."""

    agents: int = 3
    """how many agents there are, and as many landmarks"""
    rules: Rules = "mpe2"
    """whose reward and motion: those of mpe2, of OpenAI's original or of JaxMARL"""
    horizon: int | None = None
    """steps after which an episode is truncated, by default 25, and 26 by JaxMARL's rules"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 1, None, "agents")
        if self.horizon is not None:
            check_range(self, 1, None, "horizon")

    @property
    def summary(self) -> str:
        """What the task is, in a line."""
        return f"{self.agents} agents are to cover {self.agents} landmarks and not to collide"

    @property
    def spec(self) -> EnvSpec:
        """Sizes; the state is all observations."""
        obs_size = 4 + 2 * self.agents + 4 * (self.agents - 1)
        every = np.arange(self.agents * obs_size).reshape(self.agents, obs_size)
        return EnvSpec(
            num_agents=self.agents,
            obs_size=obs_size,
            state_size=every.size,
            action_size=2,
            discrete=False,
            horizon=self.horizon or LENGTHS[self.rules],
            obs_from_state=tuple(tuple(row) for row in every.tolist()),
        )

    def reset(self, key: Key) -> tuple[Plane, Timestep]:
        """Agents at rest and landmarks, all anywhere in [-1, 1]^2."""
        agents, landmarks = jax.random.uniform(key, (2, self.agents, 2), minval=-1.0, maxval=1.0)
        env_state = Plane(agents, jnp.zeros_like(agents), landmarks, jnp.int32(0))
        return env_state, self.observe(env_state)

    def step(self, env_state: Plane, action: Float[Array, "agents 2"], key: Key) -> Step:
        """`(env_state, timestep, team reward, terminated, truncated)`; chance plays no part."""
        pushed = repulsion(env_state.agents, self.radius).sum(1)
        agents, velocity = move(
            env_state.agents,
            env_state.velocity,
            FORCE * jnp.clip(action, -1.0, 1.0) + pushed,
            with_old_velocity=self.rules != "openai",
        )
        after = Plane(agents, velocity, env_state.landmarks, env_state.time + 1)
        truncated = after.time >= self.spec.horizon
        return after, self.observe(after), self.reward(after), jnp.bool_(False), truncated

    def metrics(self, env_state: Plane) -> dict[str, Float[Array, ""]]:
        """`covered`: landmarks with an agent within 0.1."""
        return {"covered": (self.nearest(env_state) < COVERED).sum().astype(jnp.float32)}

    def reward(self, env_state: Plane) -> Float[Array, ""]:
        """The team's, by the set of rules."""
        overlaps = lengths(offsets(env_state.agents, env_state.agents)) < 2 * RADIUS
        collisions = overlaps.sum().astype(jnp.float32)  # of each agent with each, itself included
        distance = self.nearest(env_state).sum()
        if self.rules == "openai":
            return -self.agents * distance - collisions
        return -0.5 * distance - 0.5 * (collisions / self.agents - 1.0)

    def nearest(self, env_state: Plane) -> Float[Array, " landmarks"]:
        """How far each landmark is from the nearest agent."""
        return lengths(offsets(env_state.landmarks, env_state.agents)).min(1)

    def observe(self, env_state: Plane) -> Timestep:
        """What each agent sees."""
        agents, velocity, landmarks, _ = env_state
        rows = lambda x: x.reshape(self.agents, -1)
        messages = jnp.zeros((self.agents, 2 * (self.agents - 1)))
        to_landmarks = rows(offsets(agents, landmarks))
        to_others = rows(offsets(agents, agents)[self.others])
        obs = jnp.concatenate([velocity, agents, to_landmarks, to_others, messages], axis=1)
        return Timestep(obs, state=obs.reshape(-1))

    @property
    def others(self) -> np.ndarray:
        """Which of all pairs of agents are of two different ones."""
        return ~np.eye(self.agents, dtype=bool)

    @property
    def radius(self) -> Float[np.ndarray, " agents"]:
        """The agents' radii."""
        return np.full(self.agents, RADIUS, np.float32)


PRESETS = {"3": Navigation()}
"""number of agents -> the settings"""
