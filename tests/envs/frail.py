"""Small teams for the tests of worker processes. They import no JAX, as all that runs there."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from comarl.workers.serve import WorkerTimestep

WRONG = ("nan obs", "inf reward", "short state")


class Drift:
    """Two agents whom chance moves about; an episode ends at a time of its own, and is cut there if
    its seed is odd.

    `fault` happens once, in one step.
    """

    def __init__(self, fault: str = "", folder: str = "", step: int = 3):
        self.fault, self.folder, self.faulty_step = fault, folder, step

    def observe(self):
        obs = self.place.astype(np.float32)
        return WorkerTimestep(obs, obs.reshape(-1))

    def reset(self, seed):
        self.random = np.random.default_rng(None if self.fault == "chance" else seed)
        self.place, self.time = self.random.normal(size=(2, 2)), 0
        self.length, self.cut = 2 + seed % 7, bool(seed % 2)
        return self.observe()

    def step(self, action):
        self.time += 1
        if self.time == self.faulty_step and self.fault:
            self.fail()
        self.place += action + self.random.normal(size=(2, 2))
        over = self.time >= self.length
        if self.time == self.faulty_step and self.fault in WRONG:
            return self.answer_wrongly()
        return self.observe(), float(self.place.sum()), over and not self.cut, over and self.cut

    def fail(self):
        if self.folder:
            try:
                (Path(self.folder) / "happened").touch(exist_ok=False)
            except FileExistsError:
                return
        match self.fault:
            case "killed" | "chance" | "always killed":
                os.kill(os.getpid(), signal.SIGKILL)
            case "last words":
                print("no memory left")
                os.kill(os.getpid(), signal.SIGKILL)
            case "exits":
                os._exit(3)
            case "hangs":
                print("waiting for the server")
                time.sleep(1000)
            case "raises":
                raise ArithmeticError("the walls\nare gone")
            case "prints":
                print(*(f"[red]line {i}" for i in range(100)), sep="\n")

    def answer_wrongly(self):
        """What no task may answer."""
        seen = self.observe()
        match self.fault:
            case "nan obs":
                seen.obs[1, 0] = np.nan
                return seen, 0.0, False, False
            case "inf reward":
                return seen, np.inf, False, False
        return seen._replace(state=np.ones(1, np.float32)), 0.0, False, False
