"""Small tasks for the tests of the loop."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from comarl.types import EnvSpec, HostTimestep, TaskDied, Timestep

SPEC = EnvSpec(2, 2, 3, 1, discrete=False, horizon=9, obs_from_state=((0, 1), (1, 2)))


@dataclass(frozen=True)
class Wander:
    """Two agents push a point about; an episode ends early, at a time that differs from episode to
    episode."""

    reward_after: float = 0.0
    """added to the reward from the fourth step on; 1e30 is finite and makes losses infinite"""
    spec = SPEC

    def look(self, env_state):
        state = env_state[0]
        return Timestep(self.spec.observe(state), state)

    def reset(self, key):
        where_key, length_key = jax.random.split(key)
        env_state = (
            jax.random.normal(where_key, (3,)),
            jax.random.randint(length_key, (), 2, 12),
            jnp.int32(0),
        )
        return env_state, self.look(env_state)

    def step(self, env_state, action, key):
        state, length, time = env_state
        state = state.at[:2].add(0.1 * action[:, 0])
        env_state = (state, length, time + 1)
        reward = 1.0 - jnp.square(state).sum() * 0.1 + jnp.where(time >= 3, self.reward_after, 0.0)
        over = time + 1 >= length
        return (
            env_state,
            self.look(env_state),
            reward,
            over,
            (time + 1 >= self.spec.horizon) & ~over,
        )

    def metrics(self, env_state):
        return {}


@dataclass(frozen=True)
class Stroll:
    """Two agents on a line of five, whose ends are walls; an episode ends at a time of its own or
    is cut."""

    spec = EnvSpec(2, 2, 2, 3, discrete=True, horizon=6)

    def look(self, env_state):
        place, _, time = env_state
        available = jnp.stack([place > 0, place >= 0, place < 4], axis=1)
        seen = place.astype(jnp.float32) / 4.0
        obs = jnp.stack([seen, jnp.full(2, time.astype(jnp.float32) / 6.0)], axis=1)
        return Timestep(obs, seen, available)

    def reset(self, key):
        place_key, length_key = jax.random.split(key)
        place, length = (
            jax.random.randint(place_key, (2,), 0, 5),
            jax.random.randint(length_key, (), 1, 9),
        )
        env_state = (place, length, jnp.int32(0))
        return env_state, self.look(env_state)

    def step(self, env_state, action, key):
        place, length, time = env_state
        env_state = (place + action - 1, length, time + 1)
        reward = 1.0 - jnp.abs(env_state[0][0] - env_state[0][1]).astype(jnp.float32) / 4.0
        over = time + 1 >= length
        return env_state, self.look(env_state), reward, over, (time + 1 >= 6) & ~over

    def metrics(self, env_state):
        return {"met": (env_state[0][0] == env_state[0][1]).astype(jnp.float32)}


@dataclass(frozen=True)
class HostWander:
    """The same in NumPy, as a task outside JAX. It dies at its `dies_at`-th step in all."""

    dies_at: int = 10**9
    """steps until it raises"""
    spec = SPEC

    def make(self, num_copies):
        return HostWanderCopies(self, num_copies)


class HostWanderCopies:
    def __init__(self, task, num_copies):
        self.task, self.spec, self.num_copies, self.steps = task, task.spec, num_copies, 0
        self.state = np.zeros((num_copies, 3), np.float32)
        self.length, self.over = np.zeros(num_copies, int), np.ones(num_copies, bool)

    def look(self):
        return HostTimestep(np.zeros((self.num_copies, 2, 2), np.float32), self.state.copy())

    def reset(self, seeds, playing):
        for copy in np.flatnonzero(playing):
            random = np.random.default_rng(int(seeds[copy]))
            self.state[copy], self.length[copy] = random.normal(size=3), random.integers(2, 12)
        self.over, self.time = ~playing, 0
        return self.look()

    def step(self, action):
        self.steps += 1
        if self.steps >= self.task.dies_at:
            raise TaskDied(f"the simulation became unstable at step {self.steps}")
        alive = ~self.over
        self.state[alive, :2] += 0.1 * action[alive, :, 0]
        self.time += 1
        reward = np.where(alive, 1.0 - 0.1 * np.square(self.state).sum(1), 0.0)
        terminated = alive & (self.time >= self.length)
        truncated = alive & (self.time >= self.spec.horizon) & ~terminated
        self.over = self.over | terminated | truncated
        return self.look(), reward, terminated, truncated

    def close(self):
        pass
