"""Messages between agents: who sends what to whom, what a message should predict, and its price.

NDQ (Wang, Wang, Zheng, Zhang, ICLR 2020) and LSF-SAC (Zhou, Lan, Aggarwal, 2022) share them. x_i is
agent i's input, f_m the encoder, q_psi the posterior over actions.

    M_ji ~ N(f_m(x_j)_i, 1)      what j sends to i, itself included; drawn anew at every use
    m_i  = (M_1i .. M_Ni)        what i receives, in the senders' order
    L_m  = sum_i -log q_psi(u_i | x_i, m_i)
           + beta sum_ji KL(N(f_m(x_j)_i, 1) || N(0, 1)) + b sum_ji -log N(M_ji; 0, 1)
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
    """All messages of a team at each step.

    `receivers` is the number of agents if messages are pairwise, and 1 if they are broadcast.
    """

    mean: Float[Array, "*steps senders receivers size"]  # f_m(x_j)_i
    sent: Float[Array, "*steps senders receivers size"]  # M_ji
    received: Float[Array, "*steps agents received"]  # m_i


class Messenger(eqx.Module):
    """The encoder of messages and the posterior that learns to read them (NDQ, Sec. 3.1).

    Each is one network for all agents.
    """

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
        """A message has `size` numbers.

        An agent sends one message to each agent ("pairwise") or the same to all ("broadcast").
        """
        inputs = input_size(spec)
        encoder_key, head_key, posterior_key = jax.random.split(key, 3)
        if recurrent:
            self.encoder = RecurrentEncoder(inputs, hidden, key=encoder_key)
        else:
            self.encoder = Torso((inputs, hidden, hidden), activation=jax.nn.relu, key=encoder_key)
        receivers = spec.num_agents if routing == "pairwise" else 1
        self.head = Linear(hidden, size * receivers, key=head_key)
        received = spec.num_agents * size
        sizes = (inputs + received, 4 * received, 4 * received, spec.action_size)
        self.posterior = MLP(sizes, activation=jax.nn.relu, key=posterior_key)
        self.size = size

    def __call__(self, x: Float[Array, "time agents inputs"], key: Key, std: float) -> Messages:
        """The messages of an episode, with noise of standard deviation `std` on each number."""
        if isinstance(self.encoder, RecurrentEncoder):
            features = self.encoder.unroll(x)
        else:
            features = self.encoder(x)
        mean = self.head(features).reshape(*x.shape[:-1], -1, self.size)
        sent = mean + std * noise_of_steps(key, mean.shape) if std else mean
        return Messages(mean, sent, deliver(sent))

    def bottleneck(
        self,
        x: Float[Array, "time agents inputs"],
        messages: Messages,
        label: Int[Array, "time agents"],
        kl_weight: float,
        entropy_weight: float,
    ) -> Float[Array, " time"]:
        """L_m at each step, up to a constant (NDQ, Eq. 9).

        The messages that an agent receives should predict its action, `label`, at a small
        divergence from N(0, 1).
        """
        log_q = jax.nn.log_softmax(self.posterior(concat_messages(x, messages.received)))
        prediction = -pick(log_q, label).sum(-1)
        kl = 0.5 * jnp.square(messages.mean).sum((-3, -2, -1))
        square = jnp.square(messages.sent) + jnp.log(2.0 * jnp.pi)
        cross_entropy = 0.5 * square.sum((-3, -2, -1))
        return prediction + kl_weight * kl + entropy_weight * cross_entropy


def deliver(
    sent: Float[Array, "*steps senders receivers size"],
) -> Float[Array, "*steps senders received"]:
    """m_i: what each agent receives from all agents, itself included, in the senders' order.

    >>> sent = jnp.array([[[1.0], [2.0]], [[3.0], [4.0]]])  # the first sends 1 and 2
    >>> deliver(sent).tolist()
    [[1.0, 3.0], [2.0, 4.0]]
    """
    *steps, senders, receivers, size = sent.shape
    received = jnp.swapaxes(sent, -3, -2).reshape(*steps, receivers, senders * size)
    return jnp.broadcast_to(received, (*steps, senders, senders * size))


def concat_messages(
    x: Float[Array, "*steps agents inputs"],
    received: Float[Array, "*steps agents received"] | None,
) -> Float[Array, "*steps agents more"]:
    """An agent's input followed by the messages that it receives; None stands for no messages.

    >>> concat_messages(jnp.ones((2, 3)), jnp.zeros((2, 1))).tolist()
    [[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0]]
    """
    return x if received is None else jnp.concatenate([x, received], axis=-1)


class MessageConditionedNet(eqx.Module):
    """Q_i(tau_i, m_i, .): a number for each action from an agent's history and its messages."""

    encoder: RecurrentEncoder
    head: Linear
    spec: EnvSpec = eqx.field(static=True)

    def __init__(self, spec: EnvSpec, hidden: int, received: int, *, key: Key):
        """An agent receives `received` numbers at each step."""
        encoder_key, head_key = jax.random.split(key)
        self.encoder = RecurrentEncoder(input_size(spec) + received, hidden, key=encoder_key)
        self.head = Linear(hidden, spec.action_size, key=head_key)
        self.spec = spec

    def step(
        self, hidden: Float[Array, "agents hidden"], x: Float[Array, "agents inputs"]
    ) -> tuple[Float[Array, "agents hidden"], Float[Array, "agents actions"]]:
        """One step: what to remember, and a number for each action."""
        hidden = self.encoder(hidden, x)
        return hidden, self.head(hidden)

    def unroll(self, x: Float[Array, "time agents inputs"]) -> Float[Array, "time agents actions"]:
        """The numbers of a whole episode."""
        return self.head(self.encoder.unroll(x))
