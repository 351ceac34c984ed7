"""Every algorithm learns the probe tasks' known values and best actions to 0.1."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from comarl.algorithms.maddpg import Maddpg
from comarl.algorithms.matd3 import Matd3
from comarl.algorithms.maven_ac import MavenAc
from comarl.algorithms.race_matd3 import RaceMatd3
from comarl.algorithms.si_moa import SiMoa
from comarl.algorithms.vm3_ac import Vm3Ac
from comarl.envs.probes import PROBES
from comarl.evolution.population import HeadBreeding
from comarl.nn.policies import choose, encode
from comarl.nn.values import CriticInputs, each_critic
from comarl.ops.learner import Adam
from comarl.replay.pace import StepPace
from comarl.replay.transitions import Ring
from comarl.training.settings import Run
from tests.sessions import session

GAMMA = 0.5
FAST: dict[str, Any] = {
    "hidden": (32, 32),
    "replay": Ring(4000, 64),
    "pace": StepPace(300, 4.0),
    "gamma": GAMMA,
    "tau": 0.05,
    "target_noise": 0.05,
    "critic_optimiser": Adam(3e-3),
}
RACE: dict[str, Any] = {
    "breeding": HeadBreeding(3, mutated_fraction=0.5),
    "embedding": 8,
    "mine_width": 16,
    "beta": 0.01,
    "encoder_optimiser": Adam(3e-3),
    "head_optimiser": Adam(3e-3),
}
MADDPG: dict[str, Any] = {
    **{name: FAST[name] for name in ("hidden", "replay", "pace", "gamma", "tau")},
    "actor_optimiser": Adam(3e-3),
    "critic_optimiser": Adam(3e-3),
}
VM3_AC: dict[str, Any] = {**MADDPG, "latent_size": 2}
MA_AC = Vm3Ac(**{**VM3_AC, "latent_size": 0}, beta=0.0)
ALGORITHMS = {
    "matd3": Matd3(**FAST, actor_optimiser=Adam(3e-3)),
    "maddpg": Maddpg(**MADDPG),
    "race-matd3": RaceMatd3(**FAST, **RACE),
    "vm3-ac": Vm3Ac(**VM3_AC, beta=0.01),  # values are of the return and of beta times information
    "ma-ac": MA_AC,
    "ma-ac-attention": dataclasses.replace(MA_AC, critic="attention"),
    # Values are of what pays for being guessed, too
    "maven-ac": MavenAc(MA_AC, latents=2, intrinsic=0.01),
    "si-moa": SiMoa(MA_AC, influence=0.001, counterfactuals=4),  # and of influence
    "vm3-ac-modern": Vm3Ac(
        **VM3_AC,
        beta=0.01,
        value="target-q",
        entropy="marginal",
        marginal_draws=4,
        share_parameters=True,
    ),
}
# A preset is its algorithm with terms removed, a variant has others in their place.
SOME = {
    **{
        "maddpg": ("delayed", "together"),
        "ma-ac": ("together",),
        "ma-ac-attention": ("signal-action",),
    },
    **{"maven-ac": ("together",), "si-moa": ("signal-action",), "vm3-ac-modern": ("together",)},
}
PROBED = [(name, probe) for name in ALGORITHMS for probe in SOME.get(name, PROBES)]

# name -> (value of the first step where the signal is x, best actions there)
KNOWN = {
    "constant": lambda x: (1.0, None),
    "signal": lambda x: (x, None),
    "delayed": lambda x: (GAMMA, None),
    "truncated": lambda x: (1.0 / (1.0 - GAMMA), None),
    "action": lambda x: (1.0, (0.5, -0.5)),
    "signal-action": lambda x: (1.0, (0.5 * x, 0.5 * x)),
    "together": lambda x: (1.0, (0.5, 0.5)),
}


def inner(algorithm, agent, obs):
    """The actor-critics of what is built on VM3-AC's, and what they see: the first of modes before
    all else."""
    if isinstance(algorithm, MavenAc):
        mode = jnp.broadcast_to(jnp.eye(algorithm.latents)[0], (*obs.shape[:-1], algorithm.latents))
        return algorithm.base, agent.base, jnp.concatenate([mode, obs], axis=-1)
    return (
        (algorithm.base, agent.base, obs)
        if isinstance(algorithm, SiMoa)
        else (algorithm, agent, obs)
    )


def policy(algorithm, agent, obs):
    if isinstance(algorithm, RaceMatd3):
        return choose(agent.head.value, encode(agent.encoder.value, obs), agent.spec)
    if isinstance(algorithm, Vm3Ac):
        policies, seen = agent.policies.value, jnp.moveaxis(obs, 1, 0)
        return jnp.moveaxis(
            policies.squash(policies(seen, jnp.zeros((len(obs), algorithm.latent_size)))[0]), 0, 1
        )
    if isinstance(algorithm, Maddpg):
        return jnp.moveaxis(agent.actors.value(jnp.moveaxis(obs, 1, 0))[0], 0, 1)
    return agent.actors.value(obs)


def values(algorithm, agent, obs, action):
    """All Q of one joint action, and all V."""
    if isinstance(algorithm, Matd3 | RaceMatd3):
        return np.asarray(agent.critic.value(obs[:, 0], action))
    seen = CriticInputs(jnp.moveaxis(obs, 1, 0), obs.reshape(1, -1))
    action = jnp.moveaxis(action, 1, 0)
    if isinstance(algorithm, Maddpg):
        return np.asarray(agent.critic.value(seen, action))
    q = each_critic(agent.critic.value, seen, action)
    return np.concatenate([q.ravel(), agent.value.value(seen).ravel() if agent.value else []])


@pytest.mark.parametrize(("name", "probe"), PROBED)
def test_values_and_actions_of_a_probe_are_learnt(name, probe, tmp_path):
    algorithm, task = ALGORITHMS[name], PROBES[probe]
    run = Run(algorithm, task, seeds=1, steps=900, evaluate_every=1000, evaluation_episodes=2)
    state = session(run, tmp_path, checkpoint_seconds=1e9).train()
    signals = (-1.0, 1.0) if probe.startswith("signal") else (0.0,)
    agent = jax.tree.map(lambda leaf: leaf[0], state.agent)
    for signal in signals:
        seen = jnp.array([[signal, 0.0]])
        value, best = KNOWN[probe](signal)
        obs = jnp.stack([seen, seen], axis=1)
        actor_critics = inner(algorithm, agent, obs)
        action = policy(*actor_critics)
        if best is not None:
            np.testing.assert_allclose(np.asarray(action[0, :, 0]), best, atol=0.1)
        np.testing.assert_allclose(values(*actor_critics, action), value, atol=0.1)
        if name == "race-matd3":
            q = np.asarray(agent.team_critic.value(seen, action, agent.head.value))[:, 0]
            np.testing.assert_allclose(q, value, atol=0.1)
