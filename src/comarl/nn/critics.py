"""Critics: of the state and the whole team's action, or factored into what each agent sees and
does.

The leaves of several Q-functions that are stacked lead with `critics`.
"""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from comarl.nn.mixers import Mixer, Mixing, Sum, make_mixer
from comarl.nn.mlp import MLP, Activation, Linear, leaky_relu
from comarl.types import EnvSpec, Key


def join(
    state: Float[Array, "batch state"],
    action: Float[Array, "batch agents action"],
    *more: Float[Array, "batch more"],
) -> Float[Array, "batch inputs"]:
    """The inputs of a critic: the state, the joint action as one vector, and more.

    >>> join(jnp.ones((4, 3)), jnp.ones((4, 2, 5))).shape
    (4, 13)
    """
    return jnp.concatenate([state, action.reshape(action.shape[0], -1), *more], axis=-1)


def policy_columns(heads: Linear) -> Float[Array, "agents action weights_and_bias"]:
    """A team of linear policies as a critic sees it: for each action of each agent, its weights
    and its own bias."""
    weights = jnp.swapaxes(heads.weight, 1, 2)
    return jnp.concatenate([weights, heads.bias[..., None]], axis=-1)


class Critic(eqx.Module):
    """Independent Q-functions of state and joint action, stacked: TD3 takes two and uses their
    minimum in targets.

    >>> spec = EnvSpec(2, 3, 6, 2, discrete=False, horizon=25)  # agents, obs, state, action
    >>> critic = Critic(spec, (16,), critics=2, layer_norm=True, key=jax.random.key(0))
    >>> critic(jnp.ones((5, 6)), jnp.ones((5, 2, 2))).shape
    (2, 5)
    """

    critics: MLP

    def __init__(
        self,
        spec: EnvSpec,
        hidden: Sequence[int],
        *,
        critics: int,
        layer_norm: bool,
        activation: Activation = leaky_relu,
        output_scale: float = 0.1,
        key: Key,
    ):
        inputs = spec.state_size + spec.num_agents * spec.action_size
        make = lambda k: MLP(
            (inputs, *hidden, 1),
            activation=activation,
            layer_norm=layer_norm,
            output_scale=output_scale,
            key=k,
        )
        self.critics = jax.vmap(make)(jax.random.split(key, critics))

    def __call__(
        self, state: Float[Array, "batch state"], action: Float[Array, "batch agents action"]
    ) -> Float[Array, "critics batch"]:
        x = join(state, action)
        return jax.vmap(lambda critic: critic(x)[:, 0])(self.critics)

    def first(
        self, state: Float[Array, "batch state"], action: Float[Array, "batch agents action"]
    ) -> Float[Array, " batch"]:
        """The first Q-function alone: the one that policies maximise."""
        critic = jax.tree.map(lambda leaf: leaf[0], self.critics)
        return critic(join(state, action))[:, 0]


class TeamCritic(eqx.Module):
    """Q_theta(s, a, W): a value function extended by the policy that it values (PeVFA; RACE, Table
    2).

    Each action dimension of the team is one column of W: `features` weights and a bias. A small
    network embeds each column; the mean over all columns of all agents is the team's embedding, an
    input beside state and action.
    """

    embedders: MLP  # each Q-function has its own
    critics: MLP
    spec: EnvSpec = eqx.field(static=True)

    def __init__(
        self,
        spec: EnvSpec,
        features: int,
        hidden: Sequence[int],
        embedding: int,
        *,
        layer_norm: bool,
        key: Key,
    ):
        embed_key, critic_key = jax.random.split(key)
        sizes = (features + 1, embedding, embedding, embedding)
        make_embedder = lambda k: MLP(sizes, activation=leaky_relu, key=k)
        inputs = spec.state_size + spec.num_agents * spec.action_size + embedding
        make = lambda k: MLP(
            (inputs, *hidden, 1),
            activation=leaky_relu,
            layer_norm=layer_norm,
            output_scale=0.1,
            key=k,
        )
        self.embedders = jax.vmap(make_embedder)(jax.random.split(embed_key, 2))
        self.critics = jax.vmap(make)(jax.random.split(critic_key, 2))
        self.spec = spec

    def embed(self, embedder: MLP, heads: Linear) -> Float[Array, " embedding"]:
        """chi(W): the mean embedding of the team's real (not padded) columns; permuting actions
        does not change it."""
        real = jnp.asarray(self.spec.action_mask)[..., None]
        return jnp.sum(embedder(policy_columns(heads)) * real, axis=(0, 1)) / real.sum()

    def value(
        self,
        embedder: MLP,
        critic: MLP,
        state: Float[Array, "batch state"],
        action: Float[Array, "batch agents action"],
        heads: Linear,
    ) -> Float[Array, " batch"]:
        """Q_theta of one Q-function and its embedder."""
        chi = self.embed(embedder, heads)
        chis = jnp.broadcast_to(chi, (state.shape[0], *chi.shape))
        return critic(join(state, action, chis))[:, 0]

    def __call__(
        self,
        state: Float[Array, "batch state"],
        action: Float[Array, "batch agents action"],
        heads: Linear,
    ) -> Float[Array, "critics batch"]:
        one_critic = lambda embedder, critic: self.value(embedder, critic, state, action, heads)
        return jax.vmap(one_critic)(self.embedders, self.critics)

    def first(
        self,
        state: Float[Array, "batch state"],
        action: Float[Array, "batch agents action"],
        heads: Linear,
    ) -> Float[Array, " batch"]:
        """The first Q-function alone: the one that the encoder maximises."""
        embedder, critic = jax.tree.map(lambda leaf: leaf[0], (self.embedders, self.critics))
        return self.value(embedder, critic, state, action, heads)


