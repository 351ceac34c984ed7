"""Networks with a memory, for teams whose agents act on their histories.

A network has two forms that agree: `step` plays, one step at a time, and `unroll` learns, all steps
of a row at once. A row is an episode, or several behind one another (`comarl.replay.packing`).
"""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from comarl.nn.mlp import Linear
from comarl.types import EnvSpec, Episode, Key


class Gates(NamedTuple):
    """The inputs of a GRU's reset gate r, update gate z and candidate n, as arrays of their own."""

    r: Float[Array, "*batch hidden"]
    z: Float[Array, "*batch hidden"]
    n: Float[Array, "*batch hidden"]


class GatedLinear(eqx.Module):
    """Three linear layers side by side, drawn from U(-1/sqrt(hidden), 1/sqrt(hidden)) as PyTorch
    draws its GRU's."""

    weight: Float[Array, "*stack 3 inputs hidden"]
    bias: Float[Array, "*stack 3 hidden"]

    def __init__(self, inputs: int, hidden: int, *, key: Key):
        both = jax.random.uniform(key, (3, inputs + 1, hidden), minval=-1.0, maxval=1.0)
        both = both / hidden**0.5
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
    """The next memory h' `[... hidden]`; and r, z, n and U_n h, which its gradient needs."""
    mine = from_memory(memory)
    r = jax.nn.sigmoid(inputs.r + mine.r)
    z = jax.nn.sigmoid(inputs.z + mine.z)
    n = jnp.tanh(inputs.n + r * mine.n)
    return n + z * (memory - n), Gates(r, z, n), mine.n


@jax.custom_vjp
def gru_unroll(
    from_memory: GatedLinear, inputs: Gates, keep: Float[Array, " time"]
) -> Float[Array, "time agents hidden"]:
    """The memories after each step of a row, from an empty one.

    `keep` is 0 at the steps before which memory is emptied, else 1.

    Its gradient is written out, because that of a scan would add up the weights' gradient step by
    step: here it is one matrix product over all steps, which halves the time of a whole update.
    """
    return gru_forward(from_memory, inputs, keep)[0]


def gru_forward(from_memory: GatedLinear, inputs: Gates, keep: Array) -> tuple[Array, tuple]:
    """`gru_unroll`, and what its gradient needs."""

    def step(memory: Array, item: tuple[Gates, Array]) -> tuple[Array, tuple]:
        x, kept = item
        after, gates, mine = gru_step(from_memory, kept * memory, x)
        return after, (after, gates, mine)

    _, (memories, gates, mine) = jax.lax.scan(step, jnp.zeros_like(inputs.r[0]), (inputs, keep))
    return memories, (from_memory, memories, gates, mine, keep)


def gru_backward(residual: tuple, cotangent: Array) -> tuple[GatedLinear, Gates, Array]:
    """Backpropagation through time: the gradients of `gru_unroll`'s three arguments.

    `dh`, the loss's gradient by each memory, is found step by step, from the last to the first; all
    else follows from it at once.
    """
    from_memory, memories, (r, z, n), mine, keep = residual
    before = keep[:, None, None] * jnp.concatenate([jnp.zeros_like(memories[:1]), memories[:-1]])
    # Derivatives of h' by what is inside the tanh of n, by what is inside the sigmoids of z and r,
    # and by U_n h.
    by_n = (1.0 - z) * (1.0 - n * n)
    by_z = (before - n) * z * (1.0 - z)
    by_r = by_n * mine * r * (1.0 - r)
    by_mine = by_n * r
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
    """Linear, ReLU, GRU: each agent's history as one vector. All agents share the parameters.

    >>> encoder = RecurrentEncoder(inputs=7, hidden=16, key=jax.random.key(0))
    >>> encoder(jnp.zeros((2, 16)), jnp.ones((2, 7))).shape  # one step of two agents
    (2, 16)
    >>> encoder.unroll(jnp.ones((10, 2, 7))).shape  # ten steps
    (10, 2, 16)
    """

    layer: Linear
    gru: Gru

    def __init__(self, inputs: int, hidden: int, *, key: Key):
        layer_key, gru_key = jax.random.split(key)
        self.layer = Linear(inputs, hidden, key=layer_key)
        self.gru = Gru(hidden, hidden, key=gru_key)

    @property
    def hidden(self) -> int:
        """Length of an agent's memory."""
        return self.gru.from_memory.weight.shape[-1]

    def project(self, x: Float[Array, "*batch inputs"]) -> Gates:
        """The part of the GRU's inputs that does not depend on memory."""
        return self.gru.from_input(jax.nn.relu(self.layer(x)))

    def __call__(
        self, memory: Float[Array, "*batch hidden"], x: Float[Array, "*batch inputs"]
    ) -> Float[Array, "*batch hidden"]:
        """One step; the result is both output and next memory."""
        return gru_step(self.gru.from_memory, memory, self.project(x))[0]

    def unroll(
        self, x: Float[Array, "time agents inputs"], starts: Bool[Array, " time"] | None = None
    ) -> Float[Array, "time agents hidden"]:
        """The memories after each step of a row. Only the recurrence waits for the step before.

        Memory is empty at the first step and, in a row of several episodes, wherever `starts` is
        true.
        """
        keep = jnp.ones(x.shape[0]) if starts is None else jnp.where(starts, 0.0, 1.0)
        return gru_unroll(self.gru.from_memory, self.project(x), keep)


