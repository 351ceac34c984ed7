"""SI-MOA: social influence by models of other agents (Jaques et al., ICML 2019), on the
actor-critics of VM3-AC.

An agent is rewarded for moving others. With its model of them (MOA) it asks what they would do
next, had it acted otherwise; the further that is from what it expects now, the more it has
influenced them. u are the actions in the replay; a' what the policies draw at the observations that
follow.

    p_ij        = N(mu_ij(o_i, u), sigma^2 I)                   what i expects j to do at the next step
    a~_k        ~ pi_i(. | o_i),  k = 1 .. K                    what i might have done instead
    p~_ij       = 1/K sum_k N(mu_ij(o_i, a~_k, u_others), sigma^2 I)   what it would expect, not knowing u_i
    c_i         = sum_{j != i} KL(p_ij || p~_ij)                influence (Sec. 3; Sec. 5 for models)
    r_i         = r + influence clip(c_i, 0, influence_clip)    c_i is 0 where the task ended: nobody acts then
    L_MOA       = sum_{i, j != i} mean ||a'_j - mu_ij(o_i, u)||^2 / 2

The rest is MA-AC (`ma-ac`) with r_i in the place of r: V_i and Q_i are of each agent's own reward.
Other settings of `base` make it any soft actor-critic of `vm3-ac`.

Differences from the paper, whose agents choose among a few actions and learn on-policy (A3C with LSTMs):
1. Expectations are Gaussians. The marginal p~ is a Gaussian of the mixture's means and variances, and KL is in closed
   form; or KL to the mixture itself is estimated by draws.
2. c is computed anew whenever a transition is drawn, by the models as they are then, and is not carried a step late.
3. Models learn what others' policies do now, not what they did when the transition was played.
4. Models have networks of their own and see one observation, no features of the policy and no memory; every other
   agent counts, seen or not; and the weight of influence is constant.
"""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from comarl.algorithms import vm3_ac
from comarl.algorithms.vm3_ac import MA_AC, Vm3Ac
from comarl.nn.stochastic import Stack
from comarl.nn.values import Seen, deviating, see_actions, with_actions
from comarl.ops.learner import Adam, Learner
from comarl.ops.returns import masked_mean
from comarl.replay.pace import StepPace
from comarl.replay.transitions import Ring
from comarl.types import Clock, EnvSpec, Index, Key, Metrics, Timestep, Transition
from comarl.validation import check_fields, check_range


class Models(eqx.Module):
    """mu_ij: each agent i's network, of all others' next actions."""

    networks: Stack
    spec: EnvSpec = eqx.field(static=True)

    def __init__(self, spec: EnvSpec, hidden: tuple[int, ...], *, key: Key):
        inputs, outputs = (
            spec.obs_size + int(spec.action_mask.sum()),
            spec.num_agents * spec.action_size,
        )
        self.networks = Stack(spec.num_agents, (inputs, *hidden, outputs), key=key)
        self.spec = spec

    @property
    def others(self) -> Float[np.ndarray, "agents 1 agents action"]:
        """The real entries of actions that i predicts: none of its own."""
        return (self.spec.action_mask * ~np.eye(self.spec.num_agents, dtype=bool)[..., None])[
            :, None
        ]

    def __call__(
        self,
        obs: Float[Array, "agents batch obs"],
        own: Array,
        action: Float[Array, "agents batch action"],
    ) -> Float[Array, "agents batch agents action"]:
        """What i expects if it does own_i where the others do as they do."""
        x = jax.vmap(lambda o, joint: with_actions(o, joint, self.spec))(
            obs, deviating(own, action)
        )
        mean = jnp.tanh(self.networks(x))
        return mean.reshape(*mean.shape[:2], self.spec.num_agents, -1)


class State(eqx.Module):
    """What changes while SI-MOA learns."""

    base: vm3_ac.State
    models: Learner[Models]


