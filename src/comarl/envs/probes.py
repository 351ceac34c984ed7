"""Probe tasks: one or two steps long, each isolates one faculty, and its values and best actions
are known.

After the probe environments of Andy Jones and of rejax. If an algorithm fails one of them, the
probe's name says where to look. Actions are continuous in [-1, 1]; two agents with one action each
share the reward.
"""

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array, Bool, Float, Int

from comarl.types import EnvSpec, Key, Timestep
from comarl.validation import check_fields, check_range


class ProbeState(NamedTuple):
    """What is shown, and when."""

    signal: Float[Array, ""]  # what is observed
    time: Int[Array, ""]


Step = tuple[ProbeState, Timestep, Float[Array, ""], Bool[Array, ""], Bool[Array, ""]]


@dataclass(frozen=True)
class Probe:
    """One probe, by what it rewards."""

    name: tyro.conf.Suppress[str]
    """which probe"""
    summary: tyro.conf.Suppress[str]
    """what it isolates"""
    horizon: int = 1
    """steps of an episode"""
    terminates: bool = True
    """whether the last step is a termination; else it is a truncation, behind which a value
    follows"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 1, None, "horizon")

    spec_sizes: ClassVar = (2, 2, 2, 1)  # agents, observation, state, action

    @property
    def spec(self) -> EnvSpec:
        """Sizes, the same for all these probes but the horizon."""
        agents, obs, state, action = self.spec_sizes
        return EnvSpec(agents, obs, state, action, discrete=False, horizon=self.horizon)

    def observe(self, env_state: ProbeState) -> Timestep:
        """Agents see the signal and the time; so does the state. After a truncation they see what
        they saw before it."""
        time = env_state.time if self.terminates else jnp.int32(0)
        seen = jnp.stack([env_state.signal, time.astype(jnp.float32)])
        return Timestep(obs=jnp.stack([seen, seen]), state=seen)

    def reset(self, key: Key) -> tuple[ProbeState, Timestep]:
        """The signal, 1 or -1 by chance where the probe shows one, at time 0."""
        signal = jnp.float32(0.0)
        if self.name in SEES_SIGNAL:
            signal = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
        env_state = ProbeState(signal, jnp.int32(0))
        return env_state, self.observe(env_state)

    def step(self, env_state: ProbeState, action: Float[Array, "2 1"], key: Key) -> Step:
        """`(env_state, timestep, team reward, terminated, truncated)`; chance plays no part."""
        reward = self.reward(env_state, action[:, 0])
        after = ProbeState(env_state.signal, env_state.time + 1)
        over = after.time >= self.horizon
        return (
            after,
            self.observe(after),
            reward,
            over & self.terminates,
            over & (not self.terminates),
        )

    def metrics(self, env_state: ProbeState) -> dict[str, Float[Array, ""]]:
        """Nothing counts besides the return."""
        return {}

    def reward(self, env_state: ProbeState, action: Float[Array, " 2"]) -> Float[Array, ""]:
        """The team's reward for a step, by the probe's rule."""
        signal, last = env_state.signal, env_state.time == self.horizon - 1
        rewards = {
            "constant": jnp.float32(1.0),
            "signal": signal,
            "delayed": jnp.where(last, 1.0, 0.0),
            "truncated": jnp.float32(1.0),
            "action": 1.0 - jnp.square(action - jnp.array([0.5, -0.5])).sum(),
            "signal-action": 1.0 - jnp.square(action - 0.5 * signal).sum(),
            "together": 1.0
            - jnp.square(action[0] + action[1] - 1.0)
            - 0.5 * jnp.square(action[0] - action[1]),
        }
        return rewards[self.name]


SEES_SIGNAL = ("signal", "signal-action")

PROBES = {
    probe.name: probe
    for probe in (
        Probe("constant", "one step, reward 1: the value of a constant is 1"),
        Probe(
            "signal",
            "one step, the reward is what is seen, 1 or -1: the value follows the observation",
        ),
        Probe("delayed", "two steps, reward 1 on the second: the first is worth gamma", horizon=2),
        Probe(
            "truncated", "one step, reward 1, cut by time: worth 1 / (1 - gamma)", terminates=False
        ),
        Probe("action", "one step, each agent has a best action of its own: 0.5 and -0.5, worth 1"),
        Probe("signal-action", "one step, the best action is half of what is seen, worth 1"),
        Probe(
            "together", "one step, the two actions must sum to 1 and be equal: 0.5 each, worth 1"
        ),
    )
}
