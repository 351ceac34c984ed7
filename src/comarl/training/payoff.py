"""What a run on a matrix game has learnt, written into its folder for `comarl report` to read."""

import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from comarl.envs.matrix import MatrixGame
from comarl.runs.payoff import ACTIONS, PayoffLine, write_payoff
from comarl.training.settings import Run
from comarl.training.train import RunState, Trained
from comarl.types import Algorithm, Clock, Episode, Evolutionary, Key, ValuesTeams

JOINT_ACTIONS = jnp.array(list(itertools.product(range(3), repeat=2)), jnp.int32)
DRAWS = 32  # of values that depend on chance, such as on a message's noise: their mean counts


def write(folder: Path, run: Run, state: RunState | Trained) -> Path | None:
    """Writes `payoff.csv` into the folder of a run on a matrix game, and returns its path.

    It has a line for each seed and each state of the game: the joint action that the team chooses
    without exploring, what that earns, and the team's value of every joint action, where the
    algorithm has such values (`ValuesTeams`). On other tasks nothing is written: None.
    """
    game = run.task
    if not isinstance(game, MatrixGame):
        return None
    states = _states(game)
    # One device computes all of it, wherever the seeds were trained.
    agent, clock = jax.device_put((state.agent, state.clock), jax.devices()[0])
    values, greedy = jax.device_get(judge(game, run.algorithm, agent, clock, states))
    tables = np.array(jax.vmap(lambda s: game.tables[game.table_of(s)])(states))
    has_values = isinstance(run.algorithm, ValuesTeams)
    lines = []
    for seed, place in itertools.product(range(run.seeds), range(len(states))):
        first, second = greedy[seed, place].tolist()
        lines.append(
            PayoffLine(
                seed=run.first_seed + seed,
                state="".join(str(int(bit)) for bit in states[place]),
                choice=ACTIONS[first] + ACTIONS[second],
                reward=float(tables[place, first, second]),
                values=tuple(values[seed, place].ravel().tolist()) if has_values else (),
            )
        )
    return write_payoff(folder, lines)


def _states(game: MatrixGame) -> Float[Array, "states 2"]:
    """Every state that a game may be in."""
    if len(game.payoff) == 1:
        return jnp.ones((1, 2))
    return jnp.array(list(itertools.product((0.0, 1.0), repeat=2)))


def judge(
    game: MatrixGame,
    algorithm: Algorithm,
    agent: PyTree,
    clock: Clock,
    states: Float[Array, "states 2"],
) -> tuple[Float[Array, "seeds states 3 3"], Int[Array, "seeds states 2"]]:
    """The team's value of each joint action, 0 without such values, and its greedy choice."""

    def values(agent: PyTree, seen: PyTree, memory: PyTree, key: Key) -> Float[Array, "3 3"]:
        if not isinstance(algorithm, ValuesTeams):
            return jnp.zeros((3, 3))
        team_values = algorithm.team_values
        twice = jax.tree.map(lambda x: jnp.stack([x, x]), seen)  # now, and after the only step
        one = jnp.zeros(1)
        ends = jnp.ones(1, bool)

        def value(action: Int[Array, " 2"], key: Key) -> Float[Array, ""]:
            episode = Episode(memory, twice, action[None], one, ends, ends)
            return team_values(agent, episode, key)[0]

        draws = jax.random.split(key, DRAWS)
        of_action = lambda action: jax.vmap(lambda k: value(action, k))(draws).mean()
        return jax.vmap(of_action)(JOINT_ACTIONS).reshape(3, 3)

    def judge(agent: PyTree, clock: Clock, state: Float[Array, " 2"]):
        key = jax.random.key(0)
        _, seen, *_ = game.step(state, jnp.zeros(2, jnp.int32), key)  # it leaves the state alone
        team = algorithm.trained_team(agent) if isinstance(algorithm, Evolutionary) else 0
        memory = algorithm.initial_memory(agent, seen, key)
        _, greedy = algorithm.act(agent, team, memory, seen, clock, key, explore=False)
        return values(agent, seen, memory, key), greedy

    def of_seed(agent: PyTree, env_steps: Int[Array, ""], updates: Int[Array, ""]):
        here = clock._replace(env_steps=env_steps, updates=updates)
        return jax.vmap(lambda state: judge(agent, here, state))(states)

    return jax.jit(jax.vmap(of_seed))(agent, clock.env_steps, clock.updates)
