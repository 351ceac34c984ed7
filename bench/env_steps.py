"""Environment steps per second of Multi-Agent MuJoCo: comarl's copies against gymnasium-robotics,
one after the other.

Both play the same number of robots with random actions, resets included, and take turns within one
run, so that a busy machine slows both. comarl is measured twice: "waiting" as training plays it,
where a copy that is over waits for the last one (random actions soon let a Hopper fall, so many
wait), and "together", where all start anew as soon as one is over, so that every copy moves at
every step, as it is with robots that do not fall.
"""

import csv
import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from comarl.envs.mamujoco import TASKS, MultiAgentMujoco, parse
from comarl.envs.mamujoco_physics import new_reference


@dataclass(frozen=True)
class Settings:
    """What to measure."""

    tasks: tuple[str, ...] = tuple(TASKS)
    """names of tasks, such as Hopper-3x1"""
    copies: int = 6
    """robots that play side by side"""
    agent_obsk: int = 0
    """how many joints away an agent sees"""
    seconds: float = 1.0
    """time of each turn"""
    turns: int = 5
    """turns of each side; the fastest counts"""
    csv: Path | None = None
    """where to write the rows"""


class Comarl:
    """The copies, which start anew when the last is over or, if not `wait`, when the first is."""

    def __init__(self, task: MultiAgentMujoco, copies: int, wait: bool):
        self.envs, self.wait, self.rounds = task.make(copies), wait, 0
        shape = (64, copies, task.spec.num_agents, task.spec.action_size)
        self.actions = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
        self.playing = np.zeros(copies, bool)

    def play(self, seconds: float) -> float:
        """Steps per second; a copy that is over does not count."""
        steps, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds:
            for action in self.actions:
                if not (self.playing.any() if self.wait else self.playing.all()):
                    self.rounds += 1
                    self.playing = np.ones(len(self.playing), bool)
                    self.envs.reset(
                        np.arange(len(self.playing)) + len(self.playing) * self.rounds, self.playing
                    )
                steps += np.count_nonzero(self.playing)
                _, _, terminated, truncated = self.envs.step(action)
                self.playing = self.playing & ~(terminated | truncated)
        return steps / passed


class GymnasiumRobotics:
    """As many environments of gymnasium-robotics, stepped one by one; each starts anew when it is
    over itself."""

    def __init__(self, task: MultiAgentMujoco, copies: int):
        self.envs = [new_reference(task.robot, task.partition, task.view) for _ in range(copies)]
        spaces = {agent: self.envs[0].action_space(agent) for agent in self.envs[0].possible_agents}
        draw = np.random.default_rng(0).uniform
        self.actions = [
            {a: draw(s.low, s.high).astype(np.float32) for a, s in spaces.items()}
            for _ in range(64)
        ]
        for seed, env in enumerate(self.envs):
            env.reset(seed=seed)

    def play(self, seconds: float) -> float:
        """Steps per second."""
        steps, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds:
            for action in self.actions:
                for env in self.envs:
                    env.step(action)
                    env.state()
                    if not env.agents:
                        env.reset()
                steps += len(self.envs)
        return steps / passed


def measure(name: str, settings: Settings) -> dict[str, Any]:
    """The best turn of each side, and comarl's ratios to gymnasium-robotics."""
    task = dataclasses.replace(parse(name), agent_obsk=settings.agent_obsk)
    copies = settings.copies
    sides = (
        Comarl(task, copies, wait=True),
        Comarl(task, copies, wait=False),
        GymnasiumRobotics(task, copies),
    )
    turns = np.array(
        [[side.play(settings.seconds) for side in sides] for _ in range(settings.turns)]
    )
    waiting, together, theirs = turns.max(0)
    return {
        "task": name,
        "copies": copies,
        "waiting": round(waiting),
        "together": round(together),
        "gymnasium_robotics": round(theirs),
        "ratio_waiting": round(waiting / theirs, 2),
        "ratio_together": round(together / theirs, 2),
    }


def main(settings: Settings) -> None:
    """Measures, prints a row for each task and writes them all."""
    rows = []
    for name in settings.tasks:
        rows.append(measure(name, settings))
        if len(rows) == 1:
            print(" | ".join(f"{column:>19}" for column in rows[0]))
        print(" | ".join(f"{value!s:>19}" for value in rows[-1].values()), flush=True)
    if settings.csv:
        with settings.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
