"""The probe tasks again, for discrete actions: two agents, three actions each, known values and
best actions.

They last one or two steps of a horizon of two, so that those of one step also show whether padding
does harm. Two twins differ from the continuous ones, because agents may remember:

- `truncated` pays on both steps and shows nothing new. What follows its end is never played: only
  as the same again is it worth what a network says. So the values of both steps tell whether a cut
  is taken for an end.
- `memory`, which has no continuous twin, shows the signal at the first step and rewards acting on
  it at the second.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import tyro
from jaxtyping import Array, Bool, Float, Int

from comarl.envs.probes import ProbeState
from comarl.types import EnvSpec, Key, Timestep
from comarl.validation import check_fields, check_range

Step = tuple[ProbeState, Timestep, Float[Array, ""], Bool[Array, ""], Bool[Array, ""]]


@dataclass(frozen=True)
class DiscreteProbe:
    """One probe, by what it rewards."""

    name: tyro.conf.Suppress[str]
    """which probe"""
    summary: tyro.conf.Suppress[str]
    """what it isolates"""
    steps: int = 1
    """steps until it is over, one or two"""
    terminates: bool = True
    """whether the last step is a termination; else time runs out after two steps, and a value
    follows"""

    def __post_init__(self):
        check_fields(self)
        check_range(self, 1, 2, "steps")

    @property
    def spec(self) -> EnvSpec:
        """Sizes, the same for all these probes."""
        return EnvSpec(
            num_agents=2,
            obs_size=2,
            state_size=2,
            action_size=3,
            discrete=True,
            horizon=2,
            obs_range=(-1.0, 2.0),
        )

    def observe(self, env_state: ProbeState) -> Timestep:
        """Agents see signal and time, and so does the state. `truncated` hides the time, `memory`
        the signal later."""
        time = env_state.time.astype(jnp.float32) if self.terminates else jnp.float32(0.0)
        state = jnp.stack([env_state.signal, time])
        seen = state
        if self.name == "memory":
            seen = jnp.where(env_state.time > 0, state.at[0].set(0.0), state)
        return Timestep(obs=jnp.stack([seen, seen]), state=state, available=jnp.ones((2, 3), bool))

    def reset(self, key: Key) -> tuple[ProbeState, Timestep]:
        """The signal, 1 or -1 by chance where the probe shows one, at time 0."""
        signal = jnp.float32(0.0)
        if self.name in SEES_SIGNAL:
            signal = jnp.where(jax.random.bernoulli(key), 1.0, -1.0)
        env_state = ProbeState(signal, jnp.int32(0))
        return env_state, self.observe(env_state)

    def step(self, env_state: ProbeState, action: Int[Array, " 2"], key: Key) -> Step:
        """`(env_state, timestep, team reward, terminated, truncated)`; chance plays no part."""
        after = ProbeState(env_state.signal, env_state.time + 1)
        over = after.time >= self.steps
        flags = over & self.terminates, over & (not self.terminates)
        return after, self.observe(after), self.reward(env_state, action), *flags

    def metrics(self, env_state: ProbeState) -> dict[str, Float[Array, ""]]:
        """Nothing counts besides the return."""
        return {}

    def reward(self, env_state: ProbeState, action: Int[Array, " 2"]) -> Float[Array, ""]:
        """The team's reward for a step, by the probe's rule."""
        signal, last = env_state.signal, env_state.time == self.steps - 1
        # The share of agents who do what the signal says
        follows = (action == 1 + signal.astype(jnp.int32)).mean()
        rewards = {
            "constant": jnp.float32(1.0),
            "signal": signal,
            "delayed": jnp.where(last, 1.0, 0.0),
            "truncated": jnp.float32(1.0),
            "action": (action == jnp.array([2, 0])).mean(),
            "signal-action": follows,
            "together": (action == 1).all().astype(jnp.float32),
            "memory": jnp.where(last, follows, 0.0),
        }
        return rewards[self.name]


SEES_SIGNAL = ("signal", "signal-action", "memory")

PROBES = {
    f"discrete-{probe.name}": probe
    for probe in (
        DiscreteProbe("constant", "one step, reward 1: the value of a constant is 1"),
        DiscreteProbe(
            "signal",
            "one step, the reward is what is seen, 1 or -1: the value follows the observation",
        ),
        DiscreteProbe(
            "delayed", "two steps, reward 1 on the second: the first is worth gamma", steps=2
        ),
        DiscreteProbe(
            "truncated",
            "two steps, reward 1, cut by time: each worth 1 / (1 - gamma)",
            steps=2,
            terminates=False,
        ),
        DiscreteProbe(
            "action",
            "one step, each agent has a best action of its own: 2 and 0, worth a half each",
        ),
        DiscreteProbe(
            "signal-action",
            "one step, what is seen, -1 or 1, names the best action: 0 or 2, worth 1",
        ),
        DiscreteProbe("together", "one step, worth 1 if both choose action 1, else nothing"),
        DiscreteProbe(
            "memory",
            "two steps, the first shows which action the second rewards: 0 or 2, worth 1",
            steps=2,
        ),
    )
}
