"""SI-MOA: social influence by models of other agents (Jaques et al., ICML 2019), on the
actor-critics of VM3-AC.

An agent is rewarded for moving others. With its model of them (MOA) it asks what they would do
next, had it acted otherwise; the further that is from what it expects now, the more it has
influenced them. u are the actions in the replay; a' what the policies draw at the observations that
follow.

    p_ij    = N(mu_ij(o_i, u), sigma^2 I)              what i expects j to do at the next step (1)
    a~_k    ~ pi_i(. | o_i),  k = 1 .. K               what i might have done instead          (2)
    p~_ij   = 1/K sum_k N(mu_ij(o_i, a~_k, u_others), sigma^2 I)
                                                       what it would expect, not knowing u_i   (3)
    c_i     = sum_{j != i} KL(p_ij || p~_ij)           influence (Sec. 3; Sec. 5 for models)   (4)
    r_i     = r + influence clip(c_i, 0, influence_clip)                                       (5)
    L_MOA   = sum_{i, j != i} mean ||a'_j - mu_ij(o_i, u)||^2 / 2                              (6)

Where the task ended nobody acts: c_i is 0, and nothing is learnt of what others do next.

The rest is MA-AC (`ma-ac`) with r_i in the place of r: V_i and Q_i are of each agent's own reward.
Other settings of `base` make it any soft actor-critic of `vm3-ac`.

Differences from the paper, whose agents choose among a few actions and learn on-policy (A3C with
LSTMs):
1. Expectations are Gaussians. The marginal p~ is a Gaussian of the mixture's means and variances,
   and KL is in closed form; or KL to the mixture itself is estimated by draws.
2. c is computed anew whenever a transition is drawn, by the models as they are then, and is not
   carried a step late.
3. Models learn what others' policies do now, not what they did when the transition was played.
4. Models have networks of their own and see one observation, no features of the policy and no
   memory; every other agent counts, seen or not; and the weight of influence is constant.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from comarl.algorithms import vm3_ac
from comarl.algorithms.vm3_ac import MA_AC, Vm3Ac
from comarl.nn.stochastic import Stack
from comarl.nn.values import CriticInputs, actions_by_agent, deviating, with_actions
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
        inputs = spec.obs_size + int(spec.action_mask.sum())
        outputs = spec.num_agents * spec.action_size
        self.networks = Stack(spec.num_agents, (inputs, *hidden, outputs), key=key)
        self.spec = spec

    @property
    def mask(self) -> Float[np.ndarray, "agents 1 agents action"]:
        """The real entries of the actions that i predicts: none of its own."""
        others = ~np.eye(self.spec.num_agents, dtype=bool)[..., None]
        return (self.spec.action_mask * others)[:, None]

    def __call__(
        self,
        obs: Float[Array, "agents batch obs"],
        own: Float[Array, "agents batch action"],
        action: Float[Array, "agents batch action"],
    ) -> Float[Array, "agents batch agents action"]:
        """What i expects if it does own_i where the others do as in `action`."""
        join = lambda obs, joint: with_actions(obs, joint, self.spec)
        x = jax.vmap(join)(obs, deviating(own, action))
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
    """the actor-critics that maximise the sum of the task's reward and influence, with all of their
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
    actions = frozenset({"continuous"})

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
        """The state before training."""
        base_key, model_key = jax.random.split(key)
        models = self.make_models(spec, model_key)
        return State(
            base=self.base.init(spec, base_key),
            models=Learner.create(models, self.model_optimiser),
        )

    def make_models(self, spec: EnvSpec, key: Key) -> Models:
        """The models that agents have of each other."""
        return Models(spec, self.model_hidden, key=key)

    def initial_memory(self, state: State, timestep: Timestep, key: Key) -> tuple[()]:
        """Nothing: policies see the observation of the step alone."""
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
        """As the base acts: models serve in training only."""
        return self.base.act(state.base, team, memory, timestep, clock, key, explore=explore)

    def update(
        self, state: State, batch: Transition, clock: Clock, key: Key
    ) -> tuple[State, Metrics]:
        """Influence and models by what was before, then a step of the actor-critics on each agent's
        own reward."""
        models = state.models.value
        spec = models.spec
        imagine_key, next_key, noise_key, base_key = jax.random.split(key, 4)
        now = self.base.observe(batch.now, spec)
        after = self.base.observe(batch.next, spec)
        played = actions_by_agent(batch.action, spec)
        continues = ~batch.terminated

        # Influence: (1) to (4).
        keys = jax.random.split(imagine_key, self.counterfactuals)
        imagined = jax.vmap(lambda k: self.draw(state, now, k))(keys)
        influence = self.influence_of(models, now, played, imagined, noise_key)
        influence = jnp.where(continues, influence, 0.0)
        # Reward: (5).
        reward = batch.reward + self.influence * jnp.clip(influence, 0.0, self.influence_clip)
        # Models: (6). Where the task ended there is nothing to see, so that not even a masked error
        # may be made of it.
        following = jnp.where(continues[:, None], self.draw(state, after, next_key), 0.0)
        learnt, model_loss = state.models.descend(
            lambda models: self.model_loss(models, now, played, following, continues)
        )
        # Actor-critics: a step of the base.
        own = replace(batch, reward=reward.T)
        base, metrics = self.base.update(state.base, own, clock, base_key)

        predicted = max(0.5 * float(models.mask.sum()), 1.0)  # an agent alone predicts nothing
        metrics |= {
            "influence": influence.mean(),
            "model_loss": model_loss,
            "model_error": model_loss / predicted,
        }
        return State(base, learnt), metrics

    def draw(
        self, state: State, inputs: CriticInputs, key: Key
    ) -> Float[Array, "agents batch action"]:
        """What the policies might do."""
        policies = state.base.policies.value
        noise = self.base.noise(policies.spec, inputs, key)
        return policies.draw(inputs.obs, noise).action

    def influence_of(
        self,
        models: Models,
        inputs: CriticInputs,
        action: Float[Array, "agents batch action"],
        imagined: Float[Array, "counterfactuals agents batch action"],
        key: Key,
    ) -> Float[Array, "agents batch"]:
        """c_i: how far what i expects is from what it would expect, not knowing its action (4)."""
        expected = models(inputs.obs, action, action)
        means = jax.vmap(lambda own: models(inputs.obs, own, action))(imagined)
        if self.divergence == "moments":
            return kl_to_moments(expected, means, self.model_variance, models.mask)
        normal = jax.random.normal(key, (self.divergence_draws, *expected.shape))
        return kl_by_draws(expected, means, self.model_variance, models.mask, normal)

    def model_loss(
        self,
        models: Models,
        inputs: CriticInputs,
        action: Float[Array, "agents batch action"],
        following: Float[Array, "agents batch action"],
        continues: Bool[Array, " batch"],
    ) -> Float[Array, ""]:
        """L_MOA: the squared error of what others do next, where the task continued (6)."""
        error = models(inputs.obs, action, action) - jnp.moveaxis(following, 0, 1)
        square = jnp.square(error) * models.mask
        return 0.5 * masked_mean(square.sum(axis=(0, 2, 3)), continues)


