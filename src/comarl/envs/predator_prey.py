"""Predators and prey on a grid: two predators must catch a prey in one step, and who tries alone
may be punished.

The `stag_hunt` of Boehmer, Kurin and Whiteson, Deep Coordination Graphs (ICML 2020), which LSF-SAC
(arXiv 2201.01247, section VI.B) plays with 8 predators and 8 prey on 10x10 cells. Here an agent is
a predator. One step:

1. The agents move one after another, in random order. A move into an occupied cell fails.
2. The prey take their turns in random order. `c` agents beside a prey chose to catch: c >= 2: it is
   caught, worth 10, and leaves the grid; so do all `c` of them, who count for no other prey. c ==
   1: the punishment, once for every such prey. Unless caught, it moves to a free neighbouring cell,
   each as likely as another; it stays only if there is none.
3. The episode is over when no prey or no agent is left; after `horizon` steps it is truncated.

As a capture takes two agents, the best return is 10 * min(prey, agents // 2): 40 in the full task,
not 80.
"""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from comarl.types import EnvSpec, Key, Timestep
from comarl.validation import check_fields, check_range

ACTIONS = ("right", "down", "left", "up", "stay", "catch")
MOVES = ((0, 1), (1, 0), (0, -1), (-1, 0))  # row and column of the first four
CATCH = ACTIONS.index("catch")
CAPTURE_REWARD = 10.0
SIGHT = 2  # an agent sees so many cells to each side: 5x5
GONE = -(2**20)  # the cell of those off the grid: so far below all cells that none is near it


class Grid(NamedTuple):
    """Who is where. Cells are numbered row by row on a board with a margin as wide as agents see.

    So a neighbour is a constant away from every cell, and what an agent sees never wraps into the
    next row.
    """

    agents: Int[Array, " agents"]  # cell, or GONE
    prey: Int[Array, " prey"]  # cell, or GONE
    time: Int[Array, ""]


class Draws(NamedTuple):
    """All that chance decides in one step."""

    agent_order: Int[Array, " agents"]
    prey_order: Int[Array, " prey"]
    preference: Float[Array, "prey 4"]  # a prey takes the free neighbour of the highest


Step = tuple[Grid, Timestep, Float[Array, ""], Bool[Array, ""], Bool[Array, ""]]


