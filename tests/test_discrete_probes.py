"""Every algorithm for discrete actions learns the discrete probes' known values and best actions to
0.1."""

import dataclasses
import functools
import itertools
from typing import Any

import jax
import numpy as np
import pytest

from comarl.algorithms.dop import Dop
from comarl.algorithms.facmac import Facmac
from comarl.algorithms.fop import Fop
from comarl.algorithms.lica import Lica
from comarl.algorithms.lsf_sac import LsfSac, Messaging
from comarl.algorithms.maven import Maven
from comarl.algorithms.msac import Msac
from comarl.algorithms.ndq import Ndq
from comarl.algorithms.presets import MAA2C, VDAC_SUM
from comarl.algorithms.qmix import Qmix
from comarl.algorithms.qplex import Qplex
from comarl.algorithms.qtran import Qtran
from comarl.algorithms.race_facmac import RaceFacmac
from comarl.algorithms.vdac import Vdac
from comarl.algorithms.vm3_ac_discrete import Vm3AcDiscrete
from comarl.algorithms.wqmix import Wqmix
from comarl.envs import find_task
from comarl.envs.check import check
from comarl.envs.discrete_probes import PROBES
from comarl.evolution.population import HeadBreeding
from comarl.ops.exploration import Epsilon
from comarl.ops.learner import Adam
from comarl.play.rollout import play
from comarl.replay.episodes import EpisodeRing
from comarl.replay.pace import EpisodePace
from comarl.training.settings import Run, num_teams
from comarl.training.train import finish_round, learn, play_keys, start, store_and_evolve

GAMMA = 0.5
FAST: dict[str, Any] = dict(
    hidden=16,
    mixer_width=8,
    hypernet=16,
    gamma=GAMMA,
    target_period=10,
    epsilon=Epsilon(1.0, 0.3, 500),
    replay=EpisodeRing(300, 32),
    pace=EpisodePace(10, 1.0),
)


RATES: dict[str, Any] = dict(actor_optimiser=Adam(5e-3), critic_optimiser=Adam(5e-3))
RACE: dict[str, Any] = dict(
    breeding=HeadBreeding(2, mutated_fraction=0.05),
    population_after=0,
    embedding=8,
    mine_width=8,
    **{**FAST, "pace": EpisodePace(4, 1.0)},
)
NO_MIXER: dict[str, Any] = {
    name: value for name, value in FAST.items() if name not in ("mixer_width", "hypernet")
}
SOFT: dict[str, Any] = {name: FAST[name] for name in ("hidden", "gamma", "replay", "pace")}
# At so low a temperature FOP's soft values are the values of the tasks to 0.1.
SOFT_FAST: dict[str, Any] = dict(FAST, temperature=(0.5, 0.01), temperature_steps=500)
SOFT_FAST.pop("hypernet")
FOP = Fop(**SOFT_FAST, **RATES)
# What values its own behaviour must end without random actions to reach the values of the best one.
SURE: dict[str, Any] = dict(epsilon=Epsilon(0.3, 0.0, 300))
ROUND: dict[str, Any] = dict(replay=EpisodeRing(16, 16), pace=EpisodePace(16, 0.5))
MIXED: dict[str, Any] = {**FAST, **ROUND, **SURE}
del MIXED["target_period"]
OF_POLICIES: dict[str, Any] = dict(hidden=16, gamma=GAMMA, target_period=10)
ALGORITHMS = {
    "vdac-mix": Vdac(**MIXED, **RATES, value_weight=0.5),
    "vdac-sum": dataclasses.replace(VDAC_SUM, **MIXED, **RATES, value_weight=0.5),
    "maa2c": dataclasses.replace(MAA2C, **MIXED, **RATES),
    "lica": Lica(**OF_POLICIES, **ROUND, **RATES, critic_width=8, hypernet=16, entropy_weight=0.03),
    "dop": Dop(  # a narrow mixer may weigh an agent with 0, who then learns nothing
        **OF_POLICIES,
        epsilon=Epsilon(0.8, 0.0, 450),
        actor_optimiser=Adam(3e-3),
        critic_optimiser=Adam(5e-3),
        critic_hidden=(32, 32),
        mixer_width=32,
        replay=EpisodeRing(300, 16, recent=20, recent_batch=16),
        pace=EpisodePace(parallel_envs=10, updates_per_episode=1.0),
    ),
    "lsf-sac": LsfSac(**FAST, **RATES, messages=Messaging(size=1, hidden=16)),
    "masac": LsfSac(**FAST, **RATES, messages=Messaging("none")),
    "ndq": Ndq(**FAST, message_size=1, message_width=16, optimiser=Adam(5e-3)),
    "qmix": Qmix(**FAST, optimiser=Adam(5e-3)),
    "qplex": Qplex(**FAST, optimiser=Adam(5e-3)),
    "fop": FOP,
    "vm3-ac-discrete": Vm3AcDiscrete(
        FOP, latent_size=2, predictor_hidden=16, predictor_optimiser=Adam(5e-3)
    ),
    # Telling modes apart is worth more than these rewards at MAVEN's own weight of 1: a mode may
    # then act badly.
    "maven": Maven(**FAST, mi_weight=0.05, discriminator=(16, 16), optimiser=Adam(5e-3)),
    "msac": Msac(
        **SOFT,
        **RATES,
        temperature=0.03,
        temperature_optimiser=Adam(0.0),
        reward_scale=0.0,
        tau=0.1,
    ),
    "qtran": Qtran(**NO_MIXER, joint_hidden=(16, 16), optimiser=Adam(5e-3)),
    "cw-qmix": Wqmix(**FAST, unrestricted_width=16, optimiser=Adam(5e-3)),
    "ow-qmix": Wqmix(**FAST, unrestricted_width=16, weighting="optimistic", optimiser=Adam(5e-3)),
    "facmac": Facmac(**FAST, **RATES),
    "race-facmac": RaceFacmac(**RACE, **RATES),
}
# FACMAC's utilities see neither an agent's number nor its past. With a monotonic mixer agents that
# see the same then cannot be told to act differently, nor a value depend on what is no longer seen.
CANNOT = {
    (name, f"discrete-{probe}")
    for name in ("facmac", "race-facmac")
    for probe in ("action", "memory")
}
# FOP's policies, and those of VM3-AC on it, climb utilities that do not see the past either.
CANNOT |= {(name, "discrete-memory") for name in ("fop", "vm3-ac-discrete")}

