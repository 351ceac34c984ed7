"""Replay of transitions: where experience waits to be learnt from. Written for one seed; the loop
maps it."""

from dataclasses import dataclass
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from comarl.types import EnvSpec, Episode, Key, Timestep, Transition
from comarl.validation import check_range


class RingState(eqx.Module):
    """Rows hold episodes one after the other: each step's state, then the state after the last
    step.

    So a next state is the following row and nothing is stored twice. `starts` lists the rows where
    a transition begins, oldest first, as a ring of its own: sampling from it is uniform, and never
    crosses an episode's end.
    """

    state: Float[Array, "capacity state"]
    obs: (
        Float[Array, "capacity agents obs"] | None
    )  # None where observations are a gather of the state
    action: Array  # [capacity, agents, ...]
    reward: Float[Array, " capacity"]
    terminated: Bool[Array, " capacity"]
    is_start: Bool[Array, " capacity"]
    starts: Int[Array, " capacity"]
    cursor: Int[Array, ""]  # the row that is written next
    first: Int[Array, ""]  # where in `starts` the oldest transition stands
    size: Int[Array, ""]  # transitions held
    latent: (
        Float[Array, "capacity latent"] | None
    )  # of the row's episode; None where policies have no such vector


@dataclass(frozen=True)
class Ring:
    """The latest transitions, drawn uniformly with replacement."""

    capacity: int = 1_000_000
    """rows kept: one per step and one more per episode"""
    batch_size: int = 128
    """transitions per draw"""
    latent: int = 0
    """length of the vector `memory.latent` that is kept with each transition; 0 for policies that
    have none"""

    batch: ClassVar[type] = Transition

    def __post_init__(self):
        check_range(self, 2, None, "capacity")
        check_range(self, 1, None, "batch_size")
        check_range(self, 0, None, "latent")

    def rows(self, num_episodes: int, spec: EnvSpec) -> int:
        """Rows that so many episodes may fill."""
        return num_episodes * (spec.horizon + 1)

    def ready(self, ring: RingState) -> Bool[Array, ""]:
        """Whether there is enough to draw from."""
        return ring.size > 0

    def init(self, spec: EnvSpec) -> RingState:
        rows = self.capacity
        shape = (
            (rows, spec.num_agents) if spec.discrete else (rows, spec.num_agents, spec.action_size)
        )
        zero = jnp.int32(0)
        return RingState(
            state=jnp.zeros((rows, spec.state_size)),
            obs=None if spec.obs_from_state else jnp.zeros((rows, spec.num_agents, spec.obs_size)),
            action=jnp.zeros(shape, jnp.int32 if spec.discrete else jnp.float32),
            reward=jnp.zeros(rows),
            terminated=jnp.zeros(rows, bool),
            is_start=jnp.zeros(rows, bool),
            starts=jnp.zeros(rows, jnp.int32),
            cursor=zero,
            first=zero,
            size=zero,
            latent=jnp.zeros((rows, self.latent)) if self.latent else None,
        )

    def add(self, ring: RingState, episodes: Episode, spec: EnvSpec) -> RingState:
        """Appends episodes `[teams time ...]`, overwriting the oldest rows."""
        capacity = self.capacity
        begins = jnp.pad(
            episodes.mask, ((0, 0), (0, 1))
        )  # [teams, time + 1]: a transition begins here
        filled = jnp.pad(episodes.mask, ((0, 0), (1, 0)))  # rows 1.. are reached by a step
        filled = filled.at[:, 0].set(episodes.mask[:, 0])  # row 0 exists if there was a step at all
        order = jnp.cumsum(filled.reshape(-1)) - 1
        num_rows, num_begins = filled.sum(), begins.sum()
        # Rows that are not filled go out of bounds, where `mode="drop"` discards them.
        row = jnp.where(filled.reshape(-1), (ring.cursor + order) % capacity, capacity)

        # Transitions that are overwritten now
        lost = ring.is_start.at[row].get(mode="fill", fill_value=False).sum()
        first, kept = (ring.first + lost) % capacity, ring.size - lost
        number = jnp.cumsum(begins.reshape(-1)) - 1
        place = jnp.where(begins.reshape(-1), (first + kept + number) % capacity, capacity)

        put = lambda old, new: old.at[row].set(new.reshape(-1, *old.shape[1:]), mode="drop")

        def pad_time(x: Array) -> Array:
            """One more step, and zeros where there was none: what is stored never depends on what
            is masked."""
            x = jnp.pad(x, ((0, 0), (0, 1)) + ((0, 0),) * (x.ndim - 2))
            return jnp.where(
                begins.reshape(*begins.shape, *[1] * (x.ndim - 2)), x, jnp.zeros((), x.dtype)
            )

        latent = ring.latent
        if latent is not None:
            of_episode = latent_of(self.latent, episodes.memory)
            latent = put(
                latent, jnp.broadcast_to(of_episode[:, None], (*begins.shape, self.latent))
            )
        return RingState(
            state=put(ring.state, episodes.timesteps.state),
            obs=None if ring.obs is None else put(ring.obs, episodes.timesteps.obs),
            action=put(ring.action, pad_time(episodes.action)),
            reward=put(ring.reward, pad_time(episodes.reward)),
            terminated=put(ring.terminated, pad_time(episodes.terminated)),
            is_start=put(ring.is_start, begins),
            starts=ring.starts.at[place].set(row, mode="drop"),
            cursor=(ring.cursor + num_rows) % capacity,
            first=first,
            size=kept + num_begins,
            latent=latent,
        )

    def sample(self, ring: RingState, spec: EnvSpec, key: Key) -> Transition:
        """A batch of transitions, uniform over those held."""
        draw = jax.random.randint(key, (self.batch_size,), 0, ring.size)
        row = ring.starts[(ring.first + draw) % self.capacity]
        return Transition(
            now=self.gather(ring, spec, row),
            action=ring.action[row],
            reward=ring.reward[row],
            terminated=ring.terminated[row],
            next=self.gather(ring, spec, (row + 1) % self.capacity),
            latent=None if ring.latent is None else ring.latent[row],
        )

    def gather(self, ring: RingState, spec: EnvSpec, row: Int[Array, " batch"]) -> Timestep:
        """What was seen in these rows."""
        state = ring.state[row]
        return Timestep(spec.observe(state) if ring.obs is None else ring.obs[row], state)


def latent_of(latent: int, memory: PyTree) -> Float[Array, "*batch latent"]:
    """The vector of an episode that is to be kept, of this length."""
    if not hasattr(memory, "latent"):
        raise ValueError(
            f"replay.latent {latent}: it must be 0, because these policies have no such vector"
        )
    return memory.latent


@dataclass(frozen=True)
class NoReplay:
    """Keeps nothing: for what does not learn from experience."""

    batch: ClassVar[type] = tuple

    @property
    def capacity(self) -> int:
        """No row."""
        return 0

    @property
    def batch_size(self) -> int:
        """Nothing is drawn."""
        return 0

    def rows(self, num_episodes: int, spec: EnvSpec) -> int:
        return 0

    def ready(self, state: tuple[()]) -> Bool[Array, ""]:
        return jnp.bool_(False)

    def init(self, spec: EnvSpec) -> tuple[()]:
        return ()

    def add(self, state: tuple[()], episodes: Episode, spec: EnvSpec) -> tuple[()]:
        return ()

    def sample(self, state: tuple[()], spec: EnvSpec, key: Key) -> tuple[()]:
        return ()