@dataclass(frozen=True)
class PredatorPrey:
    """Settings of the task. Observations are binary windows of 5x5 cells, the state is the whole
    grid."""

    agents: int = 8
    """how many predators there are"""
    prey: int = 8
    """how many prey there are"""
    size: int = 10
    """cells along each side of the grid"""
    horizon: int = 200
    """steps after which an episode is truncated"""
    punishment: float = 0.0
    """reward, 0 or less, for each prey that a lone agent tried to catch"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 1, None, "agents", "prey", "size", "horizon")
        if self.agents + self.prey > self.size**2:
            raise ValueError(
                f"agents={self.agents} and prey={self.prey} must fit on "
                f"{self.size}x{self.size} cells"
            )
        if self.punishment > 0:
            raise ValueError(f"punishment={self.punishment} of PredatorPrey must be 0 or less")

    @property
    def summary(self) -> str:
        """What the task is, in a line."""
        cost = f"; a lone catch is worth {self.punishment:g}" if self.punishment else ""
        grid = f"{self.size}x{self.size} cells"
        return f"{self.agents} predators, {self.prey} prey, {grid}; two catch one{cost}"

    @property
    def spec(self) -> EnvSpec:
        """Sizes; there are six actions."""
        return EnvSpec(
            num_agents=self.agents,
            obs_size=3 * (2 * SIGHT + 1) ** 2,
            state_size=3 * self.size**2,
            action_size=len(ACTIONS),
            discrete=True,
            horizon=self.horizon,
            obs_range=(0.0, 1.0),
        )

    def reset(self, key: Key) -> tuple[Grid, Timestep]:
        """Agents and prey on random cells of their own."""
        cells = jax.random.permutation(key, jnp.asarray(self.cells))[: self.agents + self.prey]
        env_state = Grid(cells[: self.agents], cells[self.agents :], jnp.int32(0))
        return env_state, self.observe(env_state)

    def step(self, env_state: Grid, action: Int[Array, " agents"], key: Key) -> Step:
        """`(grid, timestep, team reward, terminated, truncated)` after an action `[agents]`."""
        return self.outcome(env_state, action, self.draws(key))

    def outcome(self, env_state: Grid, action: Int[Array, " agents"], draws: Draws) -> Step:
        """A step without chance. Unavailable actions change nothing."""
        agents = self.move_agents(env_state, action, draws)
        agents, prey, reward = self.turns_of_prey(agents, env_state.prey, action == CATCH, draws)
        after = Grid(agents, prey, env_state.time + 1)
        terminated = (agents == GONE).all() | (prey == GONE).all()
        truncated = (after.time >= self.horizon) & ~terminated
        return after, self.observe(after), reward, terminated, truncated

    def metrics(self, env_state: Grid) -> dict[str, Float[Array, ""]]:
        """`captures`: prey that were caught."""
        return {"captures": (env_state.prey == GONE).sum().astype(jnp.float32)}

    def draws(self, key: Key) -> Draws:
        """What chance decides in the step of this key."""
        numbers = jax.random.uniform(key, (self.agents + 5 * self.prey,))
        agents, prey, preference = jnp.split(numbers, [self.agents, self.agents + self.prey])
        return Draws(order_of(agents), order_of(prey), preference.reshape(self.prey, 4))

    def move_agents(
        self, env_state: Grid, action: Int[Array, " agents"], draws: Draws
    ) -> Int[Array, " agents"]:
        """The agents' cells after their moves. Where they want to go is fixed; who stands there is
        not."""
        offset = jnp.asarray([*self.moves, 0, 0])[action]
        target = env_state.agents + offset
        possible = self.inside(target) & ~(target[:, None] == env_state.prey).any(1)

        def turn(agents: Array, one: tuple) -> tuple[Array, None]:
            who, target, possible = one
            moves = possible & ~(agents == target).any()
            return jnp.where((jnp.arange(self.agents) == who) & moves, target, agents), None

        order = draws.agent_order
        return jax.lax.scan(turn, env_state.agents, (order, target[order], possible[order]))[0]

    def turns_of_prey(
        self,
        agents: Int[Array, " agents"],
        prey: Int[Array, " prey"],
        catching: Bool[Array, " agents"],
        draws: Draws,
    ) -> tuple[Int[Array, " agents"], Int[Array, " prey"], Float[Array, ""]]:
        """The cells of agents and prey after captures and the prey's moves, and the team's
        reward."""
        # [prey 4]; no one but itself moves a prey before its turn
        beside = prey[:, None] + self.moves
        reach = (beside[:, :, None] == agents).any(1) & catching  # [prey agents]
        allowed = self.inside(beside)

        def turn(cells: tuple, one: tuple) -> tuple[tuple, Array]:
            agents, prey = cells
            who, own, beside, reach, allowed, preference = one
            catchers = reach & (agents != GONE)
            count = catchers.sum()
            caught = count >= 2
            agents = jnp.where(catchers & caught, GONE, agents)
            taken = (beside[:, None] == jnp.concatenate([agents, prey])).any(1)
            free = allowed & ~taken
            goal = jnp.where(free.any(), beside[jnp.argmax(jnp.where(free, preference, -1.0))], own)
            prey = jnp.where(jnp.arange(self.prey) == who, jnp.where(caught, GONE, goal), prey)
            punishment = jnp.where(count == 1, self.punishment, 0.0)
            return (agents, prey), jnp.where(caught, CAPTURE_REWARD, punishment)

        every = (jnp.arange(self.prey), prey, beside, reach, allowed, draws.preference)
        in_order = jax.tree.map(lambda x: x[draws.prey_order], every)
        (agents, prey), rewards = jax.lax.scan(turn, (agents, prey), in_order)
        return agents, prey, rewards.sum()

    def observe(self, env_state: Grid) -> Timestep:
        """What agents see and may choose: moves inside the grid, to stay, and to catch if a prey is
        beside them."""
        board = self.board(env_state)
        on_grid = env_state.agents != GONE
        # The first row and column of what each agent sees
        corner = jnp.stack(jnp.divmod(env_state.agents, self.width), axis=1) - SIGHT
        size = (2 * SIGHT + 1, 2 * SIGHT + 1)
        window = jax.vmap(lambda at: jax.lax.dynamic_slice(board, at, size))(corner)
        beside = env_state.agents[:, None] + self.moves
        catch = (beside[:, :, None] == env_state.prey).any((1, 2))
        stay = jnp.ones_like(catch)
        return Timestep(
            obs=channels(jnp.where(on_grid[:, None, None], window, 0)).reshape(self.agents, -1),
            state=channels(board[SIGHT:-SIGHT, SIGHT:-SIGHT]).reshape(-1),
            available=jnp.concatenate([self.inside(beside), stay[:, None], catch[:, None]], axis=1),
        )

    def board(self, env_state: Grid) -> Int[Array, "row column"]:
        """What each cell holds, with the margin: 0 for nothing, 1 for an agent, 2 for a prey."""
        cells = jnp.zeros(self.width**2, jnp.int32)
        cells = cells.at[env_state.agents].set(1, mode="drop")
        cells = cells.at[env_state.prey].set(2, mode="drop")
        return cells.reshape(self.width, self.width)

    def inside(self, cell: Int[Array, "*cells"]) -> Bool[Array, "*cells"]:
        """Whether it is a cell of the grid, rather than of the margin or GONE."""
        row, column = cell // self.width - SIGHT, cell % self.width - SIGHT
        return (row >= 0) & (row < self.size) & (column >= 0) & (column < self.size)

    @property
    def width(self) -> int:
        """Cells of a row of the board, with the margin at both ends."""
        return self.size + 2 * SIGHT

    @property
    def cells(self) -> Int[np.ndarray, " cells"]:
        """The numbers of the grid's cells, row by row."""
        line = np.arange(SIGHT, SIGHT + self.size, dtype=np.int32)
        return (self.width * line[:, None] + line).reshape(-1)

    @property
    def moves(self) -> Int[np.ndarray, " 4"]:
        """What each of the four moves adds to a cell's number."""
        return np.array([row * self.width + column for row, column in MOVES], np.int32)


def channels(board: Int[Array, "*window row column"]) -> Float[Array, "*window row column 3"]:
    """Whether a cell holds an agent, a prey, or a hare: a second kind of prey, which this task
    never has."""
    return (board[..., None] == jnp.array([1, 2, 3])).astype(jnp.float32)


def order_of(numbers: Float[Array, " n"]) -> Int[Array, " n"]:
    """The indices by increasing number: for so few, comparing all pairs is faster than sorting."""
    index = jnp.arange(numbers.size)
    tie = (numbers == numbers[:, None]) & (index < index[:, None])
    place = ((numbers < numbers[:, None]) | tie).sum(1)
    return jnp.where(place == index[:, None], index, 0).sum(1)


PRESETS = {
    "full": PredatorPrey(),
    "full-punished": PredatorPrey(punishment=-2.0),
    "small": PredatorPrey(agents=4, prey=4, size=6, horizon=60),
    "small-punished": PredatorPrey(agents=4, prey=4, size=6, horizon=60, punishment=-2.0),
}
