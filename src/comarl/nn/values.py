"""Centralised critics: the value to each agent of what training knows of all, V_i(x) or Q_i(x, a).

Agents lead. Every critic here is called with `CriticInputs` and with all agents' actions. With
`own`, agent i's value is that of doing own_i where the others do as they do, for all i at once: as
a function of `own` it has gradients to each agent's own action alone, if `action` is a number.
"""

from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from comarl.nn.mlp import MLP, Linear, Torso, leaky_relu
from comarl.nn.stochastic import Stack, with_identity
from comarl.types import EnvSpec, Key, Timestep

Form = Literal["mlp", "split", "attention"]
"""a network of all at once; one that first encodes an agent and the others apart; or one that
attends to the others"""
Known = Literal["obs", "state"]
"""what x is: all observations, or the task's state"""


class CriticInputs(NamedTuple):
    """What critics and policies see at one end of transitions."""

    obs: Float[Array, "agents batch obs"]  # 0 where padded
    known: Float[Array, "batch known"]  # x


def obs_mask(spec: EnvSpec) -> Bool[np.ndarray, "agents obs"]:
    """Whether an agent really has that entry of an observation, or it is padding.

    >>> spec = EnvSpec(2, 3, 4, 1, discrete=False, horizon=5, obs_sizes=(3, 1))
    >>> obs_mask(spec).tolist()
    [[True, True, True], [True, False, False]]
    """
    sizes = spec.obs_sizes or (spec.obs_size,) * spec.num_agents
    return np.arange(spec.obs_size) < np.array(sizes)[:, None]


def known_size(spec: EnvSpec, known: Known = "obs") -> int:
    """The number of entries of x."""
    return spec.state_size if known == "state" else int(obs_mask(spec).sum())


def observe(timestep: Timestep, spec: EnvSpec, known: Known = "obs") -> CriticInputs:
    """A batch of timesteps as inputs of networks, without padding."""
    mask = obs_mask(spec)
    obs = jnp.moveaxis(jnp.where(mask, timestep.obs, 0.0), 1, 0)
    if known == "state":
        return CriticInputs(obs, timestep.state)
    flat = timestep.obs.reshape(timestep.obs.shape[0], -1)
    return CriticInputs(obs, flat[:, np.flatnonzero(mask)])


def actions_by_agent(
    action: Float[Array, "batch agents action"], spec: EnvSpec
) -> Float[Array, "agents batch action"]:
    """Actions of the replay with agents first, 0 where padded."""
    return jnp.moveaxis(jnp.where(spec.action_mask > 0, action, 0.0), 1, 0)


def with_actions(
    known: Float[Array, "batch known"], action: Float[Array, "agents batch action"], spec: EnvSpec
) -> Float[Array, "batch inputs"]:
    """(x, a), without the padding of a.

    >>> spec = EnvSpec(2, 1, 1, 2, discrete=False, horizon=5, action_sizes=(2, 1))
    >>> action = jnp.array([[[1.0, 2.0]], [[3.0, 0.0]]])
    >>> with_actions(jnp.array([[9.0]]), action, spec).tolist()
    [[9.0, 1.0, 2.0, 3.0]]
    """
    flat = jnp.moveaxis(action, 0, 1).reshape(action.shape[1], -1)
    return jnp.concatenate([known, flat[:, np.flatnonzero(spec.action_mask)]], axis=-1)


def deviating(
    own: Float[Array, "agents batch action"], action: Float[Array, "agents batch action"]
) -> Float[Array, "agents agents batch action"]:
    """For each agent the joint action in which it alone deviates from `action`, to `own`.

    >>> action = jnp.array([[[1.0]], [[2.0]]])
    >>> deviating(-action, action)[..., 0, 0].tolist()
    [[-1.0, 2.0], [1.0, -2.0]]
    """
    return jnp.where(np.eye(action.shape[0], dtype=bool)[..., None, None], own, action)


class Values(eqx.Module):
    """A network of all at once for each agent."""

    networks: Stack
    spec: EnvSpec = eqx.field(static=True)
    share: bool = eqx.field(static=True)

    def __init__(
        self, spec: EnvSpec, inputs: int, hidden: tuple[int, ...], *, share: bool, key: Key
    ):
        """`share` makes it one network, among whose inputs is the number of the agent."""
        agents = spec.num_agents
        stack, inputs = (1, inputs + agents) if share else (agents, inputs)
        self.networks = Stack(stack, (inputs, *hidden, 1), key=key)
        self.spec, self.share = spec, share

    def __call__(
        self, inputs: CriticInputs, action: Array | None = None, own: Array | None = None
    ) -> Float[Array, "agents batch"]:
        if action is None:
            x = inputs.known
        elif own is None:  # the same input for all
            x = with_actions(inputs.known, action, self.spec)
        else:
            join = lambda joint: with_actions(inputs.known, joint, self.spec)
            x = jax.vmap(join)(deviating(own, action))
        if self.share:
            x = with_identity(x, np.eye(self.spec.num_agents))
        return self.networks(x)[..., 0]


def agent_inputs(inputs: CriticInputs, action: Array | None) -> Float[Array, "agents batch inputs"]:
    """What each agent sees and does."""
    return inputs.obs if action is None else jnp.concatenate([inputs.obs, action], axis=-1)


