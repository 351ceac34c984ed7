"""Walkers that carry a package together: PettingZoo's multiwalker_v9, on Box2D, as the VM3-AC paper
plays it.

The task is by Gupta, Egorov, Kochenderfer, Cooperative Multi-Agent Control Using Deep Reinforcement
Learning (2017), whose code is called MADRL. Walkers stand in a row under a long package. Each moves
its two hips and its two knees; the sign of an action is the direction of a motor, its size a share
of the greatest torque.

1. The terrain has 25 pieces per walker, as MADRL's; PettingZoo's default is 200 for any number.
2. An agent observes its hull, joints and contacts (14 numbers), 10 distances to the ground, its two
   neighbours and the package, with a little noise (31), and which walker it is, i/N, as in MADRL
   (32).
3. The state is all observations, one behind another. PettingZoo's own says where the package is,
   but not where the walkers are under it.
4. In each step all get the mean over walkers of 130/30 per unit of length that the package moves
   forward, minus 5 times the growth of the angle at which the own hull leans.
5. All ends when a walker falls, when the package drops or is carried back beyond the start, each of
   which costs 100 and a walker that falls another 10 for itself; or when the package has come to
   the finish.
6. Time that runs out is a truncation. PettingZoo calls it a termination.

With `madrl_rewards` the older task's costs and finish are in force: 100 when the package drops or
the walker in front goes back beyond the start, 100 for each walker that falls, for itself; and all
ends when the walker in front, not the package, has come to the finish. The most that an episode can
then pay is 70.8 for three walkers and 101.1 for four, rather than 91.0 and 131.4. What the two also
differ in stays PettingZoo's: a package that is carried back beyond the start is a failure, too;
MADRL's walkers cannot touch each other, and its distances are to the first thing that the
simulation finds, which need not be the nearest.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from comarl.types import EnvSpec
from comarl.validation import check_fields, check_range
from comarl.workers.pool import Pool, Workers
from comarl.workers.walkers import Walkers

PIECES = 25  # of terrain, for each walker
OBS_SIZE = 32


@dataclass(frozen=True)
class Multiwalker:
    """Settings of multi-walker."""

    walkers: int = 3
    """how many carry the package"""
    terrain_length: int | None = None
    """pieces of terrain, of 14/30 each, the last 10 behind the finish; by default 25 for each
    walker"""
    madrl_rewards: bool = False
    """whether costs and finish are those of the older task, MADRL's"""
    horizon: int = 500
    """steps after which an episode is truncated"""
    workers: Workers = field(default=Workers(), compare=False)
    """the processes that step the copies"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 1, 40, "walkers")
        check_range(self, 1, None, "horizon")
        # The last walker stands at piece 10 N, and the finish is 10 before the end
        minimum = 10 * self.walkers + 20
        if self.pieces < minimum:
            raise ValueError(
                f"terrain_length={self.terrain_length} of Multiwalker must be {minimum} or more"
            )

    def __str__(self) -> str:
        return f"multiwalker/{self.walkers}"

    @property
    def summary(self) -> str:
        """What the task is, in a line."""
        return f"{self.walkers} walkers carry a package over rough ground (PettingZoo, Box2D)"

    @property
    def pieces(self) -> int:
        """Pieces of terrain that the task really has."""
        return PIECES * self.walkers if self.terrain_length is None else self.terrain_length

    @functools.cached_property
    def spec(self) -> EnvSpec:
        """Sizes; observations are parts of the state."""
        row = range(OBS_SIZE)
        return EnvSpec(
            num_agents=self.walkers,
            obs_size=OBS_SIZE,
            state_size=self.walkers * OBS_SIZE,
            action_size=4,
            discrete=False,
            horizon=self.horizon,
            obs_from_state=tuple(tuple(i * OBS_SIZE + j for j in row) for i in range(self.walkers)),
        )

    def make(self, num_copies: int) -> Pool:
        """`num_copies` packages in worker processes. Raises ImportError with the remedy without
        PettingZoo or Box2D."""
        make = self.maker()
        make()  # what is missing is said here rather than by a worker
        return Pool(str(self), self.spec, make, num_copies, self.workers)

    def maker(self, **more: Any) -> Callable[[], Walkers]:
        """What makes one package in a worker, with `more` arguments of PettingZoo's environment."""
        return functools.partial(
            Walkers, self.walkers, self.pieces, self.horizon, self.madrl_rewards, **more
        )


PRESETS = {str(walkers): Multiwalker(walkers) for walkers in (3, 4)}
"""the sizes that VM3-AC's paper plays"""
