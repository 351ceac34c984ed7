"""Plays episodes of any task: inside one compiled program, or step by step outside JAX."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import PyTree

from comarl.machine.placement import ONE_DEVICE, Placement
from comarl.play import host_rollout, rollout
from comarl.types import Algorithm, Clock, Environment, Episode, Keys
from comarl.workers.pool import Pool, PrintCallback, RestartCallback, log_to_stderr

Player = Callable[[PyTree, Clock, np.ndarray, np.ndarray, Keys, rollout.Mode], Episode]
"""`(agent, clock, teams, playing, keys, mode)` to one episode of each team.

The agent's leaves and the clock lead with seeds, `teams` and `playing` are `[seeds copies]`, and
there is one key per seed. Episodes are `[seeds copies time ...]`, the same whatever the task; those
that were not `playing` are masked from the start."""


def make_player(
    algorithm: Algorithm,
    task: Any,
    seeds: int,
    num_copies: int,
    on_restart: RestartCallback = log_to_stderr,
    placement: Placement = ONE_DEVICE,
    on_print: PrintCallback = log_to_stderr,
) -> tuple[Player, Callable[[], None]]:
    """What plays `num_copies` episodes of each of `seeds` seeds, and what to call when it is no
    longer needed.

    `task` is an `Environment` or a `Task`. `on_restart` is called with a line for every worker
    process that died and was replaced, where a task has some, and `on_print` with what they print.
    """
    if isinstance(task, Environment):
        return functools.partial(rollout.play, algorithm, task, placement=placement), lambda: None
    env = task.make(seeds * num_copies)
    if isinstance(env, Pool):
        env.on_restart, env.on_print = on_restart, on_print

    def play(
        agent: PyTree, clock: Clock, teams: Any, playing: Any, keys: Keys, mode: rollout.Mode
    ) -> Episode:
        # Acting is little work and often, so that all seeds had better do it on one device.
        agent, clock, keys = placement.gather((agent, clock, keys))
        episodes = host_rollout.play(algorithm, env, agent, clock, teams, playing, keys, mode)
        return placement.scatter(episodes)

    return play, env.close
