"""Networks that remember: what agents of recurrent teams share."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from comarl.nn.mlp import Linear
from comarl.types import EnvSpec, Episode, Key


class Gates(NamedTuple):
    """What the reset gate, the update gate and the candidate of a GRU each get, as arrays of their
    own."""

    r: Float[Array, "*batch hidden"]
    z: Float[Array, "*batch hidden"]
    n: Float[Array, "*batch hidden"]


class GatedLinear(eqx.Module):
    """Three linear layers side by side, drawn from U(-1/sqrt(hidden), 1/sqrt(hidden)) as PyTorch
    draws its GRU's."""

    weight: Float[Array, "*stack 3 inputs hidden"]
    bias: Float[Array, "*stack 3 hidden"]

    def __init__(self, inputs: int, hidden: int, *, key: Key):
        both = (
            jax.random.uniform(key, (3, inputs + 1, hidden), minval=-1.0, maxval=1.0) / hidden**0.5
        )
        self.weight, self.bias = both[:, :-1], both[:, -1]

    def __call__(self, x: Float[Array, "*batch inputs"]) -> Gates:
        return Gates(*(x @ self.weight[i] + self.bias[i] for i in range(3)))


class Gru(eqx.Module):
    """A gated recurrent unit in PyTorch's form:

    r  = sigmoid(W_r x + U_r h)
    z  = sigmoid(W_z x + U_z h)
    n  = tanh(W_n x + r * U_n h)
    h' = (1 - z) n + z h
    """

    from_input: GatedLinear  # W
    from_memory: GatedLinear  # U

    def __init__(self, inputs: int, hidden: int, *, key: Key):
        input_key, memory_key = jax.random.split(key)
        self.from_input = GatedLinear(inputs, hidden, key=input_key)
        self.from_memory = GatedLinear(hidden, hidden, key=memory_key)


def gru_step(from_memory: GatedLinear, memory: Array, inputs: Gates) -> tuple[Array, Gates, Array]:
    """The next memory; and r, z, n and U_n h, which its gradient needs."""
    mine = from_memory(memory)
    r, z = jax.nn.sigmoid(inputs.r + mine.r), jax.nn.sigmoid(inputs.z + mine.z)
    n = jnp.tanh(inputs.n + r * mine.n)
    return n + z * (memory - n), Gates(r, z, n), mine.n


@jax.custom_vjp
def gru_unroll(
    from_memory: GatedLinear, inputs: Gates, keep: Float[Array, " time"]
) -> Float[Array, "time agents hidden"]:
    """The memories of a row of steps, from an empty one; `keep` is 0 at the steps that begin anew,
    else 1.

    Its gradient is written out, because that of a scan would add up the weights' gradient step by
    step: here it is one matrix product over all steps, which halves the time of a whole update.
    """
    return gru_forward(from_memory, inputs, keep)[0]


def gru_forward(from_memory: GatedLinear, inputs: Gates, keep: Array) -> tuple[Array, tuple]:
    def step(memory: Array, item: tuple[Gates, Array]) -> tuple[Array, tuple]:
        x, kept = item
        after, gates, mine = gru_step(from_memory, kept * memory, x)
        return after, (after, gates, mine)

    _, (memories, gates, mine) = jax.lax.scan(step, jnp.zeros_like(inputs.r[0]), (inputs, keep))
    return memories, (from_memory, memories, gates, mine, keep)


def gru_backward(residual: tuple, cotangent: Array) -> tuple[GatedLinear, Gates, Array]:
    """Through time: `dh` is the loss's gradient by each memory, from which all else follows at
    once."""
    from_memory, memories, (r, z, n), mine, keep = residual
    before = keep[:, None, None] * jnp.concatenate([jnp.zeros_like(memories[:1]), memories[:-1]])
    by_n = (1.0 - z) * (1.0 - n * n)  # of h' by what is inside the tanh, and so on
    by_z, by_r, by_mine = (before - n) * z * (1.0 - z), by_n * mine * r * (1.0 - r), by_n * r
    u_r, u_z, u_n = (from_memory.weight[i].T for i in range(3))

    def step(after: Array, x: tuple) -> tuple[Array, Array]:
        cotangent, by_z, by_r, by_mine, z, kept = x
        dh = after + cotangent
        return kept * (dh * z + (dh * by_r) @ u_r + (dh * by_z) @ u_z + (dh * by_mine) @ u_n), dh

    items = (cotangent, by_z, by_r, by_mine, z, keep)
    _, dh = jax.lax.scan(step, jnp.zeros_like(cotangent[0]), items, reverse=True)
    of_memory = (dh * by_r, dh * by_z, dh * by_mine)
    flat = lambda x: x.reshape(-1, x.shape[-1])
    weight = jnp.stack([flat(before).T @ flat(d) for d in of_memory])
    bias = jnp.stack([flat(d).sum(0) for d in of_memory])
    layer = eqx.tree_at(lambda m: (m.weight, m.bias), from_memory, (weight, bias))
    return layer, Gates(dh * by_r, dh * by_z, dh * by_n), jnp.zeros_like(keep)


