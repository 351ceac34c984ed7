"""Replay of whole episodes, for what must see their steps in order. Written for one seed; the loop
maps it."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from comarl.replay.transitions import latent_of
from comarl.types import EnvSpec, Episode, Key, Timestep
from comarl.validation import check_fields, check_range


class Latent(eqx.Module):
    """What is kept of the memory with which a policy began an episode."""

    latent: Float[Array, "*batch latent"]


class EpisodeStorage(eqx.Module):
    """Whole episodes, one per row, in the form in which they are kept."""

    obs: (
        Array | None
    )  # [rows, time+1, agents, obs]; None where observations are a gather of the state
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
    """The latest whole episodes, drawn uniformly without replacement."""

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
    """how many of the newest episodes count as recent, of which each batch then has some more; 0
    for a uniform draw alone"""
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
                f"replay.batch_size {self.batch_size}: it must be at most the capacity, {self.capacity} episodes"
            )

    def rows(self, num_episodes: int, spec: EnvSpec) -> int:
        """Rows that so many episodes fill."""
        return num_episodes

    def ready(self, ring: EpisodeRingState) -> Bool[Array, ""]:
        """Whether there is enough to draw from."""
        return ring.size >= max(self.batch_size, self.recent_batch)

    def init(self, spec: EnvSpec) -> EpisodeRingState:
        time, agents = spec.horizon, spec.num_agents
        zeros = lambda *shape, dtype=jnp.float32: jnp.zeros((self.capacity, *shape), dtype)
        # A discrete action is a small number: 8 bits hold it without loss.
        action = (time, agents) if spec.discrete else (time, agents, spec.action_size)
        kept = EpisodeStorage(
            obs=None
            if spec.obs_from_state
            else self.pack(spec, zeros(time + 1, agents, spec.obs_size)),
            state=self.pack(spec, zeros(time + 1, spec.state_size)),
            available=zeros(time + 1, agents, spec.action_size, dtype=bool)
            if spec.discrete
            else None,
            action=zeros(*action, dtype=small_int(spec) if spec.discrete else jnp.float32),
            reward=zeros(time),
            terminated=zeros(time, dtype=bool),
            mask=zeros(time, dtype=bool),
            memory=Latent(zeros(self.latent)) if self.latent else (),
        )
        return EpisodeRingState(kept, jnp.int32(0), jnp.int32(0))

    def add(self, ring: EpisodeRingState, episodes: Episode, spec: EnvSpec) -> EpisodeRingState:
        """Puts episodes `[teams time ...]` over the oldest. One that did not take place leaves no
        trace."""
        played = episodes.mask[:, 0]
        row = jnp.where(
            played, (ring.cursor + jnp.cumsum(played) - 1) % self.capacity, self.capacity
        )
        obs, state, available = (
            episodes.timesteps.obs,
            episodes.timesteps.state,
            episodes.timesteps.available,
        )
        # After its end an episode is zeros, whatever the task showed there.
        seen = jnp.pad(episodes.mask, ((0, 0), (1, 0)), constant_values=True)
        blank = lambda x, there: jnp.where(
            there.reshape(*there.shape, *[1] * (x.ndim - 2)), x, jnp.zeros((), x.dtype)
        )
        kept = EpisodeStorage(
            obs=None if spec.obs_from_state else self.pack(spec, blank(obs, seen)),
            state=self.pack(spec, blank(state, seen)),
            available=None if available is None else blank(available, seen),
            action=blank(episodes.action, episodes.mask).astype(ring.kept.action.dtype),
            reward=blank(episodes.reward, episodes.mask),
            terminated=episodes.terminated & episodes.mask,
            mask=episodes.mask,
            memory=Latent(latent_of(self.latent, episodes.memory)) if self.latent else (),
        )
        put = lambda old, new: old.at[row].set(new, mode="drop")
        number = played.sum().astype(jnp.int32)
        return EpisodeRingState(
            jax.tree.map(put, ring.kept, kept),
            (ring.cursor + number) % self.capacity,
            jnp.minimum(ring.size + number, self.capacity),
        )

    def sample(self, ring: EpisodeRingState, spec: EnvSpec, key: Key) -> Episode:
        """A batch of different episodes, as they were played up to the precision of `storage`.

        With `recent`, different recent episodes come first; the others may be the same again.
        """
        if not self.recent:
            return self.gather(ring, spec, self.draw_uniform(ring, key))
        recent_key, all_key = jax.random.split(key)
        recent = self.gather(ring, spec, self.draw_recent(ring, recent_key))
        uniform = self.gather(ring, spec, self.draw_uniform(ring, all_key))
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), recent, uniform)

    def draw_uniform(self, ring: EpisodeRingState, key: Key) -> Int[Array, " batch"]:
        """Rows of different episodes, of all that are held."""
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
        """The episodes of these rows."""
        drawn = jax.tree.map(lambda x: x[row], ring.kept)
        state = self.unpack(spec, drawn.state)
        obs = spec.observe(state) if drawn.obs is None else self.unpack(spec, drawn.obs)
        action = drawn.action.astype(jnp.int32) if spec.discrete else drawn.action
        timesteps = Timestep(obs, state, drawn.available)
        return Episode(drawn.memory, timesteps, action, drawn.reward, drawn.terminated, drawn.mask)

    def pack(self, spec: EnvSpec, x: Float[Array, "*batch"]) -> Array:
        """Numbers as they are kept."""
        if self.storage == "byte" and spec.obs_range is not None:
            low, high = spec.obs_range
            return jnp.round((x - low) * (255.0 / (high - low))).astype(jnp.uint8)
        return x.astype(jnp.float32 if self.storage == "full" else jnp.float16)

    def unpack(self, spec: EnvSpec, x: Array) -> Float[Array, "*batch"]:
        """The numbers that were kept."""
        if x.dtype == jnp.uint8 and spec.obs_range is not None:
            low, high = spec.obs_range
            return x.astype(jnp.float32) * ((high - low) / 255.0) + low
        return x.astype(jnp.float32)


def small_int(spec: EnvSpec) -> jnp.dtype:
    """The smallest whole numbers that hold every action of a discrete task."""
    return jnp.dtype(jnp.uint8 if spec.action_size <= 256 else jnp.int32)