@dataclass(frozen=True)
class SiMoa:
    """Hyperparameters of SI-MOA. Neither paper has settings for continuous actions; these are
    choices."""

    base: Vm3Ac = MA_AC
    """the actor-critics that climb the sum of the task's reward and influence, and all of their
    settings"""
    influence: float = 0.01
    """weight of influence in the reward; the authors' code has 0.001, where the models are of
    discrete actions"""
    influence_clip: float = 10.0
    """the most that one step's influence counts"""
    counterfactuals: int = 16
    """actions that each agent imagines in the place of its own: K"""
    divergence: Literal["moments", "draws"] = "moments"
    """KL to a Gaussian with the mean and variances of what is imagined, or by draws to the mixture
    itself"""
    divergence_draws: int = 16
    """draws of that estimate"""
    model_variance: float = 0.1
    """sigma^2 of what is expected: smaller makes the same difference of means count for more"""
    model_hidden: tuple[int, ...] = (128, 128)
    """units of the hidden layers of the models (ReLU)"""
    model_optimiser: Adam = Adam(3e-4, max_grad_norm=0.0)
    """optimiser of the models"""

    # What the loop asks of any algorithm is as the base has it.
    actions: ClassVar = frozenset({"continuous"})

    @property
    def replay(self) -> Ring:
        """As the base has it."""
        return self.base.replay

    @property
    def pace(self) -> StepPace:
        """As the base has it."""
        return self.base.pace

    def __post_init__(self):
        check_fields(self)
        check_range(self, 1, None, "counterfactuals", "divergence_draws", "model_hidden")
        check_range(self, 0, None, "influence", "influence_clip")
        if self.model_variance <= 0:
            raise ValueError(f"model_variance={self.model_variance} of SiMoa must be above 0")

    def init(self, spec: EnvSpec, key: Key) -> State:
        base_key, model_key = jax.random.split(key)
        models = Models(spec, self.model_hidden, key=model_key)
        return State(self.base.init(spec, base_key), Learner.create(models, self.model_optimiser))

    def initial_memory(self, state: State, timestep: Timestep, key: Key) -> tuple[()]:
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
        return self.base.act(state.base, team, memory, timestep, clock, key, explore=explore)

    def update(
        self, state: State, batch: Transition, clock: Clock, key: Key
    ) -> tuple[State, Metrics]:
        """Influence and models by what was before, then a step of the actor-critics on each agent's
        own reward."""
        models, spec = state.models.value, state.models.value.spec
        now, after = (self.base.see(t, spec) for t in (batch.now, batch.next))
        imagine_key, next_key, noise_key, base_key = jax.random.split(key, 4)
        replayed, going_on = see_actions(batch.action, spec), ~batch.terminated
        imagined = jax.vmap(lambda k: self.draw(state, now, k))(
            jax.random.split(imagine_key, self.counterfactuals)
        )
        # Where the task ended there is nothing to see, so that not even a masked error may be made
        # of it.
        following = jnp.where(going_on[:, None], self.draw(state, after, next_key), 0.0)
        influence = jnp.where(
            going_on, self.divergence_of(models, now, replayed, imagined, noise_key), 0.0
        )
        reward = batch.reward + self.influence * jnp.clip(influence, 0.0, self.influence_clip)

        def loss(models: Models) -> Float[Array, ""]:
            error = (
                jnp.square(models(now.obs, replayed, replayed) - jnp.moveaxis(following, 0, 1))
                * models.others
            )
            return 0.5 * masked_mean(error.sum(axis=(0, 2, 3)), going_on)

        learnt, model_loss = state.models.descend(loss)
        base, metrics = self.base.update(
            state.base, replace(batch, reward=reward.T), clock, base_key
        )
        entries = max(
            0.5 * float(models.others.sum()), 1.0
        )  # alone there is nobody to expect anything of
        metrics |= {"influence": influence.mean(), "model_error": model_loss / entries}
        return State(base, learnt), metrics

    def draw(self, state: State, seen: Seen, key: Key) -> Float[Array, "agents batch action"]:
        """What the policies might do."""
        policies = state.base.policies.value
        return policies.draw(seen.obs, self.base.noise(policies.spec, seen, key)).action

    def divergence_of(
        self,
        models: Models,
        seen: Seen,
        action: Float[Array, "agents batch action"],
        imagined: Float[Array, "counterfactuals agents batch action"],
        key: Key,
    ) -> Float[Array, "agents batch"]:
        """c_i."""
        variance, others = self.model_variance, models.others
        expected = models(seen.obs, action, action)
        means = jax.vmap(lambda own: models(seen.obs, own, action))(imagined)
        if self.divergence == "moments":
            mean, wide = means.mean(axis=0), variance + means.var(axis=0)
            terms = 0.5 * (
                jnp.log(wide / variance) + (variance + jnp.square(expected - mean)) / wide - 1.0
            )
            return (terms * others).sum(axis=(-1, -2))
        normal = jax.random.normal(key, (self.divergence_draws, *expected.shape))
        log_density = lambda from_mean: (
            -0.5 * (jnp.square(from_mean) * others).sum(axis=-1)
        )  # up to a constant

        def log_ratio(normal: Array) -> Array:
            away = (expected - means) / math.sqrt(variance) + normal
            mixture = jax.nn.logsumexp(log_density(away), axis=0) - math.log(self.counterfactuals)
            return log_density(normal) - mixture

        return jax.vmap(log_ratio)(normal).mean(axis=0).sum(axis=-1)