def input_size(spec: EnvSpec) -> int:
    """The width of `agent_inputs`.

    >>> input_size(EnvSpec(2, obs_size=3, state_size=4, action_size=5, discrete=True, horizon=10))
    10
    """
    return spec.obs_size + spec.action_size + spec.num_agents


def agent_inputs(
    spec: EnvSpec, obs: Float[Array, "*batch agents obs"], last_action: Int[Array, "*batch agents"]
) -> Float[Array, "*batch agents inputs"]:
    """The inputs of every agent's network: its observation, its last action (-1 for none) and which
    agent it is, the last two one-hot."""
    identity = jnp.broadcast_to(jnp.eye(spec.num_agents), (*obs.shape[:-1], spec.num_agents))
    return jnp.concatenate([obs, jax.nn.one_hot(last_action, spec.action_size), identity], axis=-1)


def last_actions(
    action: Int[Array, "time agents"], starts: Bool[Array, " steps"] | None = None
) -> Int[Array, "steps agents"]:
    """The action before each step of an episode and before the timestep after its end; -1 before
    the first.

    In a row of several episodes `starts` says where each begins.

    >>> last_actions(jnp.array([[3], [1]])).tolist()
    [[-1], [3], [1]]
    """
    before = jnp.concatenate([jnp.full_like(action[:1], -1), action])
    return before if starts is None else jnp.where(starts[:, None], -1, before)


class Memory(eqx.Module):
    """What a recurrent team carries from step to step."""

    hidden: Float[Array, "*batch agents hidden"]
    last_action: Int[Array, "*batch agents"]

    @classmethod
    def empty(cls, num_agents: int, hidden: int) -> "Memory":
        """What a team carries into an episode."""
        return cls(jnp.zeros((num_agents, hidden)), jnp.full(num_agents, -1, jnp.int32))


class RecurrentNet(eqx.Module):
    """A number for each action of each agent, from its history: utilities, or a policy's logits.

    This is the agent of QMIX (Rashid et al., ICML 2018): `RecurrentEncoder` and a linear head.
    """

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
        """One step: the next memory's `hidden`, and a number for each action."""
        hidden = self.encoder(memory.hidden, agent_inputs(self.spec, obs, memory.last_action))
        return hidden, self.head(hidden)

    def unroll(self, episode: Episode) -> Float[Array, "steps agents actions"]:
        """The numbers at every step of an episode, and at the timestep after its end."""
        return self.head(unroll_episode(self.encoder, self.spec, episode))


def unroll_episode(
    encoder: RecurrentEncoder, spec: EnvSpec, episode: Episode
) -> Float[Array, "steps agents hidden"]:
    """Every agent's history as a vector, at each step of a row and after its end."""
    return encoder.unroll(episode_inputs(spec, episode), episode.starts)


def episode_inputs(spec: EnvSpec, episode: Episode) -> Float[Array, "steps agents inputs"]:
    """`agent_inputs` at each step of a row and after its end."""
    return agent_inputs(spec, episode.timesteps.obs, last_actions(episode.action, episode.starts))
