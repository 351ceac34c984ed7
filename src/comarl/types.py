"""The data that flows between tasks, replay and algorithms, and the protocols that join them.

Axes, always in this order, outermost first: seeds, teams, batch, time, agents, then features.
Functions are written for one item; the training loop maps them over the outer axes.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray, PyTree
from jaxtyping import Key as KeyTyped

Key = PRNGKeyArray  # one typed key: `jax.random.key`
Keys = KeyTyped[Array, "..."]  # an array of them
Index = Int[Array, ""] | int
Metrics = dict[str, Array]


@dataclass(frozen=True)
class EnvSpec:
    """Sizes of one task. Static and hashable, so they may decide shapes under `jit`.

    Agents of unequal size are padded to the largest: `obs_sizes` and `action_sizes` say what of
    each agent is real, or are None where all agents have the same size.
    """

    num_agents: int
    obs_size: int
    state_size: int
    action_size: int
    """entries of one agent's action vector, or the number of its discrete actions"""
    discrete: bool
    horizon: int
    """steps after which an episode is cut; the cut is a truncation, not a termination"""
    obs_sizes: tuple[int, ...] | None = None
    action_sizes: tuple[int, ...] | None = None
    obs_from_state: tuple[tuple[int, ...], ...] | None = None
    """the state's indices that each agent sees, where that is how it observes: replay then keeps
    the state alone"""
    obs_range: tuple[float, float] | None = None
    """bounds of every entry of observations and state, where known: replay may then keep 8 bits of
    each"""

    @property
    def action_mask(self) -> Float[np.ndarray, "agents action"]:
        """1 where an agent really has that entry of a continuous action, 0 where it is padding."""
        sizes = self.action_sizes or (self.action_size,) * self.num_agents
        return (np.arange(self.action_size) < np.array(sizes)[:, None]).astype(np.float32)

    def observe(self, state: Float[Array, "*batch state"]) -> Float[Array, "*batch agents obs"]:
        """The agents' observations of a state, for a task that gives `obs_from_state`."""
        assert self.obs_from_state is not None
        padding = self.state_size  # one past the end: a zero is read there
        index = np.array(
            [(*row, *[padding] * (self.obs_size - len(row))) for row in self.obs_from_state]
        )
        return jnp.take(state, index, axis=-1, mode="fill", fill_value=0)


class Timestep(eqx.Module):
    """What a team sees at one step. `state` is for training only; `available` is None if actions
    are continuous."""

    obs: Float[Array, "*batch agents obs"]
    state: Float[Array, "*batch state"]
    available: Bool[Array, "*batch agents actions"] | None = None


class HostTimestep(NamedTuple):
    """The same in NumPy arrays with a leading axis of copies, from a task outside JAX."""

    obs: np.ndarray  # [copies, agents, obs]
    state: np.ndarray  # [copies, state]
    available: np.ndarray | None = None  # [copies, agents, actions]


class Transition(eqx.Module):
    """One step of experience. `terminated` is true only where no value follows."""

    now: Timestep
    action: Array  # [*batch agents] int, or [*batch agents action] float
    reward: Float[
        Array, "*rewards"
    ]  # [*batch], the team's; or [*batch agents], each agent's own, where that is said
    terminated: Bool[Array, "*batch"]
    next: Timestep  # the true next step, never one after a reset
    latent: Float[Array, "*batch latent"] | None = None  # of the episode, where replay keeps it


class Episode(eqx.Module):
    """One episode of one team. `mask` is false on the steps after its end.

    A truncated episode needs no flag: its last unmasked step is not `terminated`, so a value
    follows it. A row may hold several episodes, where an algorithm says that it `packs`: each
    begins after a masked step, whose timestep is the one that followed the episode before.
    """

    memory: PyTree  # what the policy remembered before the first step
    timesteps: Timestep  # [*batch time+1 ...]: stored once, not twice
    action: Array  # [*batch time agents ...]
    reward: Float[Array, "*batch time"]
    terminated: Bool[Array, "*batch time"]
    mask: Bool[Array, "*batch time"]
    metrics: dict[str, Float[Array, "*batch"]] = eqx.field(default_factory=dict)
    """what the task counts besides the return, at the end of the episode, such as `won`"""

    @property
    def starts(self) -> Bool[Array, "*batch steps"]:
        """Where nothing came before: at the first step, and after each that did not take place."""
        return jnp.concatenate([jnp.ones_like(self.mask[..., :1]), ~self.mask], axis=-1)

    def returns(self) -> Float[Array, "*batch"]:
        """Undiscounted, over the steps that happened."""
        return jnp.where(self.mask, self.reward, 0.0).sum(axis=-1)

    def cut(self, time: int) -> "Episode":
        """The first `time` steps of a batch `[batch time ...]`, and the timestep after them."""
        first = lambda tree, steps: jax.tree.map(lambda x: x[:, :steps], tree)
        action, reward, terminated, mask = first(
            (self.action, self.reward, self.terminated, self.mask), time
        )
        return Episode(
            self.memory,
            first(self.timesteps, time + 1),
            action,
            reward,
            terminated,
            mask,
            self.metrics,
        )

    def rows(self, number: int) -> "Episode":
        """The first rows of a batch."""
        return jax.tree.map(lambda x: x[:number], self)


