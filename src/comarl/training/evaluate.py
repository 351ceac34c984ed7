"""Greedy episodes, apart from training: of the team that MARL trains, and of the team that was best
in training."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PyTree

from comarl.play.finite import check_finite
from comarl.play.player import Player
from comarl.runs.records import TEAM_LABELS, Records, write_about
from comarl.training.settings import Run
from comarl.training.train import seed_keys
from comarl.types import Clock, Evolutionary, Keys


def num_evaluated_teams(run: Run) -> int:
    """Copies per seed that one evaluation needs: each episode of each evaluated team is one."""
    return run.evaluation_episodes * (2 if run.num_teams > 1 else 1)


def evaluate(
    run: Run, player: Player, agent: PyTree, clock: Clock, due: Bool[np.ndarray, " seeds"]
) -> dict[str, Float[np.ndarray, "seeds episodes"]]:
    """Undiscounted returns of greedy episodes, by team; seeds that are not due have none played.

    What the task counts besides, such as `won`, stands beside them: `marl_team_won`. The starts
    depend on the seed and on how often it was evaluated, not on other seeds nor on training. Raises
    TaskDied for a number that is not finite.
    """
    teams, keys = evaluation_plan(run, agent, clock)
    teams = np.asarray(teams)
    playing = np.broadcast_to(np.asarray(due)[:, None], teams.shape).copy()
    episodes = player(agent, clock, teams, playing, keys, "greedy")
    check_finite(episodes, f"evaluation on {type(run.task).__name__}", run.first_seed)
    returns = np.asarray(episodes.returns())
    names = [*TEAM_LABELS][: teams.shape[1] // run.evaluation_episodes]
    scores = {
        "": returns,
        **{f"_{name}": np.asarray(values) for name, values in episodes.metrics.items()},
    }
    split = {suffix: np.split(values, len(names), axis=1) for suffix, values in scores.items()}
    return {
        team + suffix: parts[i] for i, team in enumerate(names) for suffix, parts in split.items()
    }


def evaluation_line(
    run: Run, clock: Clock, seed: int, scores: dict[str, np.ndarray]
) -> dict[str, Any]:
    """What the record of an evaluation says of the seed at this place: which, after how much
    training, its scores."""
    return {
        "seed": run.first_seed + seed,
        "env_steps": int(clock.env_steps[seed]),
        "updates": int(clock.updates[seed]),
        **{team: values[seed].tolist() for team, values in scores.items()},
    }


def record_once(
    folder: Path,
    config: dict[str, Any],
    run: Run,
    clock: Clock,
    scores: dict[str, Float[np.ndarray, "seeds episodes"]],
) -> None:
    """Writes one evaluation of all seeds into a new folder, with the settings it was played with,
    as a run has it."""
    write_about(folder, config)
    Records(folder).append([evaluation_line(run, clock, seed, scores) for seed in range(run.seeds)])


@functools.partial(jax.jit, static_argnums=0)
def evaluation_plan(
    run: Run, agent: PyTree, clock: Clock
) -> tuple[Int[Array, "seeds teams"], Keys]:
    """Which team plays each evaluation episode, and each seed's key."""
    trained = jnp.zeros(run.seeds, jnp.int32)
    if isinstance(run.algorithm, Evolutionary):
        trained = jax.vmap(run.algorithm.trained_team)(agent)
    teams = jnp.repeat(trained[:, None], run.evaluation_episodes, axis=1)
    if isinstance(run.algorithm, Evolutionary) and run.num_teams > 1:
        best = jax.vmap(run.algorithm.best_team)(agent)
        teams = jnp.concatenate(
            [teams, jnp.repeat(best[:, None], run.evaluation_episodes, axis=1)], axis=1
        )
    number = clock.env_steps // run.evaluate_every
    keys = jax.vmap(lambda key, n: jax.random.fold_in(jax.random.fold_in(key, 1), n))(
        seed_keys(run), number
    )
    return teams, keys


def due(run: Run, before: Any, after: Any) -> Bool[np.ndarray, " seeds"]:
    """Which seeds passed a multiple of `evaluate_every`, or the end of the budget, in this
    round."""
    before = np.asarray(before)
    after = np.asarray(after)
    passed = after // run.evaluate_every > before // run.evaluate_every
    return passed | ((before < run.steps) & (after >= run.steps))
