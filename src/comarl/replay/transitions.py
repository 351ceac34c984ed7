"""Replay of transitions, for off-policy algorithms that learn from single steps.

Everything is written for one seed; the loop maps it over seeds.
"""

from dataclasses import dataclass
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from comarl.replay.slots import blank, latent_of, next_slots
from comarl.types import EnvSpec, Episode, Key, Timestep, Transition
from comarl.validation import check_fields, check_range


class RingState(eqx.Module):
    """Rows hold episodes one after the other: each step's state, then the state after the last
    step.

    So a next state is the following row and nothing is stored twice. `starts` lists the rows where
    a transition begins, oldest first, as a ring of its own: sampling from it is uniform, and never
    crosses an episode's end.
    """

    state: Float[Array, "capacity state"]
    obs: Float[Array, "capacity agents obs"] | None
    """None where observations are a gather of the state"""
    action: Array  # [capacity, agents, ...]
    reward: Float[Array, " capacity"]
    terminated: Bool[Array, " capacity"]
    is_start: Bool[Array, " capacity"]
    starts: Int[Array, " capacity"]
    cursor: Int[Array, ""]  # the row that is written next
    first: Int[Array, ""]  # where in `starts` the oldest transition stands
    size: Int[Array, ""]  # transitions held
    latent: Float[Array, "capacity latent"] | None
    """of the row's episode; None where policies have no such vector"""


@dataclass(frozen=True)
class Ring:
    """The latest transitions, drawn uniformly with replacement.

    >>> spec = EnvSpec(2, obs_size=3, state_size=4, action_size=5, discrete=True, horizon=10)
    >>> ring = Ring(capacity=100, batch_size=8)
    >>> ring.rows(2, spec)  # ten steps and the state after the last one, twice
    22
    >>> bool(ring.ready(ring.init(spec)))
    False
    """

    capacity: int = 1_000_000
    """rows kept: one per step and one more per episode"""
    batch_size: int = 128
    """transitions per draw"""
    latent: int = 0
    """length of the vector `memory.latent` that is kept with each transition; 0 for policies that
    have none"""

    batch: ClassVar[type] = Transition

    def __post_init__(self):
        check_fields(self)
        check_range(self, 2, None, "capacity")
        check_range(self, 1, None, "batch_size")
        check_range(self, 0, None, "latent")

    def rows(self, num_episodes: int, spec: EnvSpec) -> int:
        """Rows that so many episodes may fill."""
        return num_episodes * (spec.horizon + 1)

    def ready(self, ring: RingState) -> Bool[Array, ""]:
        """Whether there is enough to draw from: one transition."""
        return ring.size > 0

    def init(self, spec: EnvSpec) -> RingState:
        """The state that holds nothing."""
        rows, agents = self.capacity, spec.num_agents
        action = (rows, agents) if spec.discrete else (rows, agents, spec.action_size)
        zero = jnp.int32(0)
        return RingState(
            state=jnp.zeros((rows, spec.state_size)),
            obs=None if spec.obs_from_state else jnp.zeros((rows, agents, spec.obs_size)),
            action=jnp.zeros(action, jnp.int32 if spec.discrete else jnp.float32),
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
        """Writes episodes `[episodes time ...]` over the oldest rows.

        An episode of n steps fills n + 1 rows, the last with what followed it; one that was not
        played fills none.
        """
        # [episodes, time + 1]: where a transition begins, and where there is anything to keep.
        # After a step there is a timestep; the first is there if there was a step at all.
        begins = jnp.pad(episodes.mask, ((0, 0), (0, 1)))
        reached = jnp.pad(episodes.mask, ((0, 0), (1, 0)))
        filled = reached.at[:, 0].set(episodes.mask[:, 0])
        row = next_slots(ring.cursor, filled, self.capacity)

        # Transitions whose rows are written over are the oldest, so they leave `starts` at its
        # beginning; those that come now are listed behind those that stay.
        lost = ring.is_start.at[row].get(mode="fill", fill_value=False).sum()
        first = (ring.first + lost) % self.capacity
        kept = ring.size - lost
        place = next_slots(first + kept, begins, self.capacity)

        def put(old: Array, new: Array) -> Array:
            """Every timestep's entry in its row."""
            return old.at[row].set(new.reshape(-1, *old.shape[1:]), mode="drop")

        def put_steps(old: Array, new: Array) -> Array:
            """The same of what belongs to steps: a last timestep has none, and gets zeros."""
            one_more = jnp.pad(new, ((0, 0), (0, 1)) + ((0, 0),) * (new.ndim - 2))
            return put(old, blank(one_more, begins))

        return RingState(
            state=put(ring.state, episodes.timesteps.state),
            obs=None if ring.obs is None else put(ring.obs, episodes.timesteps.obs),
            action=put_steps(ring.action, episodes.action),
            reward=put_steps(ring.reward, episodes.reward),
            terminated=put_steps(ring.terminated, episodes.terminated),
            is_start=put(ring.is_start, begins),
            starts=ring.starts.at[place].set(row, mode="drop"),
            cursor=(ring.cursor + filled.sum()) % self.capacity,
            first=first,
            size=kept + begins.sum(),
            latent=None if ring.latent is None else put(ring.latent, self.latents(episodes)),
        )

    def latents(self, episodes: Episode) -> Float[Array, "episodes steps latent"]:
        """Each episode's vector, at each of its timesteps."""
        vector = latent_of(self.latent, episodes.memory)
        steps = episodes.mask.shape[1] + 1
        return jnp.broadcast_to(vector[:, None], (len(vector), steps, self.latent))

    def sample(self, ring: RingState, spec: EnvSpec, key: Key) -> Transition:
        """A batch of transitions `[batch ...]`, uniform over those held."""
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
        """The timesteps of these rows `[batch ...]`."""
        state = ring.state[row]
        return Timestep(spec.observe(state) if ring.obs is None else ring.obs[row], state)


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
        """None: episodes are not kept."""
        return 0

    def ready(self, state: tuple[()]) -> Bool[Array, ""]:
        """Never: there is nothing to draw."""
        return jnp.bool_(False)

    def init(self, spec: EnvSpec) -> tuple[()]:
        """The state, which is always empty."""
        return ()

    def add(self, state: tuple[()], episodes: Episode, spec: EnvSpec) -> tuple[()]:
        """The same state: the episodes are forgotten."""
        return ()

    def sample(self, state: tuple[()], spec: EnvSpec, key: Key) -> tuple[()]:
        """An empty batch."""
        return ()