class Clock(NamedTuple):
    """Progress of a run. What is per seed is for arithmetic; what all seeds share may decide a
    `lax.cond`."""

    env_steps: Int[Array, "*seeds"]  # of all teams of a seed
    updates: Int[Array, "*seeds"]  # gradient steps of a seed
    update_in_round: Int[Array, ""]  # shared: 0 at the first update of each round


PER_SEED = Clock(env_steps=0, updates=0, update_in_round=None)  # type: ignore[arg-type]  # the vmap axes of a clock


class TaskDied(RuntimeError):
    """A task that cannot go on, such as a simulation that became unstable."""


@runtime_checkable
class Environment(Protocol):
    """A jittable cooperative task. It never resets itself: the rollout decides when an episode is
    over."""

    @property
    def spec(self) -> EnvSpec:
        """The sizes of the task."""
        ...

    def reset(self, key: Key) -> tuple[PyTree, Timestep]:
        """The task's own state and what the team first sees."""
        ...

    def step(
        self, env_state: PyTree, action: Array, key: Key
    ) -> tuple[PyTree, Timestep, Float[Array, ""], Bool[Array, ""], Bool[Array, ""]]:
        """`(env_state, timestep, team reward, terminated, truncated)`."""
        ...

    def metrics(self, env_state: PyTree) -> dict[str, Float[Array, ""]]:
        """What counts besides the return at the end of an episode, such as `{"won": 1.0}`; `{}` for
        most tasks."""
        ...


@runtime_checkable
class HostEnvironment(Protocol):
    """Copies of one task outside JAX: NumPy arrays with a leading axis of copies.

    A copy that is over, or that `playing` left out, ignores its actions; its reward is 0 and its
    flags are false.
    """

    spec: EnvSpec
    num_copies: int

    def reset(
        self, seeds: Int[np.ndarray, " copies"], playing: Bool[np.ndarray, " copies"]
    ) -> HostTimestep:
        """Starts an episode in the copies that play. Equal seeds give equal starts."""
        ...

    def step(self, action: np.ndarray) -> tuple[HostTimestep, np.ndarray, np.ndarray, np.ndarray]:
        """`(timestep, team rewards, terminated, truncated)`, each with a leading axis of copies."""
        ...

    def close(self) -> None:
        """Ends whatever the copies run in."""
        ...


@runtime_checkable
class Task(Protocol):
    """The hashable settings of one task outside JAX, and what makes its copies."""

    @property
    def spec(self) -> EnvSpec:
        """The sizes of the task."""
        ...

    def make(self, num_copies: int) -> HostEnvironment:
        """So many running copies."""
        ...


@runtime_checkable
class SuitsActions(Protocol):
    """What a task adds that can be played with discrete and with continuous actions."""

    def suited_to(self, actions: frozenset[str]) -> Any:
        """The same task with the kind of actions that an algorithm can choose."""
        ...


@runtime_checkable
class Draws(Protocol):
    """What a task of one's own in JAX adds that can draw itself, for `comarl watch`."""

    def render(self, env_state: PyTree) -> np.ndarray:
        """A picture of this state, uint8 `[height, width, 3]`, of the same size for every state."""
        ...


@runtime_checkable
class Replay(Protocol):
    """Where experience waits: pure functions over one state, for one seed.

    `batch` is what `sample` draws and an algorithm's `update` gets: Transition or Episode.
    """

    batch: ClassVar[type]

    @property
    def capacity(self) -> int:
        """Rows that are kept."""
        ...

    @property
    def batch_size(self) -> int:
        """Transitions or episodes of one draw."""
        ...

    def rows(self, num_episodes: int, spec: EnvSpec) -> int:
        """Rows that so many episodes may fill."""
        ...

    def init(self, spec: EnvSpec) -> PyTree:
        """The state that holds nothing."""
        ...

    def add(self, state: PyTree, episodes: Episode, spec: EnvSpec, /) -> PyTree:
        """The state after episodes `[episodes time ...]`, which take the place of the oldest."""
        ...

    def ready(self, state: PyTree, /) -> Bool[Array, ""]:
        """Whether there is enough to draw from."""
        ...

    def sample(self, state: PyTree, spec: EnvSpec, key: Key, /) -> PyTree:
        """A batch."""
        ...


