"""Plays episodes of any task: inside one compiled program, or step by step outside JAX."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import PyTree

from comarl.machine.placement import ONE_DEVICE, Placement
from comarl.play import host_rollout, rollout
from comarl.types import Algorithm, Clock, Environment, Episode, Keys
from comarl.workers.pool import Pool, RestartCallback, log_to_stderr

Player = Callable[[PyTree, Clock, np.ndarray, np.ndarray, Keys, rollout.Mode], Episode]
"""Plays `teams` `[seeds teams]` where `playing`, with one key per seed: whatever the task, the same
episodes."""


def make_player(
    algorithm: Algorithm,
    task: Any,
    seeds: int,
    num_copies: int,
    on_restart: RestartCallback = log_to_stderr,
    placement: Placement = ONE_DEVICE,
) -> tuple[Player, Callable[[], None]]:
    """What plays `num_copies` episodes of each of `seeds` seeds, and what to call when it is no
    longer needed.

    `on_restart` is told of every worker process that died and was replaced, where a task has some.
    """
    if isinstance(task, Environment):
        return functools.partial(rollout.play, algorithm, task, placement=placement), lambda: None
    env = task.make(seeds * num_copies)
    if isinstance(env, Pool):
        env.on_restart = on_restart

    def play(
        agent: PyTree, clock: Clock, teams: Any, playing: Any, keys: Keys, mode: rollout.Mode
    ) -> Episode:
        # Acting is little work and often, so that all seeds had better do it on one device.
        agent, clock, keys = placement.gather((agent, clock, keys))
        return placement.scatter(
            host_rollout.play(algorithm, env, agent, clock, teams, playing, keys, mode)
        )

    return play, env.close