class FactoredCritic(eqx.Module):
    """Q_tot(s, u) = g_s(Q_1(o_1, u_1) .. Q_N(o_N, u_N)): FACMAC's critic (Peng et al., NeurIPS
    2021, Sec. 4).

    The agents share the utility's parameters.
    """

    utility: MLP
    mixer: Mixer | Sum

    def __init__(
        self,
        spec: EnvSpec,
        hidden: Sequence[int],
        mixing: Mixing,
        *,
        width: int,
        hypernet: int,
        with_identity: bool = False,
        key: Key,
    ):
        """`with_identity` lets the utility see which agent it values."""
        utility_key, mixer_key = jax.random.split(key)
        inputs = spec.obs_size + spec.action_size + (spec.num_agents if with_identity else 0)
        self.utility = MLP((inputs, *hidden, 1), activation=jax.nn.relu, key=utility_key)
        self.mixer = make_mixer(
            mixing, spec.num_agents, spec.state_size, width=width, hypernet=hypernet, key=mixer_key
        )

    def __call__(
        self,
        obs: Float[Array, "*batch agents obs"],
        action: Float[Array, "*batch agents action"],
        state: Float[Array, "*batch state"],
    ) -> Float[Array, "*batch"]:
        """Discrete actions are one-hot."""
        utilities = self.utility(jnp.concatenate([obs, action], axis=-1))[..., 0]
        return self.mixer(utilities, state)


class TeamFactoredCritic(eqx.Module):
    """Q_theta(s, u, W): the same, extended by the policies that it values (RACE on FACMAC).

    An agent's policy is one column per action: `hidden` weights and a bias. Small networks embed
    the columns. The utility sees chi_i, the mean over the columns of its own agent; the mixer sees,
    beside the state, the sum of chi_i over agents by an embedding of its own.
    """

    utility_embedder: MLP
    mixer_embedder: MLP
    utility: MLP
    mixer: Mixer | Sum

    def __init__(
        self,
        spec: EnvSpec,
        features: int,
        hidden: Sequence[int],
        embedding: int,
        mixing: Mixing,
        *,
        width: int,
        hypernet: int,
        key: Key,
    ):
        keys = jax.random.split(key, 4)
        sizes = (features + 1, embedding, embedding, embedding)
        self.utility_embedder = MLP(sizes, activation=leaky_relu, key=keys[0])
        self.mixer_embedder = MLP(sizes, activation=leaky_relu, key=keys[1])
        inputs = embedding + spec.obs_size + spec.action_size
        self.utility = MLP((inputs, *hidden, 1), activation=jax.nn.relu, key=keys[2])
        self.mixer = make_mixer(
            mixing,
            spec.num_agents,
            spec.state_size + embedding,
            width=width,
            hypernet=hypernet,
            key=keys[3],
        )

    def __call__(
        self,
        obs: Float[Array, "*batch agents obs"],
        action: Float[Array, "*batch agents action"],
        state: Float[Array, "*batch state"],
        heads: Linear,
    ) -> Float[Array, "*batch"]:
        """Actions as of `FactoredCritic`; `heads` is the team that is valued."""
        columns = policy_columns(heads)
        chi = self.utility_embedder(columns).mean(axis=1)  # [agents, embedding]
        chis = jnp.broadcast_to(chi, (*obs.shape[:-1], chi.shape[-1]))
        utilities = self.utility(jnp.concatenate([chis, obs, action], axis=-1))[..., 0]
        team = self.mixer_embedder(columns).mean(axis=1).sum(axis=0)
        teams = jnp.broadcast_to(team, (*state.shape[:-1], team.shape[-1]))
        return self.mixer(utilities, jnp.concatenate([state, teams], axis=-1))
