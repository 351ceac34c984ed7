"""Every algorithm for discrete actions learns the discrete probes' known values and best actions to 0.1."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from comarl.algorithms.qmix import Qmix
from comarl.envs import find_task
from comarl.envs.check import check
from comarl.envs.discrete_probes import PROBES
from comarl.ops.learner import Adam
from comarl.training.replay import EpisodeRing
from comarl.training.rollout import play
from comarl.training.run import Options, Session, identity
from comarl.training.train import Run

GAMMA = 0.5
EPISODES = 12
FAST = dict(
    **dict(hidden=16, mixer_width=8, hypernet=16, gamma=GAMMA, target_period=10, epsilon=(1.0, 0.3), epsilon_steps=500),
    **dict(replay=EpisodeRing(300, 32), parallel_envs=10, updates_per_episode=1.0, optimiser=Adam(5e-3)),
)


def q_tot(algorithm, agent, episode):
    """Of each step."""
    return algorithm.values(agent.learner.value, agent.target, episode)[0]


# name -> (algorithm, its value of each step of an episode, the probes it is for: all, or some for a preset)
ALGORITHMS = {
    "qmix": (Qmix(**FAST), q_tot, tuple(PROBES)),
    "vdn": (Qmix(mixing="sum", **FAST), q_tot, ("truncated", "memory")),
}

# name -> (value of each step where the signal is x, best actions of each step)
EITHER = None
KNOWN = {
    "constant": lambda x: ([1.0], [EITHER]),
    "signal": lambda x: ([x], [EITHER]),
    "delayed": lambda x: ([GAMMA, 1.0], [EITHER, EITHER]),
    "truncated": lambda x: ([1.0 / (1.0 - GAMMA)] * 2, [EITHER, EITHER]),
    "action": lambda x: ([1.0], [(2, 0)]),
    "signal-action": lambda x: ([1.0], [(1 + x, 1 + x)]),
    "together": lambda x: ([1.0], [(1, 1)]),
    "memory": lambda x: ([GAMMA, 1.0], [EITHER, (1 + x, 1 + x)]),
}


@pytest.mark.parametrize("probe", PROBES)
def test_every_discrete_probe_keeps_the_contract(probe):
    check(find_task(f"probe/discrete-{probe}"), steps=16)


@pytest.mark.parametrize(("name", "probe"), [(name, probe) for name, (*_, of) in ALGORITHMS.items() for probe in of])
def test_values_and_actions_of_a_discrete_probe_are_learnt(name, probe, tmp_path):
    (algorithm, value_of, _), task = ALGORITHMS[name], PROBES[probe]
    steps = 600 * task.steps
    run = Run(algorithm, task, steps=steps, evaluate_every=2000, evaluation_episodes=EPISODES)
    session = Session(run, identity(run, name, probe), tmp_path, Options(checkpoint_seconds=1e9), Console(quiet=True))
    state = session.train()

    marl, everyone = np.zeros((1, EPISODES), int), np.ones((1, EPISODES), bool)
    keys = jax.random.split(jax.random.key(1), 1)
    episodes = play(algorithm, task, state.agent, state.clock, marl, everyone, keys, "greedy")
    agent, episodes = jax.tree.map(lambda leaf: leaf[0], (state.agent, episodes))
    values = jax.jit(jax.vmap(lambda episode: value_of(algorithm, agent, episode)))(episodes)

    signals = np.asarray(episodes.timesteps.state[:, 0, 0])
    assert set(signals.tolist()) == ({-1.0, 1.0} if probe in ("signal", "signal-action", "memory") else {0.0})
    np.testing.assert_array_equal(episodes.mask.sum(1), task.steps)
    for b, signal in enumerate(signals):
        expected, best = KNOWN[probe](signal)
        np.testing.assert_allclose(values[b, : task.steps], expected, atol=0.1)
        for t, actions in enumerate(best):
            assert actions is EITHER or episodes.action[b, t].tolist() == list(actions)
