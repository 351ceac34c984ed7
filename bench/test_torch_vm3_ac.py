"""VM3-AC in PyTorch computes what comarl's does: `python -m pytest bench/test_torch_vm3_ac.py`,
which needs PyTorch.

Both begin with the same parameters and see the same batches and noise; losses must agree to 1e-4,
and so must the change of every parameter and target, relative to the largest change in its array.
Both tasks play the same episode.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from test_torch_updates import assert_metrics, clock
from torch import nn
from torch_matd3 import tensor
from torch_vm3_ac import Batch, NumpyWaves, TorchVm3Ac

from comarl.algorithms.vm3_ac import Vm3Ac
from comarl.envs.waves import PRESETS
from comarl.nn.predictors import ActionInformation
from comarl.ops.learner import Adam
from comarl.types import Timestep, Transition

TASK, BATCH, UPDATES = PRESETS["4"], 16, 4
SPEC, TEAM = TASK.spec, (BATCH, TASK.predators)
# With a smaller epsilon gradients that are all rounding error make updates
ADAM = Adam(1e-3, 0.0, 1e-4)


def make_batch(index: int) -> Transition:
    random = np.random.default_rng(index)
    float32 = lambda x: jnp.asarray(x, jnp.float32)
    see = lambda obs: Timestep(float32(obs), float32(obs.reshape(BATCH, -1)))
    now, after = (see(random.normal(size=(*TEAM, SPEC.obs_size))) for _ in range(2))
    action = float32(random.uniform(-1, 1, (*TEAM, SPEC.action_size)))
    return Transition(
        now,
        action,
        float32(random.normal(size=BATCH)),
        jnp.asarray(random.random(BATCH) < 0.2),
        after,
    )


def assert_same(before: Any, after: Any, net: nn.Sequential, *index: int) -> None:
    """The change of every parameter of one of comarl's stacked networks."""
    for name, layer in (("weight", 0), ("bias", 1)):
        linears = [module for module in net if isinstance(module, nn.Linear)]
        for number, linear in enumerate(linears):
            pick = lambda tree, n=number: (*tree.torso.layers, tree.output)[n]
            start, ours = (np.asarray(getattr(pick(tree), name))[index] for tree in (before, after))
            theirs = list(linear.parameters())[layer].detach().numpy().T
            change = np.abs(ours - start).max()
            assert change > 0, (name, number)
            slack = 1e-4 * change + 2.4e-7 * np.abs(ours).max()
            np.testing.assert_allclose(theirs - start, ours - start, rtol=0, atol=slack)


def test_updates_are_the_same():
    information = ActionInformation(optimiser=ADAM)
    optimisers = dict(actor_optimiser=ADAM, critic_optimiser=ADAM, information=information)
    algorithm = Vm3Ac(
        hidden=(12, 10), latent_size=3, beta=0.3, tau=0.2, log_std_range=(-4.0, 1.0), **optimisers
    )
    state = start = jax.jit(lambda key: algorithm.init(SPEC, key))(jax.random.key(0))
    theirs, update = TorchVm3Ac(algorithm, state), jax.jit(algorithm.update)
    for index in range(UPDATES):
        batch, key = make_batch(index), jax.random.key(200 + index)
        now, noise_key = algorithm.observe(batch.now, SPEC), jax.random.split(key, 3)[0]
        noise = algorithm.noise(SPEC, now, noise_key)
        state, metrics = update(state, batch, clock(index), key)
        ends = (batch.now.obs, batch.action, batch.reward, batch.terminated, batch.next.obs)
        tensors = Batch(*(tensor(jax.device_get(x)).float() for x in ends))
        assert_metrics(metrics, theirs.update(tensors, tensor(noise.z), tensor(noise.normal)))
    stack = lambda s, name: getattr(s, name).value.networks.networks
    for i in range(TASK.predators):
        assert_same(stack(start, "policies"), stack(state, "policies"), theirs.policies[i], i)
        assert_same(stack(start, "value"), stack(state, "value"), theirs.values[i], i)
        assert_same(
            start.value.target.networks.networks,
            state.value.target.networks.networks,
            theirs.targets[i],
            i,
        )
        for k in (0, 1):
            assert_same(stack(start, "critic"), stack(state, "critic"), theirs.critics[i][k], k, i)
    for number, pair in enumerate(theirs.pairs):
        assert_same(
            stack(start, "predictors"), stack(state, "predictors"), theirs.predictors[pair], number
        )


def test_the_tasks_play_the_same_episode():
    """Every predator walks from prey to prey, so that waves are caught."""
    theirs, step = NumpyWaves(TASK), jax.jit(TASK.step)
    env_state, timestep = TASK.reset(jax.random.key(0))
    obs, random, total = theirs.reset(), np.random.default_rng(0), 0.0
    for time in range(TASK.horizon):
        np.testing.assert_allclose(obs, timestep.obs, atol=1e-5)
        goal = TASK.lattice[np.flatnonzero(theirs.alive)[0]]
        action = (20 * (goal - theirs.place) + 0.1 * random.normal(size=theirs.place.shape)).astype(
            np.float32
        )
        env_state, timestep, reward, _, truncated = step(env_state, action, jax.random.key(0))
        obs, their_reward, over = theirs.step(action)
        assert (their_reward, over) == (float(reward), bool(truncated)) and over == (
            time == TASK.horizon - 1
        )
        total += their_reward
    assert theirs.worth > 1 and total > TASK.prey * TASK.capture_reward


def test_acting_and_drawing_agree():
    """`act` is `draw` of one row, agent by agent."""
    state = jax.jit(lambda key: Vm3Ac().init(SPEC, key))(jax.random.key(0))
    theirs, obs = TorchVm3Ac(Vm3Ac(), state), NumpyWaves(TASK).reset()
    torch.manual_seed(0)
    action = theirs.act(obs)
    assert action.shape == (TASK.predators, 2) and (np.abs(action) <= 1).all()
