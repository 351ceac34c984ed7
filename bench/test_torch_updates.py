"""PyTorch's updates compute what comarl's do: `python -m pytest bench/test_torch_updates.py`, which
needs PyTorch.

Both begin with the same parameters and see the same batches, noise and teams. Their losses must
agree to 1e-4, and so must the change of every parameter and target, relative to the largest change
in its array.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from multiply_adds import of_update
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torch_matd3 import TorchMatd3, draw_noise, named_parameters, tensor, to_torch
from torch_race import TorchRace

from comarl.algorithms.matd3 import Matd3
from comarl.algorithms.race_matd3 import RaceMatd3
from comarl.ops.learner import Adam
from comarl.types import Clock, EnvSpec, Key, Timestep, Transition

SPEC = EnvSpec(num_agents=3, obs_size=4, state_size=6, action_size=2, discrete=False, horizon=10)
BATCH, UPDATES = 32, 4
HIDDEN = (40, 30)
EPSILON = 1e-4  # Adam with less makes updates of single gradients that are all rounding error


def make_batch(key: Key, size: int = BATCH) -> Transition:
    keys = jax.random.split(key, 7)
    see = lambda o, s: Timestep(
        jax.random.normal(o, (size, SPEC.num_agents, SPEC.obs_size)),
        jax.random.normal(s, (size, SPEC.state_size)),
    )
    action = jax.random.uniform(keys[4], (size, SPEC.num_agents, SPEC.action_size), minval=-1.0)
    reward = jax.random.normal(keys[5], (size,))
    terminated = jax.random.bernoulli(keys[6], 0.2, (size,))
    return Transition(see(keys[0], keys[1]), action, reward, terminated, see(keys[2], keys[3]))


def make_noise(algorithm: Any, key: Key) -> jax.Array:
    """What `smooth_target` draws from this key."""
    noise = algorithm.target_noise * jax.random.normal(
        key, (BATCH, SPEC.num_agents, SPEC.action_size)
    )
    return jnp.clip(noise, -algorithm.target_noise_clip, algorithm.target_noise_clip)


def look_up(module: Any, name: str) -> np.ndarray:
    """comarl's array of PyTorch's dotted name."""
    for part in name.split("."):
        module = module[int(part)] if part.isdigit() else getattr(module, part)
    return np.asarray(module)


def assert_same(before: Any, after: Any, module: nn.Module) -> None:
    """The change of every parameter, relative to the largest change in its array."""
    for name, theirs in named_parameters(module).items():
        start, ours = look_up(before, name), look_up(after, name)
        theirs, change = theirs.reshape(ours.shape), np.abs(ours - start).max()
        assert change > 0, name
        # Nor can a float32 parameter hold its change to better than its own last digit.
        slack = 1e-4 * change + 2.4e-7 * np.abs(ours).max()
        np.testing.assert_allclose(theirs - start, ours - start, rtol=0, atol=slack, err_msg=name)


def assert_metrics(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for name, value in theirs.items():
        np.testing.assert_allclose(
            float(value), float(ours[name]), rtol=1e-4, atol=1e-6, err_msg=name
        )


def clock(index: int) -> Clock:
    return Clock(jnp.int32(0), jnp.int32(index), jnp.int32(index))


@pytest.mark.parametrize(("layer_norm", "max_norm"), [(True, 10.0), (False, 0.01)])
def test_matd3_updates_are_the_same(layer_norm, max_norm):
    adam = Adam(1e-3, max_norm, EPSILON)
    algorithm = Matd3(
        hidden=HIDDEN,
        layer_norm=layer_norm,
        tau=0.2,
        target_noise=0.5,
        actor_optimiser=adam,
        critic_optimiser=adam,
    )
    state = start = algorithm.init(SPEC, jax.random.key(0))
    all_theirs = [TorchMatd3(algorithm, state, "cpu", kind) for kind in ("for", "foreach", "fused")]
    update = jax.jit(algorithm.update)
    for index in range(UPDATES):
        batch, key = make_batch(jax.random.key(100 + index)), jax.random.key(200 + index)
        state, metrics = update(state, batch, clock(index), key)
        for theirs in all_theirs:
            assert_metrics(
                metrics, theirs.update(to_torch(batch, "cpu"), tensor(make_noise(algorithm, key)))
            )
    for theirs in all_theirs:
        assert_same(start.actors.value, state.actors.value, theirs.policy)
        assert_same(start.critic.value, state.critic.value, theirs.critic)
        assert_same(start.actors.target, state.actors.target, theirs.target_policy)
        assert_same(start.critic.target, state.critic.target, theirs.target_critic)


@pytest.mark.parametrize(
    ("algorithm", "make", "teams"), [(Matd3(), TorchMatd3, ()), (RaceMatd3(), TorchRace, (0, 1))]
)
def test_multiply_adds_are_those_of_pytorch(algorithm, make, teams):
    """PyTorch counts what it does: no less than is needed, and little more."""
    theirs = make(
        algorithm, jax.jit(lambda key: algorithm.init(SPEC, key))(jax.random.key(0)), "cpu"
    )
    batch = to_torch(make_batch(jax.random.key(1), algorithm.replay.batch_size), "cpu")
    with FlopCounterMode(display=False) as counter:
        for _ in range(algorithm.policy_delay):
            theirs.update(batch, draw_noise(batch.action, algorithm), *teams)
    counted = counter.get_total_flops() / 2e6 / algorithm.policy_delay
    needed = sum(of_update(algorithm, SPEC).values())
    assert needed <= counted <= 1.02 * needed


@pytest.mark.parametrize(("layer_norm", "max_norm"), [(True, 10.0), (False, 0.01)])
def test_race_updates_are_the_same(layer_norm, max_norm):
    names = ("encoder_optimiser", "head_optimiser", "critic_optimiser", "mine_optimiser")
    adams = dict.fromkeys(names, Adam(1e-3, max_norm, EPSILON))
    algorithm = RaceMatd3(
        hidden=HIDDEN,
        layer_norm=layer_norm,
        beta=0.5,
        embedding=16,
        mine_width=20,
        tau=0.2,
        **adams,
    )
    state = start = algorithm.init(SPEC, jax.random.key(0))
    theirs, drawn = TorchRace(algorithm, state, "cpu"), set()
    update = jax.jit(algorithm.update)
    for index in range(UPDATES):
        batch, key = make_batch(jax.random.key(100 + index)), jax.random.key(90 + index)
        noise_key, *team_keys = jax.random.split(key, 3)
        teams = [int(jax.random.randint(k, (), 0, algorithm.num_teams)) for k in team_keys]
        drawn |= set(teams)
        state, metrics = update(state, batch, clock(index), key)
        assert_metrics(
            metrics,
            theirs.update(to_torch(batch, "cpu"), tensor(make_noise(algorithm, noise_key)), *teams),
        )
    assert algorithm.breeding.population in drawn and len(drawn) > 2, "other keys would test more"
    assert_same(start.encoder.value, state.encoder.value, theirs.policy.encoders)
    assert_same(start.head.value, state.head.value, theirs.policy.heads)
    for name in ("critic", "team_critic", "value", "mine"):
        assert_same(getattr(start, name).value, getattr(state, name).value, getattr(theirs, name))
    assert_same(start.encoder.target, state.encoder.target, theirs.target_policy.encoders)
    assert_same(start.head.target, state.head.target, theirs.target_policy.heads)
    assert_same(start.critic.target, state.critic.target, theirs.target_critic)
    assert_same(start.team_critic.target, state.team_critic.target, theirs.target_team_critic)
