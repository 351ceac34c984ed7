"""Replay of whole episodes, for algorithms that learn from the steps in their order.

Everything is written for one seed; the loop maps it over seeds.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from comarl.replay.slots import blank, latent_of, next_slots
from comarl.types import EnvSpec, Episode, Key, Timestep
from comarl.validation import check_fields, check_range


class Latent(eqx.Module):
    """What is kept of the memory with which a policy began an episode."""

    latent: Float[Array, "*batch latent"]


class EpisodeStorage(eqx.Module):
    """Whole episodes, one per row, in the form in which they are kept."""

    obs: Array | None
    """[rows, time+1, agents, obs]; None where observations are a gather of the state"""
    state: Array  # [rows, time+1, state]
    available: Bool[Array, "rows steps agents actions"] | None
    action: Array  # [rows, time, agents, ...]
    reward: Float[Array, "rows time"]
    terminated: Bool[Array, "rows time"]
    mask: Bool[Array, "rows time"]
    memory: Latent | tuple[()]


class EpisodeRingState(eqx.Module):
    """The latest episodes, and where the next one goes."""

    kept: EpisodeStorage
    cursor: Int[Array, ""]  # the row that is written next
    size: Int[Array, ""]  # episodes held


@dataclass(frozen=True)
class EpisodeRing:
    """The latest whole episodes, drawn uniformly without replacement.

    >>> spec = EnvSpec(2, obs_size=3, state_size=4, action_size=5, discrete=True, horizon=10)
    >>> ring = EpisodeRing(capacity=100, batch_size=8, storage="half")
    >>> ring.rows(2, spec)
    2
    >>> ring.init(spec).kept.state.shape, str(ring.init(spec).kept.state.dtype)
    ((100, 11, 4), 'float16')
    """

    capacity: int = 5_000
    """episodes kept"""
    batch_size: int = 32
    """episodes per draw; learning waits until there are so many"""
    storage: Literal["full", "half", "byte"] = "full"
    """how observations and states are kept: in 32 bits, in 16, or in 8 where the task declares
    their range"""
    latent: int = 0
    """length of the vector `memory.latent` that is kept with each episode; 0 for policies that have
    none"""
    recent: int = 0
    """each batch also holds `recent_batch` of so many newest episodes; 0 for a uniform draw
    alone"""
    recent_batch: int = 0
    """recent episodes per draw, which come before the `batch_size` drawn from all"""

    batch: ClassVar[type] = Episode

    def __post_init__(self):
        check_fields(self)
        check_range(self, 1, None, "capacity", "batch_size")
        check_range(self, 0, None, "latent")
        check_range(self, 0, self.capacity, "recent")
        check_range(self, min(1, self.recent), self.recent, "recent_batch")
        if self.batch_size > self.capacity:
            raise ValueError(
                f"replay.batch_size {self.batch_size}: it must be at most the capacity, "
                f"{self.capacity} episodes"
            )

    def rows(self, num_episodes: int, spec: EnvSpec) -> int:
        """Rows that so many episodes fill."""
        return num_episodes

    def ready(self, ring: EpisodeRingState) -> Bool[Array, ""]:
        """Whether there is enough to draw from."""
        return ring.size >= max(self.batch_size, self.recent_batch)

    def init(self, spec: EnvSpec) -> EpisodeRingState:
        """The state that holds nothing."""
        time, agents = spec.horizon, spec.num_agents

        def zeros(*shape: int, dtype: DTypeLike = jnp.float32) -> Array:
            return jnp.zeros((self.capacity, *shape), dtype)

        if spec.discrete:
            action = zeros(time, agents, dtype=smallest_int(spec))
            available = zeros(time + 1, agents, spec.action_size, dtype=bool)
        else:
            action = zeros(time, agents, spec.action_size)
            available = None
        obs = None if spec.obs_from_state else zeros(time + 1, agents, spec.obs_size)
        kept = EpisodeStorage(
            obs=None if obs is None else self.pack(spec, obs),
            state=self.pack(spec, zeros(time + 1, spec.state_size)),
            available=available,
            action=action,
            reward=zeros(time),
            terminated=zeros(time, dtype=bool),
            mask=zeros(time, dtype=bool),
            memory=Latent(zeros(self.latent)) if self.latent else (),
        )
        return EpisodeRingState(kept, cursor=jnp.int32(0), size=jnp.int32(0))

    def add(self, ring: EpisodeRingState, episodes: Episode, spec: EnvSpec) -> EpisodeRingState:
        """Writes episodes `[episodes time ...]` over the oldest.

        One that was not played fills no row, and what stands after an end is kept as zeros.
        """
        played = episodes.mask[:, 0]
        count = played.sum().astype(jnp.int32)
        row = next_slots(ring.cursor, played, self.capacity)
        new = self.to_storage(episodes, spec, action_dtype=ring.kept.action.dtype)
        kept = jax.tree.map(lambda x, y: x.at[row].set(y, mode="drop"), ring.kept, new)
        cursor = (ring.cursor + count) % self.capacity
        return EpisodeRingState(kept, cursor, jnp.minimum(ring.size + count, self.capacity))

    def to_storage(
        self, episodes: Episode, spec: EnvSpec, action_dtype: DTypeLike
    ) -> EpisodeStorage:
        """Episodes `[episodes time ...]` in the form in which they are kept."""
        mask, timesteps = episodes.mask, episodes.timesteps
        # A timestep is there at first and after each step; what a task shows later is dropped.
        reached = jnp.pad(mask, ((0, 0), (1, 0)), constant_values=True)
        obs = None if spec.obs_from_state else self.pack(spec, blank(timesteps.obs, reached))
        available = timesteps.available
        return EpisodeStorage(
            obs=obs,
            state=self.pack(spec, blank(timesteps.state, reached)),
            available=None if available is None else blank(available, reached),
            action=blank(episodes.action, mask).astype(action_dtype),
            reward=blank(episodes.reward, mask),
            terminated=episodes.terminated & mask,
            mask=mask,
            memory=Latent(latent_of(self.latent, episodes.memory)) if self.latent else (),
        )

    def sample(self, ring: EpisodeRingState, spec: EnvSpec, key: Key) -> Episode:
        """A batch of different episodes `[batch time ...]`, up to the precision of `storage`.

        With `recent`, `recent_batch` different recent episodes come first; the `batch_size` others
        are drawn from all that are held, so some may come twice.
        """
        if not self.recent:
            return self.gather(ring, spec, self.draw_uniform(ring, key))
        recent_key, all_key = jax.random.split(key)
        recent = self.gather(ring, spec, self.draw_recent(ring, recent_key))
        uniform = self.gather(ring, spec, self.draw_uniform(ring, all_key))
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), recent, uniform)

    def draw_uniform(self, ring: EpisodeRingState, key: Key) -> Int[Array, " batch"]:
        """Rows of different episodes, of all that are held."""
        # Rows in a random order: those of the highest scores are drawn, and empty ones score least.
        random = jax.random.uniform(key, (self.capacity,))
        random_scores = jnp.where(jnp.arange(self.capacity) < ring.size, random, -1.0)
        return jax.lax.top_k(random_scores, self.batch_size)[1]

    def draw_recent(self, ring: EpisodeRingState, key: Key) -> Int[Array, " recent"]:
        """Rows of different episodes, of the newest."""
        random = jax.random.uniform(key, (self.recent,))
        random_scores = jnp.where(jnp.arange(self.recent) < ring.size, random, -1.0)
        age = jax.lax.top_k(random_scores, self.recent_batch)[1]
        return (ring.cursor - 1 - age) % self.capacity

    def gather(self, ring: EpisodeRingState, spec: EnvSpec, row: Int[Array, " batch"]) -> Episode:
        """The episodes of these rows, `[batch time ...]`."""
        drawn = jax.tree.map(lambda x: x[row], ring.kept)
        state = self.unpack(spec, drawn.state)
        obs = spec.observe(state) if drawn.obs is None else self.unpack(spec, drawn.obs)
        action = drawn.action.astype(jnp.int32) if spec.discrete else drawn.action
        timesteps = Timestep(obs, state, drawn.available)
        return Episode(drawn.memory, timesteps, action, drawn.reward, drawn.terminated, drawn.mask)

    def pack(self, spec: EnvSpec, x: Float[Array, "*batch"]) -> Array:
        """Observations or states as they are kept: of any shape, in the precision of `storage`."""
        if self.storage == "byte" and spec.obs_range is not None:
            low, high = spec.obs_range
            return jnp.round((x - low) * (255.0 / (high - low))).astype(jnp.uint8)
        return x.astype(jnp.float32 if self.storage == "full" else jnp.float16)

    def unpack(self, spec: EnvSpec, x: Array) -> Float[Array, "*batch"]:
        """What `pack` was given, up to the precision of `storage`."""
        if x.dtype == jnp.uint8 and spec.obs_range is not None:
            low, high = spec.obs_range
            return x.astype(jnp.float32) * ((high - low) / 255.0) + low
        return x.astype(jnp.float32)


def smallest_int(spec: EnvSpec) -> jnp.dtype:
    """The smallest integer type that holds every action of a discrete task.

    >>> smallest_int(EnvSpec(2, 3, 4, action_size=5, discrete=True, horizon=10))
    dtype('uint8')
    """
    return jnp.dtype(jnp.uint8 if spec.action_size <= 256 else jnp.int32)
