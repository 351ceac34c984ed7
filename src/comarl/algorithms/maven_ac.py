"""MAVEN (Mahajan et al., NeurIPS 2019) on the actor-critics of VM3-AC, for continuous actions.

Before an episode the team draws a mode z and keeps it to the end. Policies and values see it, so
that a team explores by committing to one of several ways of acting. A discriminator guesses z from
what the team does in what situation, and being guessed right is rewarded: that is a lower bound of
the mutual information of z and behaviour.

    z        uniform over |z| modes, one-hot: for an episode, and the same for all agents    (1)
    a_i      ~ pi_i(. | o_i, z),  V_i(x, z),  Q_i(x, u, z): MA-AC (`ma-ac`) where all see z
    I        = log v(z | x, u) + log |z|        v: the discriminator; u: actions in the replay
    r~       = r + intrinsic I                  computed anew when a transition is drawn     (2)
    L_v      = -mean log v(z | x, u)                                                         (3)

The paper of VM3-AC compares with MAVEN on its MA-AC, and gives no details; all settings here are
choices. MAVEN itself, for discrete actions, is `maven`. Other settings of `base` make it any soft
actor-critic of `vm3-ac`.

Differences from MAVEN:
1. Mutual information is a reward alone: the discriminator sees the actions of the replay, so that
   no gradient reaches policies. (MAVEN's own intrinsic reward has the sign of the cross-entropy,
   and pays for not being recognised.)
2. z is uniform, in evaluation, too. It cannot be learnt from the first state by REINFORCE, for
   which replay would have to keep returns.
3. z is one more part of each agent's observation. x, all observations, so has one of each agent.
"""

import math
from dataclasses import dataclass, replace

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from comarl.algorithms import vm3_ac
from comarl.algorithms.vm3_ac import MA_AC, Vm3Ac
from comarl.nn.mlp import MLP
from comarl.nn.values import actions_by_agent, known_size, with_actions
from comarl.ops.learner import Adam, Learner
from comarl.replay.pace import StepPace
from comarl.replay.transitions import Ring
from comarl.types import Clock, EnvSpec, Index, Key, Metrics, Timestep, Transition
from comarl.validation import check_fields, check_range


class Memory(eqx.Module):
    """What a team carries from step to step, and replay keeps."""

    latent: Float[Array, "*batch latents"]  # z, one-hot: for all agents and steps of an episode


class Discriminator(eqx.Module):
    """v(z | x, u), as logits."""

    network: MLP
    spec: EnvSpec = eqx.field(static=True)  # of the task, which does not know of z

    def __call__(
        self, known: Float[Array, "batch known"], action: Float[Array, "agents batch action"]
    ) -> Float[Array, "batch latents"]:
        return self.network(with_actions(known, action, self.spec))


class State(eqx.Module):
    """What changes while MAVEN learns."""

    base: vm3_ac.State
    discriminator: Learner[Discriminator]


