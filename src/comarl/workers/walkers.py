"""PettingZoo's multi-walker as arrays, by the rules that `comarl.envs.multiwalker` documents."""

from typing import Any

import numpy as np

from comarl.workers.serve import WorkerTimestep
from comarl.workers.team import ParallelTeam

MODULE = "pettingzoo.sisl.multiwalker_v9"
FAILURE = -100.0  # what is paid when the package drops
TERRAIN_STEP = 14 / 30  # length of a piece of terrain
GRASS = 10  # pieces behind the finish


class Walkers:
    """A team of walkers under one package, as `comarl.workers.serve.Team` says."""

    def __init__(
        self, walkers: int, terrain_length: int, horizon: int, madrl_rewards: bool, **more: Any
    ):
        # By MADRL's rules a walker that falls costs as much as a package that drops, of which this
        # class takes care.
        costs = {"fall_reward": FAILURE, "terminate_reward": 0.0} if madrl_rewards else {}
        self.team = ParallelTeam(
            MODULE,
            {
                "n_walkers": walkers,
                "terrain_length": terrain_length,
                "max_cycles": horizon + 1,  # time that runs out would be a termination there
                "remove_on_fall": False,  # all ends with the first fall anyway
                **costs,
                **more,
            },
            state="observations",
        )
        self._madrl = madrl_rewards
        self._finish = (terrain_length - GRASS) * TERRAIN_STEP
        self._identity = (np.arange(walkers, dtype=np.float32) / np.float32(walkers))[:, None]

    def reset(self, seed: int) -> WorkerTimestep:
        """Starts an episode."""
        return self._with_identity(self.team.reset(seed))

    def step(self, action: np.ndarray) -> tuple[WorkerTimestep, float, bool, bool]:
        """`(timestep, team reward, terminated, truncated)` after an action `[walkers 4]`."""
        timestep, reward, terminated, truncated = self.team.step(action)
        if self._madrl:
            world = self.team.env.unwrapped.env
            last = world.walkers[-1].hull.position.x
            # Carried back beyond the start the package ends the episode in PettingZoo, which is
            # left as a failure.
            dropped = world.game_over or last < 0 or world.package.position.x < 0
            reward += FAILURE * dropped
            terminated = bool(terminated or dropped or last > self._finish)
        return self._with_identity(timestep), reward, terminated, truncated

    def picture(self) -> np.ndarray:
        """As `ParallelTeam.picture`."""
        return self.team.picture()

    def _with_identity(self, timestep: WorkerTimestep) -> WorkerTimestep:
        """The walkers' observations with i/N behind each; the state is all of them."""
        obs = np.concatenate([timestep.obs, self._identity], axis=1)
        return WorkerTimestep(obs, obs.reshape(-1))