def kl_to_moments(
    expected: Float[Array, "agents batch agents action"],
    means: Float[Array, "counterfactuals agents batch agents action"],
    variance: float,
    mask: Float[np.ndarray, "agents 1 agents action"],
) -> Float[Array, "agents batch"]:
    """KL of N(expected, variance) to the Gaussian with the mean and the variances of the mixture of
    N(means, variance), in closed form; a sum over the entries that `mask` keeps."""
    mean = means.mean(axis=0)
    wide = variance + means.var(axis=0)
    square = variance + jnp.square(expected - mean)
    terms = 0.5 * (jnp.log(wide / variance) + square / wide - 1.0)
    return (terms * mask).sum(axis=(-1, -2))


def kl_by_draws(
    expected: Float[Array, "agents batch agents action"],
    means: Float[Array, "counterfactuals agents batch agents action"],
    variance: float,
    mask: Float[np.ndarray, "agents 1 agents action"],
    normal: Float[Array, "draws agents batch agents action"],
) -> Float[Array, "agents batch"]:
    """KL of N(expected, variance) to the mixture of N(means, variance) itself, estimated by draws
    from N(expected, variance), of which `normal` is the noise."""

    def log_density(distance: Float[Array, "*more agents batch agents action"]) -> Array:
        """Up to a constant, of what is so many standard deviations away from a mean."""
        return -0.5 * (jnp.square(distance) * mask).sum(axis=-1)

    def log_ratio(normal: Float[Array, "agents batch agents action"]) -> Array:
        distances = (expected - means) / math.sqrt(variance) + normal
        mixture = jax.nn.logsumexp(log_density(distances), axis=0) - math.log(means.shape[0])
        return log_density(normal) - mixture

    return jax.vmap(log_ratio)(normal).mean(axis=0).sum(axis=-1)