class SplitValues(eqx.Module):
    """A critic whose first layer is one for the agent and one for the others, as in Intention
    Sharing (Kim et al., ICLR 2021)."""

    own: Stack
    others: Stack
    networks: Stack
    share: bool = eqx.field(static=True)

    def __init__(
        self, spec: EnvSpec, inputs: int, hidden: tuple[int, ...], *, share: bool, key: Key
    ):
        """`inputs` are those of one agent. `share` makes it one network, among whose inputs is the
        number of the agent."""
        own_key, others_key, key = jax.random.split(key, 3)
        agents = spec.num_agents
        stack, identity = (1, agents) if share else (agents, 0)
        self.own = Stack(stack, (inputs + identity, hidden[0]), key=own_key)
        self.others = Stack(stack, ((agents - 1) * inputs, hidden[0]), key=others_key)
        self.networks = Stack(stack, (2 * hidden[0], *hidden[1:], 1), key=key)
        self.share = share

    def __call__(
        self, inputs: CriticInputs, action: Array | None = None, own: Array | None = None
    ) -> Float[Array, "agents batch"]:
        agents, batch, _ = inputs.obs.shape
        played = agent_inputs(inputs, action)
        mine = played if own is None else agent_inputs(inputs, own)
        if self.share:
            mine = with_identity(mine, np.eye(agents))
        partners = np.array([[j for j in range(agents) if j != i] for i in range(agents)])
        others = jnp.moveaxis(played[partners], 1, 2).reshape(agents, batch, -1)
        first = jnp.concatenate([self.own(mine), self.others(others)], axis=-1)
        return self.networks(jax.nn.relu(first))[..., 0]


class AttentionValues(eqx.Module):
    """Each agent attends to the others: the critic of MAAC (Iqbal & Sha, ICML 2019), for continuous
    actions.

        e_j = f(o_j, a_j),  w_hij = softmax over j != i of (Q_h g(o_i)) . (K_h e_j) / sqrt(width)
        Q_i = head(e_i, sum_j w_1ij v_1(e_j), sum_j w_2ij v_2(e_j) ..)

    One set of parameters serves all agents, whom their observations tell apart, so that its size
    does not grow with their number, and the order of the others does not matter.
    """

    encoder: Torso  # f
    obs_encoder: Torso  # g
    queries: Float[Array, "features features"]
    keys: Float[Array, "features features"]
    values: Torso  # v of all heads, side by side
    head: MLP
    heads: int = eqx.field(static=True)

    def __init__(
        self, spec: EnvSpec, inputs: int, hidden: tuple[int, ...], heads: int, *, key: Key
    ):
        """`inputs` are those of one agent; `heads` share the units of the first hidden layer."""
        keys, width = jax.random.split(key, 6), hidden[0]

        def torso(inputs: int, key: Key) -> Torso:
            return Torso((inputs, width), activation=leaky_relu, key=key)

        self.encoder = torso(inputs, keys[0])
        self.obs_encoder = torso(spec.obs_size, keys[1])
        self.values = torso(width, keys[2])
        self.queries = Linear(width, width, key=keys[3]).weight
        self.keys = Linear(width, width, key=keys[4]).weight
        self.head = MLP((2 * width, *hidden[1:], 1), activation=leaky_relu, key=keys[5])
        self.heads = heads

    def __call__(
        self, inputs: CriticInputs, action: Array | None = None, own: Array | None = None
    ) -> Float[Array, "agents batch"]:
        played = self.encoder(agent_inputs(inputs, action))
        mine = played if own is None else self.encoder(agent_inputs(inputs, own))
        query = self.by_head(self.obs_encoder(inputs.obs) @ self.queries)
        key = self.by_head(played @ self.keys)
        value = self.by_head(self.values(played))

        logits = jnp.einsum("ibhw,jbhw->bhij", query, key) / query.shape[-1] ** 0.5
        itself = np.eye(inputs.obs.shape[0], dtype=bool)
        weights = jax.nn.softmax(jnp.where(itself, -jnp.inf, logits))
        attended = jnp.einsum("bhij,jbhw->ibhw", weights, value).reshape(mine.shape)
        return self.head(jnp.concatenate([mine, attended], axis=-1))[..., 0]

    def by_head(
        self, x: Float[Array, "agents batch features"]
    ) -> Float[Array, "agents batch heads width"]:
        """Features split among the heads."""
        return x.reshape(*x.shape[:-1], self.heads, -1)


AgentValues = Values | SplitValues | AttentionValues


def make_values(
    form: Form,
    spec: EnvSpec,
    hidden: tuple[int, ...],
    *,
    known: Known = "obs",
    acts: bool,
    heads: int = 1,
    share: bool = False,
    key: Key,
) -> AgentValues:
    """Makes Q of x and all actions if `acts`, else V of x.

    With one agent there are no others to encode apart or to attend to, and every form is "mlp".
    """
    if form == "mlp" or spec.num_agents == 1:
        size = known_size(spec, known) + acts * int(spec.action_mask.sum())
        return Values(spec, size, hidden, share=share, key=key)
    size = spec.obs_size + acts * spec.action_size
    if form == "split":
        return SplitValues(spec, size, hidden, share=share, key=key)
    return AttentionValues(spec, size, hidden, heads, key=key)


def each_critic(
    critics: AgentValues, inputs: CriticInputs, action: Float[Array, "agents batch action"]
) -> Float[Array, "critics agents batch"]:
    """Q of every one of several critics, whose leaves lead with `critics`."""
    return jax.vmap(lambda critic: critic(inputs, action))(critics)


def critic_at(critics: AgentValues, index: int) -> AgentValues:
    """One of several critics, whose leaves lead with `critics`."""
    return jax.tree.map(lambda leaf: leaf[index], critics)