@dataclass(frozen=True)
class MavenAc:
    """Hyperparameters of MAVEN on MA-AC."""

    base: Vm3Ac = MA_AC
    """the actor-critics, with all of their settings; z is a part of what they see"""
    latents: int = 16
    """modes that z may be"""
    intrinsic: float = 0.1
    """weight of mutual information as a reward"""
    discriminator: tuple[int, ...] = (128, 128)
    """units of the hidden layers of the discriminator (ReLU)"""
    discriminator_optimiser: Adam = Adam(3e-4, max_grad_norm=0.0)
    """optimiser of the discriminator"""

    # What the loop asks of any algorithm is as the base has it, but that replay keeps z.
    actions = frozenset({"continuous"})

    @property
    def replay(self) -> Ring:
        """The base's, which keeps z, too."""
        return replace(self.base.replay, latent=self.latents)

    @property
    def pace(self) -> StepPace:
        """As the base has it."""
        return self.base.pace

    def __post_init__(self):
        check_fields(self)
        check_range(self, 1, None, "latents", "discriminator")
        check_range(self, 0, None, "intrinsic")

    def init(self, spec: EnvSpec, key: Key) -> State:
        """The state before training."""
        base_key, discriminator_key = jax.random.split(key)
        discriminator = self.make_discriminator(spec, discriminator_key)
        return State(
            base=self.base.init(spec_with_mode(spec, self.latents), base_key),
            discriminator=Learner.create(discriminator, self.discriminator_optimiser),
        )

    def make_discriminator(self, spec: EnvSpec, key: Key) -> Discriminator:
        """v, for a task that does not know of z."""
        inputs = known_size(spec, self.base.critic_sees) + int(spec.action_mask.sum())
        sizes = (inputs, *self.discriminator, self.latents)
        return Discriminator(MLP(sizes, activation=jax.nn.relu, key=key), spec)

    def initial_memory(self, state: State, timestep: Timestep, key: Key) -> Memory:
        """Draws z, which stays for the episode (1)."""
        mode = jax.random.randint(key, (), 0, self.latents)
        return Memory(jax.nn.one_hot(mode, self.latents))

    def act(
        self,
        state: State,
        team: Index,
        memory: Memory,
        timestep: Timestep,
        clock: Clock,
        key: Key,
        *,
        explore: bool,
    ) -> tuple[Memory, Float[Array, "agents action"]]:
        """As the base acts, where each agent sees z, too."""
        timestep = with_mode(timestep, memory.latent)
        _, action = self.base.act(state.base, team, (), timestep, clock, key, explore=explore)
        return memory, action

    def update(
        self, state: State, batch: Transition, clock: Clock, key: Key
    ) -> tuple[State, Metrics]:
        """The reward by the discriminator as it was, then one step of everything."""
        latent = batch.latent
        assert latent is not None
        spec = state.discriminator.value.spec
        known = self.base.observe(batch.now, spec).known
        played = actions_by_agent(batch.action, spec)

        def log_likelihood(discriminator: Discriminator) -> Float[Array, " batch"]:
            """log v(z | x, u) of each transition."""
            log_v = jax.nn.log_softmax(discriminator(known, played))
            return (log_v * latent).sum(axis=-1)

        # Reward: (2).
        information = log_likelihood(state.discriminator.value) + math.log(self.latents)
        reward = batch.reward + self.intrinsic * information
        # Discriminator: (3).
        discriminator, discriminator_loss = state.discriminator.descend(
            lambda v: -log_likelihood(v).mean()
        )
        # Actor-critics: a step of the base where all see z.
        now = with_mode(batch.now, latent)
        after = with_mode(batch.next, latent)
        in_mode = replace(batch, now=now, next=after, reward=reward)
        base, metrics = self.base.update(state.base, in_mode, clock, key)

        metrics |= {
            "discriminator_loss": discriminator_loss,
            "mutual_information": information.mean(),
        }
        return State(base, discriminator), metrics


def spec_with_mode(spec: EnvSpec, latents: int) -> EnvSpec:
    """The sizes of a task in which z comes first in what each agent sees, and in the state."""
    sizes = spec.obs_sizes or (spec.obs_size,) * spec.num_agents
    return replace(
        spec,
        obs_size=spec.obs_size + latents,
        state_size=spec.state_size + latents,
        obs_sizes=tuple(size + latents for size in sizes),
        obs_from_state=None,
        obs_range=None,
    )


def with_mode(timestep: Timestep, latent: Float[Array, "*batch latents"]) -> Timestep:
    """A timestep in which z comes first in what each agent sees, and in the state."""
    *batch, agents, _ = timestep.obs.shape
    each = jnp.broadcast_to(latent[..., None, :], (*batch, agents, latent.shape[-1]))
    return Timestep(
        obs=jnp.concatenate([each, timestep.obs], axis=-1),
        state=jnp.concatenate([latent, timestep.state], axis=-1),
    )
