"""MADDPG: multi-agent deterministic policy gradients (Lowe et al., NeurIPS 2017).

Each agent has a policy of what it sees, and a centralised critic of what all see and do, which
serves in training only. x are all observations, u the actions in the replay.

    u_i     = mu_i(o_i) + N(0, exploration_noise^2), in [-1, 1]       while exploring
    y_i     = r_i + gamma (1 - terminated) Q'_i(x', mu'_1(o'_1) .. mu'_N(o'_N))           (Eq. 6)
    L_Q     = sum_i mean (Q_i(x, u) - y_i)^2                                              (Eq. 6)
    L_mu    = sum_i mean -Q_i(x, u) with mu_i(o_i) in the place of u_i                    (Eq. 5)
              + output_penalty mean |mu_i before tanh|^2
    Q', mu' <- tau Q, mu + (1 - tau) Q', mu'

Tasks here have one reward for the team, which then is every r_i; a batch may bring each agent's
own.

The defaults are those of the paper, and of the authors' code where that is silent, as is the
penalty. They are for small particle worlds; preset `maddpg-vm3` has the settings of `vm3-ac`, to be
compared with it like for like.

Differences from the authors' code:
1. Actions are tanh of a network's output, to which exploring adds noise, as the paper writes. The
   code draws them from learnt Gaussians, or by Gumbel-softmax where actions are discrete.
2. All agents learn from the same batch, and all policies maximise the critics that this batch has
   just taught. The code draws a batch for each agent, and goes from agent to agent.
3. Gradients are clipped by the norm of all agents' together, not by that of each matrix.
4. The first steps are of random actions. In the code untrained policies collect them.
5. Policy ensembles, and policies inferred from what others do, are left out.
"""

from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from comarl.nn.policies import explore_with_noise
from comarl.nn.stochastic import Stack
from comarl.nn.values import AgentValues, actions_by_agent, make_values, obs_mask, observe
from comarl.ops.learner import Adam, Tracked
from comarl.ops.returns import one_step_targets, td_metrics
from comarl.replay.pace import StepPace
from comarl.replay.transitions import Ring
from comarl.types import Clock, EnvSpec, Index, Key, Metrics, Timestep, Transition
from comarl.validation import check_fields, check_range


class Actors(eqx.Module):
    """mu: every agent's own network."""

    networks: Stack
    spec: EnvSpec = eqx.field(static=True)

    def __call__(
        self, obs: Float[Array, "agents batch obs"]
    ) -> tuple[Float[Array, "agents batch action"], Float[Array, "agents batch action"]]:
        """Actions in [-1, 1], 0 where padded, and the same before tanh."""
        raw = self.networks(obs) * self.spec.action_mask[:, None]
        return jnp.tanh(raw), raw


class State(eqx.Module):
    """What changes while MADDPG learns. Leaves lead with `agents`."""

    actors: Tracked[Actors]  # mu, and the target actors mu'
    critic: Tracked[AgentValues]  # Q, and the target critics Q'


@dataclass(frozen=True)
class Maddpg:
    """Hyperparameters of MADDPG. The defaults are those of the paper and its code."""

    actions = frozenset({"continuous"})

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
        check_fields(self)
        check_range(self, 1, None, "hidden")
        check_range(self, 0, 1, "gamma", "tau")
        check_range(self, 0, None, "exploration_noise", "output_penalty")

    def init(self, spec: EnvSpec, key: Key) -> State:
        """The state before training; targets begin as what they follow."""
        actor_key, critic_key = jax.random.split(key)
        actors = self.make_actors(spec, actor_key)
        critic = self.make_critic(spec, critic_key)
        return State(
            actors=Tracked.create(actors, self.actor_optimiser),
            critic=Tracked.create(critic, self.critic_optimiser),
        )

    def make_actors(self, spec: EnvSpec, key: Key) -> Actors:
        """The policies of all agents."""
        sizes = (spec.obs_size, *self.hidden, spec.action_size)
        return Actors(Stack(spec.num_agents, sizes, key=key), spec)

    def make_critic(self, spec: EnvSpec, key: Key) -> AgentValues:
        """The critics of all agents, of what all see and do."""
        return make_values("mlp", spec, self.hidden, acts=True, key=key)

    def initial_memory(self, state: PyTree, timestep: Timestep, key: Key) -> tuple[()]:
        """Nothing: the policies see the observation of the step alone."""
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
        """Each agent acts on its own observation, with noise while it explores."""
        del team, clock
        actors = state.actors.value
        obs = jnp.where(obs_mask(actors.spec), timestep.obs, 0.0)
        action = actors(obs[:, None])[0][:, 0]
        if explore:
            action = self.explore(action, actors.spec, key)
        return memory, action

    def explore(
        self, action: Float[Array, "agents action"], spec: EnvSpec, key: Key
    ) -> Float[Array, "agents action"]:
        """The greedy action with Gaussian noise."""
        return explore_with_noise(action, self.exploration_noise, spec, key)

    def update(
        self, state: State, batch: Transition, clock: Clock, key: Key
    ) -> tuple[State, Metrics]:
        """One step of everything. Rewards may be the team's or each agent's own."""
        del clock, key
        # Critics: Eq. 6.
        critic, metrics = self.fit_critic(state, batch)
        # Policies, by the critics as they are now: Eq. 5.
        actors, actor_loss = self.fit_actors(State(state.actors, critic), batch)
        metrics["actor_loss"] = actor_loss
        # Targets.
        return State(actors.polyak(self.tau), critic.polyak(self.tau)), metrics

    def fit_critic(self, state: State, batch: Transition) -> tuple[Tracked[AgentValues], Metrics]:
        """Each critic regresses on its agent's own target (Eq. 6)."""
        spec = state.actors.value.spec
        now = observe(batch.now, spec)
        after = observe(batch.next, spec)
        played = actions_by_agent(batch.action, spec)
        next_action, _ = state.actors.target(after.obs)
        next_q = state.critic.target(after, next_action)
        target = one_step_targets(batch.reward.T, batch.terminated, next_q, self.gamma)

        def loss(critic: AgentValues) -> tuple[Float[Array, ""], Float[Array, "agents batch"]]:
            q = critic(now, played)
            return jnp.square(q - target).mean(axis=-1).sum(), q

        critic, (critic_loss, q) = state.critic.descend(loss, has_aux=True)
        losses = {"critic_loss": critic_loss, "td_loss": critic_loss}
        return critic, losses | td_metrics(q, target)

    def fit_actors(
        self, state: State, batch: Transition
    ) -> tuple[Tracked[Actors], Float[Array, ""]]:
        """Each policy maximises its agent's Q, where the others do as in the replay (Eq. 5)."""
        spec = state.actors.value.spec
        now = observe(batch.now, spec)
        played = actions_by_agent(batch.action, spec)

        def loss(actors: Actors) -> Float[Array, ""]:
            own, raw = actors(now.obs)
            entries = (raw.shape[1] * spec.action_mask.sum(axis=-1))[:, None, None]
            penalty = self.output_penalty * (jnp.square(raw) / entries).sum()
            return penalty - state.critic.value(now, played, own).mean(axis=-1).sum()

        return state.actors.descend(loss)
