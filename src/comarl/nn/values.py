"""What training knows of all agents, and the value of it to each: V_i(x) or Q_i(x, a). Agents lead.

Every critic here is called with what is seen and with all agents' actions. With `own`, agent i's
value is that of doing own_i where the others do as they do, for all i at once: as a function of
`own` it has gradients to each agent's own action alone, if `action` is a number.
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


class Seen(NamedTuple):
    """One end of transitions."""

    obs: Float[Array, "agents batch obs"]  # 0 where padded
    known: Float[Array, "batch known"]  # x


def obs_mask(spec: EnvSpec) -> Bool[np.ndarray, "agents obs"]:
    """Whether an agent really has that entry."""
    sizes = spec.obs_sizes or (spec.obs_size,) * spec.num_agents
    return np.arange(spec.obs_size) < np.array(sizes)[:, None]


def see(timestep: Timestep, spec: EnvSpec, known: Literal["obs", "state"] = "obs") -> Seen:
    """What networks see of it: padding never. x is all observations, or the state."""
    mask, flat = obs_mask(spec), timestep.obs.reshape(timestep.obs.shape[0], -1)
    x = timestep.state if known == "state" else flat[:, np.flatnonzero(mask)]
    return Seen(jnp.moveaxis(jnp.where(mask, timestep.obs, 0.0), 1, 0), x)


def see_actions(
    action: Float[Array, "batch agents action"], spec: EnvSpec
) -> Float[Array, "agents batch action"]:
    """Those of the replay, 0 where padded."""
    return jnp.moveaxis(jnp.where(spec.action_mask > 0, action, 0.0), 1, 0)


def with_actions(
    known: Float[Array, "batch known"], action: Float[Array, "agents batch action"], spec: EnvSpec
) -> Float[Array, "batch inputs"]:
    """(x, a), without the padding of a."""
    flat = jnp.moveaxis(action, 0, 1).reshape(action.shape[1], -1)
    return jnp.concatenate([known, flat[:, np.flatnonzero(spec.action_mask)]], axis=-1)


def deviating(
    own: Float[Array, "agents batch action"], action: Float[Array, "agents batch action"]
) -> Float[Array, "agents agents batch action"]:
    """For each agent the joint action in which it alone does as `own` says."""
    return jnp.where(np.eye(action.shape[0], dtype=bool)[..., None, None], own, action)


class Values(eqx.Module):
    """A network of all at once for each agent."""

    networks: Stack
    spec: EnvSpec = eqx.field(static=True)
    share: bool = eqx.field(static=True)

    def __init__(
        self, spec: EnvSpec, inputs: int, hidden: tuple[int, ...], *, share: bool, key: Key
    ):
        """`share` makes it one network, which sees whom it serves."""
        inputs, stack = (inputs + spec.num_agents, 1) if share else (inputs, spec.num_agents)
        self.networks = Stack(stack, (inputs, *hidden, 1), key=key)
        self.spec, self.share = spec, share

    def __call__(self, seen: Seen, action: Array | None = None, own: Array | None = None) -> Array:
        if action is None:
            x = seen.known
        elif own is None:  # the same input for all
            x = with_actions(seen.known, action, self.spec)
        else:
            x = jax.vmap(lambda joint: with_actions(seen.known, joint, self.spec))(
                deviating(own, action)
            )
        return self.networks(with_identity(x, np.eye(self.spec.num_agents)) if self.share else x)[
            ..., 0
        ]


def units(seen: Seen, action: Array | None) -> Float[Array, "agents batch unit"]:
    """What each agent sees and does."""
    return seen.obs if action is None else jnp.concatenate([seen.obs, action], axis=-1)


class SplitValues(eqx.Module):
    """An agent and the others each have a first layer of their own, as in Intention Sharing (Kim et
    al., ICLR 2021)."""

    own: Stack
    others: Stack
    networks: Stack
    share: bool = eqx.field(static=True)

    def __init__(self, spec: EnvSpec, unit: int, hidden: tuple[int, ...], *, share: bool, key: Key):
        """`share` makes it one network, which sees whom it serves."""
        keys, agents = jax.random.split(key, 3), spec.num_agents
        stack, identity = (1, agents) if share else (agents, 0)
        self.own = Stack(stack, (unit + identity, hidden[0]), key=keys[0])
        self.others = Stack(stack, ((agents - 1) * unit, hidden[0]), key=keys[1])
        self.networks = Stack(stack, (2 * hidden[0], *hidden[1:], 1), key=keys[2])
        self.share = share

    def __call__(self, seen: Seen, action: Array | None = None, own: Array | None = None) -> Array:
        every, (agents, batch, _) = units(seen, action), seen.obs.shape
        mine = every if own is None else units(seen, own)
        if self.share:
            mine = with_identity(mine, np.eye(agents))
        partners = np.array([[j for j in range(agents) if j != i] for i in range(agents)])
        theirs = jnp.moveaxis(every[partners], 1, 2).reshape(agents, batch, -1)
        first = jnp.concatenate([self.own(mine), self.others(theirs)], axis=-1)
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
    looker: Torso  # g
    queries: Float[Array, "features features"]
    keys: Float[Array, "features features"]
    values: Torso  # v of all heads, side by side
    head: MLP
    heads: int = eqx.field(static=True)

    def __init__(self, spec: EnvSpec, unit: int, hidden: tuple[int, ...], heads: int, *, key: Key):
        draws, width = jax.random.split(key, 6), hidden[0]
        torso = lambda inputs, k: Torso((inputs, width), activation=leaky_relu, key=k)
        self.encoder, self.looker, self.values = map(torso, (unit, spec.obs_size, width), draws[:3])
        self.queries, self.keys = (Linear(width, width, key=k).weight for k in draws[3:5])
        self.head = MLP((2 * width, *hidden[1:], 1), activation=leaky_relu, key=draws[5])
        self.heads = heads

    def __call__(self, seen: Seen, action: Array | None = None, own: Array | None = None) -> Array:
        every, agents = self.encoder(units(seen, action)), seen.obs.shape[0]
        mine = every if own is None else self.encoder(units(seen, own))
        split = lambda x: x.reshape(*x.shape[:-1], self.heads, -1)
        query, key, value = (
            split(self.looker(seen.obs) @ self.queries),
            split(every @ self.keys),
            self.values(every),
        )
        logits = jnp.einsum("ibhw,jbhw->bhij", query, key) / query.shape[-1] ** 0.5
        weights = jax.nn.softmax(jnp.where(np.eye(agents, dtype=bool), -jnp.inf, logits))
        heard = jnp.einsum("bhij,jbhw->ibhw", weights, split(value)).reshape(mine.shape)
        return self.head(jnp.concatenate([mine, heard], axis=-1))[..., 0]


AgentValues = Values | SplitValues | AttentionValues


def make_values(
    form: Form,
    spec: EnvSpec,
    hidden: tuple[int, ...],
    *,
    known: Literal["obs", "state"] = "obs",
    acts: bool,
    heads: int = 1,
    share: bool = False,
    key: Key,
) -> AgentValues:
    """Q of observations and actions if `acts`, else V. With one agent there is nothing to split or
    to attend to."""
    if form == "mlp" or spec.num_agents == 1:
        size = spec.state_size if known == "state" else int(obs_mask(spec).sum())
        return Values(spec, size + acts * int(spec.action_mask.sum()), hidden, share=share, key=key)
    unit = spec.obs_size + acts * spec.action_size
    if form == "split":
        return SplitValues(spec, unit, hidden, share=share, key=key)
    return AttentionValues(spec, unit, hidden, heads, key=key)


def each(values: AgentValues, seen: Seen, action: Array) -> Float[Array, "twins agents batch"]:
    """Of every twin."""
    return jax.vmap(lambda one: one(seen, action))(values)


def twin(values: AgentValues, number: int) -> AgentValues:
    return jax.tree.map(lambda leaf: leaf[number], values)