@runtime_checkable
class Pace(Protocol):
    """How much is played in a round, and how many gradient steps follow: the replay ratio."""

    @property
    def parallel_envs(self) -> int:
        """Episodes that each team plays side by side in a round."""
        ...

    @property
    def warmup_steps(self) -> int:
        """Environment steps of random actions before anything learns."""
        ...

    def due(self, mask: Bool[Array, "episodes time"]) -> Float[Array, ""]:
        """The gradient steps that a round asks for, from its steps that took place."""
        ...

    def most(self, episodes: int, horizon: int) -> int:
        """The most gradient steps that a round of so many episodes may ask for; 1 at least."""
        ...

    def check(self, episodes: int, horizon: int) -> None:
        """Raises ValueError if no round of so many episodes would ever come to an update."""
        ...


@runtime_checkable
class Algorithm(Protocol):
    """A frozen dataclass of hyperparameters, with pure functions over one state pytree.

    Inside them there is one seed. `act` sees one team at one step; `update` sees one batch, which
    is what the replay draws. What some algorithms have besides is said by `Packs`, `ValuesTeams`
    and `Evolutionary`.
    """

    @property
    def actions(self) -> frozenset[str]:
        """Which of {"continuous", "discrete"} it can choose."""
        ...

    @property
    def replay(self) -> Replay:
        """Where its experience waits."""
        ...

    @property
    def pace(self) -> Pace:
        """How often it learns."""
        ...

    def init(self, spec: EnvSpec, key: Key) -> PyTree:
        """The state before training: networks, targets, optimisers."""
        ...

    def initial_memory(self, state: PyTree, timestep: Timestep, key: Key) -> PyTree:
        """What a policy carries into an episode; `()` if nothing."""
        ...

    def act(
        self,
        state: PyTree,
        team: Index,
        memory: PyTree,
        timestep: Timestep,
        clock: Clock,
        key: Key,
        *,
        explore: bool,
    ) -> tuple[PyTree, Array]:
        """The memory for the next step, and the joint action of one team."""
        ...

    def update(self, state: PyTree, batch: Any, clock: Clock, key: Key) -> tuple[PyTree, Metrics]:
        """One gradient step of everything that learns by gradient."""
        ...


@runtime_checkable
class Packs(Protocol):
    """What an algorithm says whose batches may hold several short episodes in a row.

    They are told apart by `Episode.starts`. Updates are faster so.
    """

    packs: ClassVar[bool]


@runtime_checkable
class Communicates(Protocol):
    """What an algorithm says whose agents receive messages while they act."""

    communicates: ClassVar[bool]


@runtime_checkable
class CutsMessages(Protocol):
    """What an algorithm whose agents communicate adds if one can act by itself: hearing nothing."""

    def without_messages(self) -> "Algorithm":
        """The same algorithm, whose agents receive nothing of each other while they act
        greedily."""
        ...


@runtime_checkable
class ValuesTeams(Protocol):
    """What an algorithm adds that can value what a team did: its Q_tot, or the like."""

    def team_values(self, state: PyTree, episode: Episode, key: Key) -> Float[Array, " time"]:
        """The value of what the team did at each step of one episode."""
        ...


@runtime_checkable
class Evolutionary(Protocol):
    """What an algorithm adds when it keeps a population; the last team is the one that MARL trains.

    `population_after` is the number of environment steps that the last team plays and learns alone
    at first.
    """

    @property
    def population_after(self) -> int:
        """Environment steps that the MARL team plays and learns alone at first."""
        ...

    @property
    def num_teams(self) -> int:
        """Teams that play: those that evolve, and the one that MARL trains."""
        ...

    def evolve(
        self, state: PyTree, fitness: Float[Array, " teams"], clock: Clock, key: Key
    ) -> tuple[PyTree, Metrics]:
        """The next generation, bred from this round's returns before anything learns from them."""
        ...

    def inject(self, state: PyTree) -> PyTree:
        """The population after the team that MARL trained has joined it, at the end of a round."""
        ...

    def trained_team(self, state: PyTree) -> Int[Array, ""]:
        """The team that stands for the algorithm: the last, which MARL trains; the elite where none
        is trained."""
        ...

    def best_team(self, state: PyTree) -> Int[Array, ""]:
        """The team that had the best return in the latest round of training."""
        ...


def tree_where(condition: Bool[Array, ""] | bool, new: PyTree, old: PyTree) -> PyTree:
    """`new` where `condition` holds, else `old`, for whole pytrees; typed keys included.

    What Python knows already is decided at once, so that nothing depends on the other.
    """
    if isinstance(condition, bool):
        return new if condition else old
    return jax.tree.map(lambda n, o: jnp.where(condition, n, o), new, old)
