"""MADDPG: multi-agent deep deterministic policy gradients (Lowe et al., NeurIPS 2017).

Each agent has a policy of what it sees, and a critic of what all see and do, which serves in
training only. x are all observations, u the actions in the replay.

    u_i     = mu_i(o_i) + N(0, exploration_noise^2), in [-1, 1]              while exploring
    y_i     = r_i + gamma (1 - terminated) Q'_i(x', mu'_1(o'_1) .. mu'_N(o'_N))                                     (6)
    L_Q     = sum_i mean (Q_i(x, u) - y_i)^2                                                                        (6)
    L_mu    = sum_i mean -Q_i(x, u) with mu_i(o_i) in the place of u_i                                              (5)
              + output_penalty mean |mu_i before tanh|^2
    Q', mu' <- tau Q, mu + (1 - tau) Q', mu'

Tasks here have one reward for the team, which then is every r_i; a batch may bring each agent's
own.

The defaults are those of the paper, and of the authors' code where that is silent, as is the
penalty. They are for small particle worlds; preset `maddpg-vm3` has the settings of `vm3-ac`, to be
compared with it like for like.

Differences from the authors' code:
1. Actions are tanh of a network's output, to which exploring adds noise, as the paper writes. The code draws them from
   learnt Gaussians, or by Gumbel-softmax where actions are discrete.
2. All agents learn from the same batch, and all policies climb the critics that this batch has just taught. The code
   draws a batch for each agent, and goes from agent to agent.
3. Gradients are clipped by the norm of all agents' together, not by that of each matrix.
4. The first steps are of random actions. In the code untrained policies collect them.
5. Policy ensembles, and policies inferred from what others do, are left out.
"""

from dataclasses import dataclass
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from comarl.nn.policies import explore_with_noise
from comarl.nn.stochastic import Stack
from comarl.nn.values import AgentValues, make_values, obs_mask, see, see_actions
from comarl.ops.learner import Adam, Learner, polyak
from comarl.replay.pace import StepPace
from comarl.replay.transitions import Ring
from comarl.types import Clock, EnvSpec, Index, Key, Metrics, Timestep, Transition
from comarl.validation import check_range


class Actors(eqx.Module):
    """Every agent's own network."""

    networks: Stack
    spec: EnvSpec = eqx.field(static=True)

    def __call__(self, obs: Float[Array, "agents batch obs"]) -> tuple[Array, Array]:
        """Actions in [-1, 1], 0 where padded, and the same before tanh."""
        mask = self.spec.action_mask[:, None]
        raw = self.networks(obs) * mask
        return jnp.tanh(raw), raw


class State(eqx.Module):
    """What changes while MADDPG learns. Leaves lead with `agents`."""

    actors: Learner[Actors]  # mu
    critic: Learner[AgentValues]  # Q
    target_actors: Actors  # mu'
    target_critic: AgentValues  # Q'


@dataclass(frozen=True)
class Maddpg:
    """Hyperparameters of MADDPG. The defaults are those of the paper and its code."""

    actions: ClassVar = frozenset({"continuous"})

    hidden: tuple[int, ...] = (64, 64)
    """units of the hidden layers of actors and critics (ReLU)"""
    gamma: float = 0.95
    """discount"""
    tau: float = 0.01
    """step of the target networks"""
    exploration_noise: float = 0.1
    """standard deviation of the noise on actions in training; neither paper nor code has one to
    follow"""
    output_penalty: float = 1e-3
    """weight of the square of what actors put out before tanh, which keeps them from its flat
    ends"""
    actor_optimiser: Adam = Adam(1e-2, max_grad_norm=0.5)
    """optimiser of the actors"""
    critic_optimiser: Adam = Adam(1e-2, max_grad_norm=0.5)
    """optimiser of the critics"""
    replay: Ring = Ring(1_000_000, 1024)
    """transitions kept and drawn"""
    pace: StepPace = StepPace(warmup_steps=25_600, updates_per_step=0.01, parallel_envs=4)
    """25 random steps for each transition of a batch; then 4 episodes of 25 steps, which are the
    100 steps between two updates"""

    def __post_init__(self):
        check_range(self, 1, None, "hidden")
        check_range(self, 0, 1, "gamma", "tau")
        check_range(self, 0, None, "exploration_noise", "output_penalty")

    def init(self, spec: EnvSpec, key: Key) -> State:
        actor_key, critic_key = jax.random.split(key)
        sizes = (spec.obs_size, *self.hidden, spec.action_size)
        actors = Actors(Stack(spec.num_agents, sizes, key=actor_key), spec)
        critic = make_values("mlp", spec, self.hidden, acts=True, key=critic_key)
        learners = (
            Learner.create(actors, self.actor_optimiser),
            Learner.create(critic, self.critic_optimiser),
        )
        return State(*learners, target_actors=actors, target_critic=critic)

    def initial_memory(self, state: PyTree, timestep: Timestep, key: Key) -> tuple[()]:
        return ()

    def act(
        self,
        state: State,
        team: Index,
        memory: tuple[()],
        timestep: Timestep,
        clock: Clock,
        key: Key,
        *,
        explore: bool,
    ) -> tuple[tuple[()], Float[Array, "agents action"]]:
        del team, clock
        actors = state.actors.value
        action = actors(jnp.where(obs_mask(actors.spec), timestep.obs, 0.0)[:, None])[0][:, 0]
        return memory, explore_with_noise(
            action, self.exploration_noise, actors.spec, key
        ) if explore else action

    def update(
        self, state: State, batch: Transition, clock: Clock, key: Key
    ) -> tuple[State, Metrics]:
        """Critics, then policies, which climb what the critics have become, then targets."""
        del clock, key
        spec = state.actors.value.spec
        now, after, replayed = (
            see(batch.now, spec),
            see(batch.next, spec),
            see_actions(batch.action, spec),
        )
        next_value = state.target_critic(after, state.target_actors(after.obs)[0])
        target = batch.reward.T + self.gamma * jnp.where(batch.terminated, 0.0, next_value)
        critic, critic_loss = state.critic.descend(
            lambda q: jnp.square(q(now, replayed) - target).mean(axis=-1).sum()
        )

        def loss(actors: Actors) -> Float[Array, ""]:
            own, raw = actors(now.obs)
            size = (raw.shape[1] * spec.action_mask.sum(axis=-1))[:, None, None]
            penalty = self.output_penalty * (jnp.square(raw) / size).sum()
            return penalty - critic.value(now, replayed, own).mean(axis=-1).sum()

        actors, actor_loss = state.actors.descend(loss)
        targets = (state.target_actors, actors.value), (state.target_critic, critic.value)
        metrics = {
            "critic_loss": critic_loss,
            "actor_loss": actor_loss,
            "target_value": target.mean(),
        }
        return State(actors, critic, *(polyak(*pair, self.tau) for pair in targets)), metrics
