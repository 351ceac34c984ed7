"""PyTorch's update of RACE on FACMAC computes what comarl's does: `python -m pytest
bench/test_torch_race_facmac.py`.

Both begin with the same parameters and see the same episodes, Gumbel noise and teams. Losses must
agree to 1e-4, and so must the change of every parameter and target, relative to the largest change
in its array.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from torch import Tensor, nn
from torch_matd3 import tensor
from torch_race_facmac import Encoder, TorchRaceFacmac, to_torch

from comarl.algorithms.race_facmac import RaceFacmac
from comarl.nn.mlp import Linear
from comarl.ops.learner import Adam
from comarl.types import Clock, EnvSpec, Episode, Key, Timestep

SPEC = EnvSpec(num_agents=3, obs_size=5, state_size=6, action_size=4, discrete=True, horizon=7)
BATCH, UPDATES = 8, 4


def make_batch(key: Key) -> Episode:
    """Episodes of different lengths, of which some terminate, with actions that are not
    available."""
    keys = jax.random.split(key, 7)
    steps = (BATCH, SPEC.horizon + 1, SPEC.num_agents)
    available = jax.random.bernoulli(keys[0], 0.7, (*steps, SPEC.action_size)).at[..., 0].set(True)
    timesteps = Timestep(
        jax.random.normal(keys[1], (*steps, SPEC.obs_size)),
        jax.random.normal(keys[2], (*steps[:2], SPEC.state_size)),
        available,
    )
    action = jax.random.categorical(keys[3], jnp.where(available, 0.0, -1e10))[:, :-1].astype(
        jnp.int32
    )
    length = jax.random.randint(keys[4], (BATCH, 1), 2, SPEC.horizon + 1).at[0].set(SPEC.horizon)
    mask = jnp.arange(SPEC.horizon) < length
    terminated = (jnp.arange(SPEC.horizon) == length - 1) & jax.random.bernoulli(
        keys[5], 0.5, (BATCH, 1)
    )
    reward = jnp.where(mask, jax.random.normal(keys[6], mask.shape), 0.0)
    return Episode((), timesteps, action, reward, terminated, mask)


def draws(algorithm: RaceFacmac, key: Key) -> tuple[list[Tensor], list[int]]:
    """The noise and the teams that comarl's update draws from its key."""
    team_key, noise_key, other_key, team_noise_key = jax.random.split(key, 4)
    shape = (BATCH, SPEC.num_agents, SPEC.action_size)
    # As `straight_through_steps` draws
    step = lambda k, t: jax.random.gumbel(jax.random.fold_in(k, t), shape)
    gumbel = lambda k: jnp.stack([step(k, t) for t in range(SPEC.horizon)]).swapaxes(1, 2)
    noise = [tensor(gumbel(k)) for k in (noise_key, team_noise_key)]
    return noise, [
        int(jax.random.randint(k, (), 0, algorithm.num_teams)) for k in (team_key, other_key)
    ]


def linears(module: Any) -> list[Any]:
    """The layers of one of comarl's modules, in the order in which PyTorch's lists its own."""
    is_layer = lambda x: isinstance(x, Linear)
    return [x for x in jax.tree.leaves(module, is_leaf=is_layer) if is_layer(x)]


def arrays(module: Any) -> list[np.ndarray]:
    """The same in PyTorch's form."""
    return [
        np.asarray(array) for layer in linears(module) for array in (layer.weight.T, layer.bias)
    ]


def gates(encoder: Any) -> list[np.ndarray]:
    """Weights and biases of the GRU, in PyTorch's form and order."""
    pair = (encoder.gru.from_input, encoder.gru.from_memory)
    weights = [np.swapaxes(part.weight, 1, 2).reshape(-1, part.weight.shape[1]) for part in pair]
    return [*weights, *(np.asarray(part.bias).reshape(-1) for part in pair)]


def assert_changed_alike(
    before: list[np.ndarray], after: list[np.ndarray], theirs: list[Any]
) -> None:
    for start, ours, other in zip(before, after, theirs, strict=True):
        other, change = other.detach().numpy().reshape(ours.shape), np.abs(ours - start).max()
        assert change > 0
        # Nor can a float32 parameter hold its change to better than its own last digit.
        slack = 1e-4 * change + 2.4e-7 * np.abs(ours).max()
        np.testing.assert_allclose(other - start, ours - start, rtol=0, atol=slack)


def assert_same(before: Any, after: Any, theirs: nn.Module) -> None:
    if isinstance(theirs, Encoder):
        parts = list(theirs.layer.parameters())
        assert_changed_alike(arrays(before.layer), arrays(after.layer), parts)
        return assert_changed_alike(gates(before), gates(after), list(theirs.cell.parameters()))
    return assert_changed_alike(arrays(before), arrays(after), list(theirs.parameters()))


@pytest.mark.parametrize(("mixing", "max_norm"), [("monotonic", 10.0), ("any", 0.01)])
def test_both_ways_of_pytorch_update_as_comarl_does(mixing, max_norm):
    # Adam with a smaller epsilon makes updates of gradients that are all rounding error
    adam = Adam(1e-3, max_norm, 1e-4)
    adams = dict.fromkeys(
        ("actor_optimiser", "head_optimiser", "critic_optimiser", "mine_optimiser"), adam
    )
    sizes = dict(
        hidden=16, embedding=12, mine_width=20, value_hidden=10, mixer_width=8, hypernet=14
    )
    algorithm = RaceFacmac(mixing=mixing, beta=0.5, target_period=3, **sizes, **adams)
    state = start = jax.jit(lambda key: algorithm.init(SPEC, key))(jax.random.key(0))
    both, drawn = [TorchRaceFacmac(algorithm, state, mode) for mode in ("stepped", "whole")], set()
    update = jax.jit(algorithm.update)
    for index in range(UPDATES):
        batch, key = make_batch(jax.random.key(100 + index)), jax.random.key(200 + index)
        noise, teams = draws(algorithm, key)
        drawn |= set(teams)
        state, metrics = update(
            state, batch, Clock(jnp.int32(0), jnp.int32(index), jnp.int32(index)), key
        )
        for theirs in both:
            for name, value in theirs.update(to_torch(batch, SPEC), *noise, *teams).items():
                np.testing.assert_allclose(
                    float(value), float(metrics[name]), rtol=1e-4, atol=1e-6, err_msg=name
                )
    assert algorithm.breeding.population in drawn and len(drawn) > 2, "other keys would test more"
    for theirs in both:
        for name in ("encoder", "critic", "team_critic", "value", "mine"):
            assert_same(
                getattr(start, name).value, getattr(state, name).value, getattr(theirs, name)
            )
        for name in ("encoder", "critic", "team_critic"):
            targets = (getattr(one, name).target for one in (start, state))
            assert_same(*targets, getattr(theirs, f"target_{name}"))
        for before, after, pair in (
            (start.head.value, state.head.value, theirs.head),
            (start.head.target, state.head.target, theirs.target_head),
        ):
            changes = [[np.asarray(head.weight), np.asarray(head.bias)] for head in (before, after)]
            assert_changed_alike(*changes, list(pair))
