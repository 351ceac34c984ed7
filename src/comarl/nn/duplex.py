"""Duplex dueling: the team's value as the agents' values, corrected by weighted advantages.

The parts of QPLEX's mixer (Wang et al., ICLR 2021, Sec. 3.2); FOP (Zhang et al., ICML 2021) uses
the first two.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from comarl.nn.mlp import MLP, Linear, Torso
from comarl.types import EnvSpec, Key, Timestep


class Importance(eqx.Module):
    """How much each agent's advantage counts in the team's, in this state and for this joint
    action: always above 0.

    lambda_i(s, u) = sum_k |key_k(s)| sigmoid(agent_ki(s)) sigmoid(action_ki(s, u)),  k = 1 .. kernels
    """

    keys: MLP  # leaves lead with `kernels`, as those of the next two
    agents: MLP
    actions: MLP
    num_actions: int = eqx.field(static=True)

    def __init__(self, spec: EnvSpec, kernels: int, hidden: Sequence[int], *, key: Key):
        """`hidden` are the layers of each of the networks; without any they are linear."""
        keys = jax.random.split(key, 3)

        def make(inputs: int, outputs: int, key: Key) -> MLP:
            one = lambda k: MLP((inputs, *hidden, outputs), activation=jax.nn.relu, key=k)
            return jax.vmap(one)(jax.random.split(key, kernels))

        self.keys = make(spec.state_size, 1, keys[0])
        self.agents = make(spec.state_size, spec.num_agents, keys[1])
        self.actions = make(
            spec.state_size + spec.num_agents * spec.action_size, spec.num_agents, keys[2]
        )
        self.num_actions = spec.action_size

    def __call__(
        self, state: Float[Array, "*batch state"], action: Int[Array, "*batch agents"]
    ) -> Float[Array, "*batch agents"]:
        each = lambda nets, x: jax.vmap(lambda net: net(x))(nets)
        taken = jax.nn.one_hot(action, self.num_actions).reshape(*state.shape[:-1], -1)
        keys = jnp.abs(each(self.keys, state)) + 1e-10
        agents = jax.nn.sigmoid(each(self.agents, state))
        actions = jax.nn.sigmoid(each(self.actions, jnp.concatenate([state, taken], axis=-1)))
        return (keys * agents * actions).sum(axis=0)


def dueling(
    q: Float[Array, "*batch agents"],
    v: Float[Array, "*batch agents"],
    importance: Float[Array, "*batch agents"],
) -> Float[Array, "*batch"]:
    """sum_i v_i + lambda_i (q_i - v_i), written as sum_i q_i + (lambda_i - 1) (q_i - v_i).

    In the second term the advantages are numbers: q_i learns from the plain sum only, and lambda_i
    from the rest.
    """
    advantage = jax.lax.stop_gradient(q - v)
    return (q + (importance - 1.0) * advantage).sum(axis=-1)


# w_i > 0 and b_i, and the squared logits of attention
Transformed = tuple[
    Float[Array, "*batch agents"], Float[Array, "*batch agents"], Float[Array, "*batch"]
]


class Positive(eqx.Module):
    """w_i(s) = |f_i(s)| and b_i(s), from two networks of the state."""

    weight: MLP
    bias: MLP

    def __init__(self, spec: EnvSpec, hypernet: int, *, key: Key):
        keys, sizes = jax.random.split(key), (spec.state_size, hypernet, spec.num_agents)
        self.weight, self.bias = (MLP(sizes, activation=jax.nn.relu, key=k) for k in keys)

    def __call__(
        self, utilities: Float[Array, "*batch agents"], timesteps: Timestep
    ) -> Transformed:
        state = timesteps.state
        return jnp.abs(self.weight(state)) + 1e-10, self.bias(state), jnp.zeros(state.shape[:-1])


class Attention(eqx.Module):
    """w_i(s) from heads in each of which the state shares out its attention among agents (Qatten,
    Yang et al., 2020).

        l_hi = query_h(s) . K_h x_i,  w_i = sum_h c_h(s) softmax_i(l_hi / sqrt(width)),  b_i = V(s) / N

    x_i is what agent i sees, or `unit_size` entries of the state, the agents' one after the other
    from its first. `nonlinear` adds its utility. c_h is 1, or with `weighted_heads` not negative
    and made from the state.
    """

    query_torsos: Torso  # leaves lead with `heads`
    queries: Float[Array, "heads hypernet width"]
    keys: Float[Array, "heads unit width"]
    head_weights: MLP | None
    value: MLP
    unit_size: int = eqx.field(static=True)
    nonlinear: bool = eqx.field(static=True)

    def __init__(
        self,
        spec: EnvSpec,
        heads: int,
        width: int,
        hypernet: int,
        unit_size: int,
        *,
        weighted_heads: bool,
        nonlinear: bool,
        key: Key,
    ):
        if unit_size * spec.num_agents > spec.state_size:
            needed = (
                f"{spec.num_agents} agents need {unit_size * spec.num_agents} entries of the state"
            )
            raise ValueError(f"unit_size={unit_size}: {needed}, which has {spec.state_size}")
        draws, relu, state_size = jax.random.split(key, 5), jax.nn.relu, spec.state_size
        stack = lambda make, key: jax.vmap(make)(jax.random.split(key, heads))
        unit = (unit_size or spec.obs_size) + nonlinear
        self.query_torsos = stack(
            lambda k: Torso((state_size, hypernet), activation=relu, key=k), draws[0]
        )
        self.queries = stack(lambda k: Linear(hypernet, width, key=k).weight, draws[1])
        self.keys = stack(lambda k: Linear(unit, width, key=k).weight, draws[2])
        sizes = (state_size, hypernet, heads)
        self.head_weights = MLP(sizes, activation=relu, key=draws[3]) if weighted_heads else None
        self.value = MLP((state_size, width, 1), activation=relu, key=draws[4])
        self.unit_size, self.nonlinear = unit_size, nonlinear

    def __call__(
        self, utilities: Float[Array, "*batch agents"], timesteps: Timestep
    ) -> Transformed:
        state, units, num_agents = timesteps.state, timesteps.obs, utilities.shape[-1]
        if self.unit_size:
            units = state[..., : num_agents * self.unit_size].reshape(
                *utilities.shape, self.unit_size
            )
        if self.nonlinear:
            units = jnp.concatenate([units, utilities[..., None]], axis=-1)
        head = lambda torso, query, key: ((units @ key) * (torso(state) @ query)[..., None, :]).sum(
            -1
        )
        logits = jax.vmap(head, out_axes=-2)(
            self.query_torsos, self.queries, self.keys
        )  # [*batch heads agents]
        attention = jax.nn.softmax(logits / self.keys.shape[-1] ** 0.5)
        if self.head_weights is not None:
            attention = attention * jnp.abs(self.head_weights(state))[..., None]
        bias = jnp.broadcast_to(self.value(state) / num_agents, utilities.shape)
        return attention.sum(-2) + 1e-10, bias, jnp.square(logits).mean(-1).sum(-1)
