"""Duplex dueling: the team's value as the agents' values plus their weighted advantages.

The parts of QPLEX's mixer (Wang et al., ICLR 2021, Sec. 3.2); FOP (Zhang et al., ICML 2021) uses
the first two.
"""

from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from comarl.nn.mlp import MLP, Linear, Torso
from comarl.types import EnvSpec, Key, Timestep


class Importance(eqx.Module):
    """lambda_i(s, u) > 0: the weight of each agent's advantage in the team's (QPLEX, Sec. 3.2).

        lambda_i(s, u) = sum_k |key_k(s)| sigmoid(agent_ki(s)) sigmoid(action_ki(s, u))

    k counts the kernels.

    >>> from comarl.types import EnvSpec
    >>> spec = EnvSpec(3, 2, 7, 4, discrete=True, horizon=5)
    >>> importance = Importance(spec, kernels=4, hidden=(), key=jax.random.key(0))
    >>> importance(jnp.ones((8, 7)), jnp.zeros((8, 3), jnp.int32)).shape
    (8, 3)
    """

    keys: MLP  # leaves lead with `kernels`, as those of the next two
    agents: MLP
    actions: MLP
    num_actions: int = eqx.field(static=True)

    def __init__(self, spec: EnvSpec, kernels: int, hidden: Sequence[int], *, key: Key):
        """`hidden` gives the widths of each network's hidden layers; with none it is linear."""
        keys = jax.random.split(key, 3)

        def make(inputs: int, outputs: int, key: Key) -> MLP:
            one = lambda k: MLP((inputs, *hidden, outputs), activation=jax.nn.relu, key=k)
            return jax.vmap(one)(jax.random.split(key, kernels))

        self.keys = make(spec.state_size, 1, keys[0])
        self.agents = make(spec.state_size, spec.num_agents, keys[1])
        state_and_action = spec.state_size + spec.num_agents * spec.action_size
        self.actions = make(state_and_action, spec.num_agents, keys[2])
        self.num_actions = spec.action_size

    def __call__(
        self, state: Float[Array, "*batch state"], action: Int[Array, "*batch agents"]
    ) -> Float[Array, "*batch agents"]:
        """lambda_i of a joint action."""

        def each(nets: MLP, x: Array) -> Array:
            return jax.vmap(lambda net: net(x))(nets)

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
    """sum_i v_i + lambda_i (q_i - v_i): the team's value (QPLEX, Sec. 3.2).

    It is written as sum_i q_i + (lambda_i - 1) (q_i - v_i), and no gradient goes through the
    advantages q_i - v_i of the second term: q_i learns from the plain sum only, lambda_i from the
    rest.

    >>> q, v = jnp.array([1.0, 4.0]), jnp.array([2.0, 5.0])
    >>> float(dueling(q, v, importance=jnp.array([3.0, 0.5])))
    3.5
    """
    advantage = jax.lax.stop_gradient(q - v)
    return (q + (importance - 1.0) * advantage).sum(axis=-1)


Transformed = tuple[
    Float[Array, "*batch agents"], Float[Array, "*batch agents"], Float[Array, "*batch"]
]
"""w_i > 0, b_i, and the squared logits of attention"""


class Positive(eqx.Module):
    """QPLEX's transformation (Sec. 3.2): w_i(s) = |f_i(s)| and b_i(s), by two networks."""

    weight: MLP
    bias: MLP

    def __init__(self, spec: EnvSpec, hypernet: int, *, key: Key):
        weight_key, bias_key = jax.random.split(key)
        sizes = (spec.state_size, hypernet, spec.num_agents)
        self.weight = MLP(sizes, activation=jax.nn.relu, key=weight_key)
        self.bias = MLP(sizes, activation=jax.nn.relu, key=bias_key)

    def __call__(
        self, utilities: Float[Array, "*batch agents"], timesteps: Timestep
    ) -> Transformed:
        """w_i and b_i, which do not depend on the utilities; the logits are 0."""
        state = timesteps.state
        return jnp.abs(self.weight(state)) + 1e-10, self.bias(state), jnp.zeros(state.shape[:-1])


class Attention(eqx.Module):
    """w_i(s) from attention between the state and each agent (Qatten, Yang et al., 2020).

        l_hi = query_h(s) . K_h x_i
        w_i  = sum_h c_h(s) softmax_i(l_hi / sqrt(width))
        b_i  = V(s) / N

    x_i is what agent i sees; or, with `unit_size`, the i-th block of so many entries of the state.
    With `nonlinear` the agent's utility follows it. c_h is 1; or, with `weighted_heads`, it is made
    from the state and is not negative.
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
        needed = unit_size * spec.num_agents
        if needed > spec.state_size:
            raise ValueError(
                f"unit_size={unit_size}: {spec.num_agents} agents need {needed} entries of the "
                f"state, which has {spec.state_size}"
            )
        relu, state_size = jax.nn.relu, spec.state_size
        torso_key, query_key, key_key, head_key, value_key = jax.random.split(key, 5)

        def stack(make: Callable, key: Key) -> Any:
            return jax.vmap(make)(jax.random.split(key, heads))

        torso = lambda k: Torso((state_size, hypernet), activation=relu, key=k)
        self.query_torsos = stack(torso, torso_key)
        self.queries = stack(lambda k: Linear(hypernet, width, key=k).weight, query_key)
        unit = (unit_size or spec.obs_size) + nonlinear
        self.keys = stack(lambda k: Linear(unit, width, key=k).weight, key_key)
        self.head_weights = None
        if weighted_heads:
            self.head_weights = MLP((state_size, hypernet, heads), activation=relu, key=head_key)
        self.value = MLP((state_size, width, 1), activation=relu, key=value_key)
        self.unit_size = unit_size
        self.nonlinear = nonlinear

    def __call__(
        self, utilities: Float[Array, "*batch agents"], timesteps: Timestep
    ) -> Transformed:
        """w_i, b_i, and the squared logits: a sum over heads of the mean over agents."""
        state, num_agents = timesteps.state, utilities.shape[-1]
        units = self.units(utilities, timesteps)

        def head(torso: Torso, query: Array, key: Array) -> Array:
            of_state = torso(state) @ query
            return ((units @ key) * of_state[..., None, :]).sum(-1)

        # [*batch heads agents]
        logits = jax.vmap(head, out_axes=-2)(self.query_torsos, self.queries, self.keys)
        attention = jax.nn.softmax(logits / self.keys.shape[-1] ** 0.5)
        if self.head_weights is not None:
            attention = attention * jnp.abs(self.head_weights(state))[..., None]
        bias = jnp.broadcast_to(self.value(state) / num_agents, utilities.shape)
        return attention.sum(-2) + 1e-10, bias, jnp.square(logits).mean(-1).sum(-1)

    def units(
        self, utilities: Float[Array, "*batch agents"], timesteps: Timestep
    ) -> Float[Array, "*batch agents unit"]:
        """x_i, by which attention knows an agent."""
        units = timesteps.obs
        if self.unit_size:
            blocks = timesteps.state[..., : utilities.shape[-1] * self.unit_size]
            units = blocks.reshape(*utilities.shape, self.unit_size)
        if self.nonlinear:
            units = jnp.concatenate([units, utilities[..., None]], axis=-1)
        return units
