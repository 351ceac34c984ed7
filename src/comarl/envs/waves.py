"""Predators and waves of prey: prey stand still on a lattice; when all are caught, a wave worth
more takes their place.

The predator-prey of Kim, Jung, Cho and Sung, A Variational Approach to Mutual Information-Based
Coordination for Multi-Agent Reinforcement Learning (VM3-AC, AAMAS 2023). The paper says little of
it; the rest is after the task that its first author released with Kim, Park and Sung, Communication
in Multi-Agent Reinforcement Learning: Intention Sharing (ICLR 2021). An agent is a predator. All
live on the unit square, the prey on a square lattice over [0.1, 0.9]:

1. Each predator moves by `speed` times its action, along each axis alone, and stops at the walls.
   It has no inertia.
2. A predator touches a prey that is at most 1.25 radii away: a prey's own radius is a quarter of a
   predator's. A prey that `catchers` predators touch, or more, is caught.
3. The team gets `capture_reward` for each prey caught, times the wave's worth: with linear growth
   1, 2, 3 and so on.
4. If that was the last prey, all are back in the same step, and the next wave begins.

Nothing ends an episode but `horizon`. An agent observes every predator and then every prey, two
numbers each: its own position, the others' relative to it, and (3, 3) for a prey that was caught.
Neither wave nor time is among them. The state is all observations, one behind another, which is one
of the two inputs that the paper has for its critics.

Differences from the released task:

1. A prey is seen as caught in the step that catches it, and the new wave as soon as it is there;
   there, both show one step late.
2. A start that cannot be found is refused when the task is made. With 16 prey and radius 0.15, the
   released task for four predators looks for one for ever: no point of the square is 1.5 radii away
   from all prey.
3. Every predator sees all the square. Released ranges of sight are 1 and 5, and the square's
   diagonal is 1.41.
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from comarl.types import EnvSpec, Key, Timestep
from comarl.validation import check_fields, check_range

MARGIN = 0.1  # between the lattice and the walls
REACH = 1.25  # a predator's radius and a prey's, in radii
CLEARANCE = 1.5  # between a random start and every prey, in radii
CAUGHT = 3.0  # what is seen of a prey that is not there
TRIES = 64  # points that are tried at once for a random start


class Square(NamedTuple):
    """Who is where. The prey's places never change."""

    predators: Float[Array, "predators 2"]
    alive: Bool[Array, " prey"]
    wave: Int[Array, ""]  # how many were caught to the last prey
    captures: Int[Array, ""]
    time: Int[Array, ""]


Step = tuple[Square, Timestep, Float[Array, ""], Bool[Array, ""], Bool[Array, ""]]


