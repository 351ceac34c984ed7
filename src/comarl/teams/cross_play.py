"""How well agents of different seeds of a run play together, though they never trained together."""

from dataclasses import dataclass, replace
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from comarl.play.player import make_player
from comarl.training.evaluate import evaluation_plan
from comarl.training.settings import Run
from comarl.training.train import Trained
from comarl.types import Algorithm, Clock, Communicates, EnvSpec, Index, Key, Metrics, Timestep


class Pair(eqx.Module):
    """The agents of two seeds, and the team of each that acts: one is at home, one a guest."""

    host: PyTree
    guest: PyTree
    host_team: Int[Array, "*seeds"]
    guest_team: Int[Array, "*seeds"]


@dataclass(frozen=True)
class Guest:
    """An algorithm that only plays: of "team" i, agent i is the guest's and the others the
    host's."""

    base: Algorithm

    @property
    def actions(self) -> frozenset[str]:
        """Those of the algorithm that trained them."""
        return self.base.actions

    @property
    def replay(self) -> Any:
        """Unused."""
        return self.base.replay

    @property
    def pace(self) -> Any:
        """Unused."""
        return self.base.pace

    def init(self, spec: EnvSpec, key: Key) -> PyTree:
        """Nothing is trained here."""
        raise NotImplementedError

    def update(self, state: Pair, batch: Any, clock: Clock, key: Key) -> tuple[Pair, Metrics]:
        """Nothing is trained here."""
        raise NotImplementedError

    def initial_memory(self, state: Pair, timestep: Timestep, key: Key) -> tuple[PyTree, PyTree]:
        """What host and guest carry into an episode. Both have one key, and so draw alike."""
        start = lambda agent: self.base.initial_memory(agent, timestep, key)
        return start(state.host), start(state.guest)

    def act(
        self,
        state: Pair,
        team: Index,
        memory: tuple[PyTree, PyTree],
        timestep: Timestep,
        clock: Clock,
        key: Key,
        *,
        explore: bool,
    ) -> tuple[tuple[PyTree, PyTree], Array]:
        """Both act on what they see; agent `team` does what the guest chose."""

        def choose(agent: PyTree, index: Array, own: PyTree) -> tuple[PyTree, Array]:
            return self.base.act(agent, index, own, timestep, clock, key, explore=explore)

        host, action = choose(state.host, state.host_team, memory[0])
        guest, other = choose(state.guest, state.guest_team, memory[1])
        is_guest = jnp.arange(action.shape[0]) == team
        mixed = jnp.where(is_guest.reshape(-1, *[1] * (action.ndim - 1)), other, action)
        return (host, guest), mixed


def cross_play(run: Run, trained: Trained, episodes: int = 32) -> Float[np.ndarray, "seeds seeds"]:
    """Mean returns of greedy episodes: (i, j) is of one agent of seed i in the team of seed j.

    Each agent is the guest in turn, and the mean is over all of them. The diagonal is each seed's
    own team; the episodes begin as those of its evaluation, whoever the guest is. Raises ValueError
    where agents communicate: those of different seeds have no common language.
    """
    if isinstance(run.algorithm, Communicates):
        raise ValueError(
            f"the agents of {type(run.algorithm).__name__} communicate, and those of different "
            "seeds have no common language: there is no cross-play of them"
        )
    plan = replace(run, evaluation_episodes=episodes)
    trained = jax.device_put(trained, jax.devices()[0])
    teams, keys = evaluation_plan(plan, trained.agent, trained.clock)
    acting = jnp.asarray(teams[:, 0])
    player, close = make_player(Guest(run.algorithm), run.task, run.seeds, episodes)
    playing = np.ones((run.seeds, episodes), bool)

    def returns(guest: int, agent: int) -> Float[np.ndarray, " seeds"]:
        """Of one agent of seed `guest`, in the team of each seed."""
        everywhere = lambda x: jnp.broadcast_to(x[guest], x.shape)
        pair = Pair(
            trained.agent, jax.tree.map(everywhere, trained.agent), acting, everywhere(acting)
        )
        places = np.full((run.seeds, episodes), agent, np.int32)
        played = player(pair, trained.clock, places, playing, keys, "greedy")
        return np.asarray(played.returns()).mean(axis=1)

    try:
        return np.array(
            [
                np.mean([returns(i, agent) for agent in range(run.spec.num_agents)], axis=0)
                for i in range(run.seeds)
            ]
        )
    finally:
        close()


def cross_play_rows(run: Run, returns: Float[np.ndarray, "seeds seeds"]) -> list[list[str]]:
    """The matrix as a table: a row of headings, then a row for each seed whose agent is the guest.

    The last row is the difference that partners make: the mean of each team with guests of other
    seeds, less its own.
    """
    seeds = run.seed_numbers
    rows = [["one agent of", *(f"in team of seed {seed}" for seed in seeds)]]
    for seed, row in zip(seeds, returns, strict=True):
        rows.append([f"seed {seed}", *(f"{value:.4g}" for value in row)])
    if run.seeds > 1:
        own = np.diag(returns)
        others = (returns.sum(axis=0) - own) / (run.seeds - 1)
        rows.append(["others less own", *(f"{value:+.4g}" for value in others - own)])
    return rows