gru_unroll.defvjp(gru_forward, gru_backward)


class RecurrentEncoder(eqx.Module):
    """Linear, ReLU, GRU: each agent's history as one vector. All agents share the parameters."""

    layer: Linear
    gru: Gru

    def __init__(self, inputs: int, hidden: int, *, key: Key):
        layer_key, gru_key = jax.random.split(key)
        self.layer = Linear(inputs, hidden, key=layer_key)
        self.gru = Gru(hidden, hidden, key=gru_key)

    @property
    def hidden(self) -> int:
        return self.gru.from_memory.weight.shape[-1]

    def project(self, x: Float[Array, "*batch inputs"]) -> Gates:
        """What does not depend on memory."""
        return self.gru.from_input(jax.nn.relu(self.layer(x)))

    def __call__(
        self, memory: Float[Array, "*batch hidden"], x: Float[Array, "*batch inputs"]
    ) -> Float[Array, "*batch hidden"]:
        """One step; the result is both output and next memory."""
        return gru_step(self.gru.from_memory, memory, self.project(x))[0]

    def unroll(
        self, x: Float[Array, "time agents inputs"], starts: Bool[Array, " time"] | None = None
    ) -> Float[Array, "time agents hidden"]:
        """A whole row of steps. Only the recurrence itself waits for the step before.

        Memory is empty at the first step and, in a row of several episodes, wherever `starts` is
        true.
        """
        keep = jnp.ones(x.shape[0]) if starts is None else jnp.where(starts, 0.0, 1.0)
        return gru_unroll(self.gru.from_memory, self.project(x), keep)


def input_size(spec: EnvSpec) -> int:
    """The width of `agent_inputs`."""
    return spec.obs_size + spec.action_size + spec.num_agents


def agent_inputs(
    spec: EnvSpec, obs: Float[Array, "*batch agents obs"], last_action: Int[Array, "*batch agents"]
) -> Float[Array, "*batch agents inputs"]:
    """What every agent's network sees: its observation, its last action (-1 for none) and its
    number, one-hot."""
    identity = jnp.broadcast_to(jnp.eye(spec.num_agents), (*obs.shape[:-1], spec.num_agents))
    return jnp.concatenate([obs, jax.nn.one_hot(last_action, spec.action_size), identity], axis=-1)


def last_actions(
    action: Int[Array, "time agents"], starts: Bool[Array, " steps"] | None = None
) -> Int[Array, "steps agents"]:
    """For each step of an episode and the one after its end: the action before it; -1 before the
    first.

    In a row of several episodes `starts` says where each begins.
    """
    before = jnp.concatenate([jnp.full_like(action[:1], -1), action])
    return before if starts is None else jnp.where(starts[:, None], -1, before)


class Memory(eqx.Module):
    """What a recurrent team carries from step to step."""

    hidden: Float[Array, "*batch agents hidden"]
    last_action: Int[Array, "*batch agents"]

    @classmethod
    def empty(cls, num_agents: int, hidden: int) -> "Memory":
        return cls(jnp.zeros((num_agents, hidden)), jnp.full(num_agents, -1, jnp.int32))


class RecurrentNet(eqx.Module):
    """What each agent makes of its history, for each of its actions: utilities, or the logits of a
    policy."""

    encoder: RecurrentEncoder
    head: Linear
    spec: EnvSpec = eqx.field(static=True)

    def __init__(self, spec: EnvSpec, hidden: int, *, key: Key):
        encoder_key, head_key = jax.random.split(key)
        self.encoder = RecurrentEncoder(input_size(spec), hidden, key=encoder_key)
        self.head = Linear(hidden, spec.action_size, key=head_key)
        self.spec = spec

    def step(
        self, memory: Memory, obs: Float[Array, "agents obs"]
    ) -> tuple[Float[Array, "agents hidden"], Float[Array, "agents actions"]]:
        """One step: what to remember, and a number for each action."""
        hidden = self.encoder(memory.hidden, agent_inputs(self.spec, obs, memory.last_action))
        return hidden, self.head(hidden)

    def unroll(self, episode: Episode) -> Float[Array, "steps agents actions"]:
        """A whole episode, the step after its end included."""
        return self.head(unroll_episode(self.encoder, self.spec, episode))


def unroll_episode(
    encoder: RecurrentEncoder, spec: EnvSpec, episode: Episode
) -> Float[Array, "steps agents hidden"]:
    """Every agent's history at each step of an episode, and after its end; so for each of several
    in one row."""
    return encoder.unroll(episode_inputs(spec, episode), episode.starts)


def episode_inputs(spec: EnvSpec, episode: Episode) -> Float[Array, "steps agents inputs"]:
    """What every agent's network sees at each of them."""
    return agent_inputs(spec, episode.timesteps.obs, last_actions(episode.action, episode.starts))