@dataclass(frozen=True)
class Waves:
    """Settings of predators and waves of prey."""

    predators: int = 2
    """how many predators there are"""
    prey: int = 16
    """how many prey there are in a wave, a square number"""
    catchers: int = 1
    """how many predators must touch a prey in the same step"""
    radius: float = 0.1
    """radius of a predator; a prey's is a quarter of it"""
    speed: float = 0.05
    """how far a predator gets in a step along each axis"""
    capture_reward: float = 10.0
    """reward for a prey of the first wave"""
    growth: Literal["constant", "linear", "double"] = "linear"
    """what later waves are worth: the same; two, three, four times the first; twice the one
    before"""
    start: Literal["together", "apart", "centre"] = "together"
    """all predators at one random point, each at its own, or all in the middle; random ones are
    away from prey"""
    horizon: int = 100
    """steps after which an episode is truncated"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 1, None, "predators", "horizon")
        check_range(self, 1, self.predators, "catchers")
        check_range(self, 0, None, "radius", "speed", "capture_reward")
        if self.prey < 4 or math.isqrt(self.prey) ** 2 != self.prey:
            raise ValueError(f"prey={self.prey} of Waves must be a square number, 4 or more")
        if self.start != "centre" and CLEARANCE * self.radius >= self.farthest:
            raise ValueError(
                f"start={self.start!r} of Waves needs a point that is more than {CLEARANCE} radii, "
                f"{CLEARANCE * self.radius:.3f}, away from all {self.prey} prey, "
                f"and none is more than {self.farthest:.4f} away; make radius={self.radius:g} "
                f"less than {self.farthest / CLEARANCE:.4f}, or start in the centre"
            )

    @property
    def summary(self) -> str:
        """What the task is, in a line."""
        needed = "one catches" if self.catchers == 1 else f"{self.catchers} together catch"
        prey = f"waves of {self.prey} prey that stand still"
        return f"{self.predators} predators, {prey}; {needed} a prey"

    @property
    def spec(self) -> EnvSpec:
        """Sizes; the state is all observations."""
        obs_size = 2 * (self.predators + self.prey)
        every = np.arange(self.predators * obs_size).reshape(self.predators, obs_size)
        return EnvSpec(
            num_agents=self.predators,
            obs_size=obs_size,
            state_size=every.size,
            action_size=2,
            discrete=False,
            horizon=self.horizon,
            obs_from_state=tuple(tuple(row) for row in every.tolist()),
            obs_range=(-1.0, CAUGHT),
        )

    def reset(self, key: Key) -> tuple[Square, Timestep]:
        """The predators at their start, and a whole first wave."""
        if self.start == "centre":
            places = jnp.full((1, 2), 0.5)
        else:
            keys = jax.random.split(key, 1 if self.start == "together" else self.predators)
            places = jax.vmap(self.free_point)(keys)
        zero = jnp.int32(0)
        predators = jnp.broadcast_to(places, (self.predators, 2))
        env_state = Square(predators, jnp.ones(self.prey, bool), zero, zero, zero)
        return env_state, self.observe(env_state)

    def step(self, env_state: Square, action: Float[Array, "predators 2"], key: Key) -> Step:
        """`(square, timestep, team reward, terminated, truncated)`; chance plays no part."""
        place = jnp.clip(env_state.predators + self.speed * jnp.clip(action, -1.0, 1.0), 0.0, 1.0)
        touches = distances(place, self.lattice) <= REACH * self.radius
        caught = env_state.alive & (touches.sum(0) >= self.catchers)
        left = env_state.alive & ~caught
        cleared = ~left.any()
        reward = self.capture_reward * self.worth(env_state.wave) * caught.sum().astype(jnp.float32)
        after = Square(
            place,
            left | cleared,
            env_state.wave + cleared.astype(jnp.int32),
            env_state.captures + caught.sum().astype(jnp.int32),
            env_state.time + 1,
        )
        return after, self.observe(after), reward, jnp.bool_(False), after.time >= self.horizon

    def metrics(self, env_state: Square) -> dict[str, Float[Array, ""]]:
        """`captures`: prey that were caught, of all waves."""
        return {"captures": env_state.captures.astype(jnp.float32)}

    def worth(self, wave: Int[Array, ""]) -> Float[Array, ""]:
        """Of a prey, in those of the first wave; `wave` counts from 0."""
        wave = wave.astype(jnp.float32)
        worth = {"constant": jnp.float32(1.0), "linear": 1.0 + wave, "double": jnp.exp2(wave)}
        return worth[self.growth]

    def observe(self, env_state: Square) -> Timestep:
        """What each predator sees of all."""
        places = jnp.concatenate([env_state.predators, self.lattice])
        relative = places - env_state.predators[:, None]  # [predators predators+prey 2]
        own = jnp.eye(*relative.shape[:2], dtype=bool)[..., None]
        caught = jnp.concatenate([jnp.zeros(self.predators, bool), ~env_state.alive])[:, None]
        obs = jnp.where(caught, CAUGHT, jnp.where(own, places, relative))
        obs = obs.reshape(self.predators, -1)
        return Timestep(obs, state=obs.reshape(-1))

    def free_point(self, key: Key) -> Float[Array, " 2"]:
        """One point at random of those that are far enough from all prey: points are drawn until
        one is."""

        def draw(carry: tuple) -> tuple:
            key, points_key = jax.random.split(carry[0])
            points = jax.random.uniform(points_key, (TRIES, 2))
            free = (distances(points, self.lattice) > CLEARANCE * self.radius).all(1)
            return key, points[jnp.argmax(free)], free.any()

        start = (key, jnp.zeros(2), jnp.bool_(False))
        _, point, _ = jax.lax.while_loop(lambda carry: ~carry[2], draw, start)
        return point

    @property
    def lattice(self) -> Float[np.ndarray, "prey 2"]:
        """Where the prey stand."""
        line = np.linspace(MARGIN, 1.0 - MARGIN, math.isqrt(self.prey), dtype=np.float32)
        return np.stack(np.meshgrid(line, line, indexing="ij"), axis=-1).reshape(-1, 2)

    @property
    def farthest(self) -> float:
        """How far the point of the square is from all prey that is farthest: between four of them,
        or in a corner."""
        half_spacing = (0.5 - MARGIN) / (math.isqrt(self.prey) - 1)
        return math.sqrt(2.0) * max(half_spacing, MARGIN)


def distances(
    points: Float[Array, "points 2"], others: Array | np.ndarray
) -> Float[Array, "points others"]:
    """How far each point is from each of the others."""
    return jnp.sqrt(jnp.square(points[:, None] - others).sum(-1))


PRESETS = {
    "2": Waves(),
    "3": Waves(predators=3),
    "4": Waves(predators=4, catchers=2, radius=0.15, start="centre"),
}
"""number of predators -> the settings under which one speed fits the paper's three returns, as far
as they tell"""