# name -> (value of each step where the signal is x, best actions of each step; None where all are
# equally good)
KNOWN = {
    "discrete-constant": lambda x: ([1.0], [None]),
    "discrete-signal": lambda x: ([x], [None]),
    "discrete-delayed": lambda x: ([GAMMA, 1.0], [None, None]),
    "discrete-truncated": lambda x: ([1.0 / (1.0 - GAMMA)] * 2, [None, None]),
    "discrete-action": lambda x: ([1.0], [[2, 0]]),
    "discrete-signal-action": lambda x: ([1.0], [[1 + x, 1 + x]]),
    "discrete-together": lambda x: ([1.0], [[1, 1]]),
    "discrete-memory": lambda x: ([GAMMA, 1.0], [None, [1 + x, 1 + x]]),
}
WITH_SIGNAL = ("discrete-signal", "discrete-signal-action", "discrete-memory")


@pytest.mark.parametrize("probe", PROBES)
def test_every_discrete_probe_keeps_the_contract(probe):
    assert check(find_task(f"probe/{probe}"), steps=16).mean_length == PROBES[probe].steps


def trained(algorithm, task, rounds=60):
    """What one seed has learnt after so many rounds: a session's loop, in which all probes share
    what is compiled."""
    spec, episodes = task.spec, num_teams(algorithm) * algorithm.pace.parallel_envs
    state, active = start(Run(algorithm, PROBES["discrete-constant"])), np.ones(1, bool)
    for _ in range(rounds):
        played = episodes_of(algorithm, task, state, play_keys(state.key), "explore")
        state, plan = store_and_evolve(algorithm, spec, state, played, active, "training")
        agent, _ = learn(
            algorithm,
            spec,
            state.agent,
            state.replay,
            state.clock,
            plan.learn_key,
            plan.num_updates,
            begin=np.int32(0),
            chunk=episodes,
        )
        state = finish_round(
            algorithm, state._replace(agent=agent), plan.num_updates, active, "training"
        )
    return state


def episodes_of(algorithm, task, state, keys, mode):
    """A round's episodes of the one seed."""
    teams = np.repeat(np.arange(num_teams(algorithm)), algorithm.pace.parallel_envs)[None]
    return play(
        algorithm, task, state.agent, state.clock, teams, np.ones(teams.shape, bool), keys, mode
    )


@functools.partial(jax.jit, static_argnums=0)
def values_of(algorithm, agent, episodes):
    return jax.vmap(lambda episode: algorithm.team_values(agent, episode, jax.random.key(0)))(
        episodes
    )


def cases():
    """All that can be learnt. What the later probes ask for beside more is left to `make learn` for
    most algorithms."""
    simple, first = (
        ("discrete-constant", "discrete-signal", "discrete-delayed"),
        ("qmix", "facmac", "race-facmac"),
    )
    for name, probe in itertools.product(ALGORITHMS, PROBES):
        if (name, probe) not in CANNOT:
            slow = probe in simple and name not in first
            yield pytest.param(name, probe, marks=pytest.mark.slow if slow else ())


@pytest.mark.parametrize(("name", "probe"), list(cases()))
def test_values_and_actions_of_a_discrete_probe_are_learnt(name, probe):
    algorithm, task = ALGORITHMS[name], PROBES[probe]
    state = trained(algorithm, task)
    played = episodes_of(algorithm, task, state, jax.random.split(jax.random.key(1), 1), "greedy")
    own = algorithm.pace.parallel_envs  # the last team is the one that learns by gradient
    agent, played = (
        jax.tree.map(lambda leaf: leaf[0], state.agent),
        jax.tree.map(lambda leaf: leaf[0, -own:], played),
    )
    values = values_of(algorithm, agent, played)
    signals = np.asarray(played.timesteps.state[:, 0, 0])
    assert set(signals.tolist()) == ({-1.0, 1.0} if probe in WITH_SIGNAL else {0.0})
    for b, signal in enumerate(signals):
        expected, best = KNOWN[probe](signal)
        assert int(played.mask[b].sum()) == len(expected)
        np.testing.assert_allclose(values[b, : len(expected)], expected, atol=0.1)
        assert all(
            actions in (None, played.action[b, t].tolist()) for t, actions in enumerate(best)
        )
