"""A task in a worker process that also keeps a picture of every step."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

from comarl.workers.serve import WorkerTimestep
from comarl.workers.team import ParallelTeam
from comarl.workers.walkers import Walkers


class Filmed:
    """A team as `comarl.workers.serve.Team` says, whose pictures lie in `folder` as 0.npy, 1.npy,
    and so on: one after the reset and one after each step."""

    def __init__(self, make: Callable[[], ParallelTeam | Walkers], folder: Path):
        # pygame opens windows, if at all, on a screen that it only pretends to have
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        self._team, self._folder, self._taken = make(), folder, 0

    def reset(self, seed: int) -> WorkerTimestep:
        """Starts an episode."""
        timestep = self._team.reset(seed)
        self._taken = 0
        self._take()
        return timestep

    def step(self, action: np.ndarray) -> tuple[WorkerTimestep, float, bool, bool]:
        """As the team's own step."""
        outcome = self._team.step(action)
        self._take()
        return outcome

    def _take(self) -> None:
        np.save(self._folder / f"{self._taken}.npy", self._team.picture())
        self._taken += 1
