"""Messages between agents: who tells whom what, what a message should let one predict, and what it
costs.

NDQ (Wang, Wang, Zheng, Zhang, ICLR 2020) and LSF-SAC (Zhou, Lan, Aggarwal, 2022) share them. x_i is
agent i's input, f_m the encoder, q_psi the posterior over actions.

    M_ji ~ N(f_m(x_j)_i, 1)             what j tells i, itself included; drawn anew whenever it is needed
    m_i  = (M_1i .. M_Ni)               what i is told, in the senders' order
    L_m  = sum_i -log q_psi(u_i | x_i, m_i) + beta sum_ji KL(N(f_m(x_j)_i, 1) || N(0, 1)) + b sum_ji -log N(M_ji; 0, 1)
"""

from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from comarl.nn.mlp import MLP, Linear, Torso
from comarl.nn.recurrent import RecurrentEncoder, input_size
from comarl.ops.distributions import noise_of_steps
from comarl.ops.exploration import pick
from comarl.types import EnvSpec, Key

Routing = Literal["pairwise", "broadcast"]


class Messages(NamedTuple):
    """All that is said, at each step. Where everybody is told the same, `receivers` is 1."""

    mean: Float[Array, "*steps senders receivers size"]  # f_m(x_j)_i
    sent: Float[Array, "*steps senders receivers size"]  # M_ji
    told: Float[Array, "*steps agents told"]  # m_i


class Messenger(eqx.Module):
    """Encoder and posterior, each one network for all agents."""

    encoder: Torso | RecurrentEncoder
    head: Linear
    posterior: MLP
    size: int = eqx.field(static=True)

    def __init__(
        self,
        spec: EnvSpec,
        routing: Routing,
        *,
        size: int,
        hidden: int,
        recurrent: bool = False,
        key: Key,
    ):
        """`size` numbers a message, of which one goes to each agent ("pairwise") or the same to all
        ("broadcast")."""
        inputs, agents = input_size(spec), spec.num_agents
        encoder_key, head_key, posterior_key = jax.random.split(key, 3)
        if recurrent:
            self.encoder = RecurrentEncoder(inputs, hidden, key=encoder_key)
        else:
            self.encoder = Torso((inputs, hidden, hidden), activation=jax.nn.relu, key=encoder_key)
        self.head = Linear(hidden, size * (agents if routing == "pairwise" else 1), key=head_key)
        told = agents * size
        sizes = (inputs + told, 4 * told, 4 * told, spec.action_size)
        self.posterior = MLP(sizes, activation=jax.nn.relu, key=posterior_key)
        self.size = size

    def __call__(self, x: Float[Array, "time agents inputs"], key: Key, spread: float) -> Messages:
        """What is said during an episode, with noise of standard deviation `spread`."""
        features = (
            self.encoder.unroll(x)
            if isinstance(self.encoder, RecurrentEncoder)
            else self.encoder(x)
        )
        mean = self.head(features).reshape(*x.shape[:-1], -1, self.size)
        sent = mean + spread * noise_of_steps(key, mean.shape) if spread else mean
        return Messages(mean, sent, deliver(sent))

    def bottleneck(
        self,
        x: Float[Array, "time agents inputs"],
        messages: Messages,
        label: Int[Array, "time agents"],
        kl_weight: float,
        entropy_weight: float,
    ) -> Float[Array, " time"]:
        """L_m at each step, up to a constant: what is told should say which action `label` is, in
        few words."""
        log_q = jax.nn.log_softmax(self.posterior(concat_messages(x, messages.told)))
        prediction = -pick(log_q, label).sum(-1)
        total = lambda square: 0.5 * square.sum((-3, -2, -1))
        kl, cross_entropy = (
            total(jnp.square(messages.mean)),
            total(jnp.square(messages.sent) + jnp.log(2.0 * jnp.pi)),
        )
        return prediction + kl_weight * kl + entropy_weight * cross_entropy


def deliver(
    sent: Float[Array, "*steps senders receivers size"],
) -> Float[Array, "*steps senders told"]:
    """To each agent what all of them, itself included, say to it."""
    *steps, senders, receivers, size = sent.shape
    told = jnp.swapaxes(sent, -3, -2).reshape(*steps, receivers, senders * size)
    return jnp.broadcast_to(told, (*steps, senders, senders * size))


def concat_messages(
    x: Float[Array, "*steps agents inputs"], told: Float[Array, "*steps agents told"] | None
) -> Float[Array, "*steps agents more"]:
    """What an agent sees, and what it is told."""
    return x if told is None else jnp.concatenate([x, told], axis=-1)


class MessageConditionedNet(eqx.Module):
    """What each agent makes of its history and of what it was told, for each of its actions:
    Q_i(tau_i, m_i, .)."""

    encoder: RecurrentEncoder
    head: Linear
    spec: EnvSpec = eqx.field(static=True)

    def __init__(self, spec: EnvSpec, hidden: int, told: int, *, key: Key):
        """`told` is how many numbers an agent is told at each step."""
        encoder_key, head_key = jax.random.split(key)
        self.encoder = RecurrentEncoder(input_size(spec) + told, hidden, key=encoder_key)
        self.head = Linear(hidden, spec.action_size, key=head_key)
        self.spec = spec

    def step(
        self, hidden: Float[Array, "agents hidden"], x: Float[Array, "agents inputs"]
    ) -> tuple[Float[Array, "agents hidden"], Float[Array, "agents actions"]]:
        """One step: what to remember, and a number for each action."""
        hidden = self.encoder(hidden, x)
        return hidden, self.head(hidden)

    def unroll(self, x: Float[Array, "time agents inputs"]) -> Float[Array, "time agents actions"]:
        """A whole episode."""
        return self.head(self.encoder.unroll(x))
