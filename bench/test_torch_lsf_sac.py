"""PyTorch's update of LSF-SAC computes what comarl's does: `python -m pytest
bench/test_torch_lsf_sac.py`.

Both begin with the same parameters and see the same episodes and noise on messages. Losses must
agree to 1e-4, and so must the change of every parameter and target, relative to the largest change
in its array.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_torch_race_facmac import (
    BATCH,
    SPEC,
    UPDATES,
    arrays,
    assert_changed_alike,
    assert_same,
    make_batch,
)
from torch import Tensor
from torch_lsf_sac import TorchLsfSac
from torch_matd3 import tensor
from torch_race_facmac import to_torch

from comarl.algorithms.lsf_sac import LsfSac, Messaging, Temperature, first_critic
from comarl.ops.distributions import noise_of_steps
from comarl.ops.learner import Adam
from comarl.types import Clock, Key

SIZE = 2  # of a message
# Adam with a smaller epsilon makes updates of gradients that are all rounding error
SMOOTH = Adam(1e-3, 0.0, 1e-4)
CLIPPED = Adam(1e-3, 0.05, 1e-4)
# Of the messages' loss, in which parameters of the messenger change by little else, and in all
SHARES = {
    "as they are": {},
    "so that all of it shows": dict(weight=0.5, kl_weight=0.3, entropy_weight=0.2, std=0.7),
}


def draws(key: Key) -> list[Tensor]:
    """The noise that comarl's update draws from its key."""
    agents = SPEC.num_agents

    def noise(key: Key, steps: int) -> Tensor:
        keys = jax.random.split(key, (1, BATCH))[0]  # as `over_critics` does, for one critic
        drawn = jax.vmap(lambda k: noise_of_steps(k, (steps, agents, agents, SIZE)))(keys)
        return tensor(jnp.moveaxis(drawn, 0, 2).reshape(steps, agents, BATCH, agents * SIZE))

    online_key, target_key = jax.random.split(key)
    return [noise(online_key, SPEC.horizon), noise(target_key, SPEC.horizon + 1)]


@pytest.mark.parametrize("share", SHARES)
def test_both_ways_of_pytorch_update_as_comarl_does(share):
    sizes = dict(hidden=16, mixer_width=8, hypernet=14, target_period=3)
    adams = dict(actor_optimiser=SMOOTH, critic_optimiser=CLIPPED)
    algorithm = LsfSac(
        messages=Messaging(size=SIZE, hidden=12, **SHARES[share]),
        temperature=Temperature(fall=0.5, floor=0.3, floor_after=1000),
        logit_clamp=(-0.15, 0.1),
        **sizes,
        **adams,
    )
    state = start = jax.jit(lambda key: algorithm.init(SPEC, key))(jax.random.key(0))
    both, update = (
        [TorchLsfSac(algorithm, state, mode) for mode in ("stepped", "whole")],
        jax.jit(algorithm.update),
    )
    alphas = []
    for index in range(UPDATES):
        batch, key, env_steps = (
            make_batch(jax.random.key(100 + index)),
            jax.random.key(200 + index),
            600 * index,
        )
        clock = Clock(jnp.int32(env_steps), jnp.int32(index), jnp.int32(index))
        state, metrics = update(state, batch, clock, key)
        alphas.append(float(metrics["temperature"]))
        for theirs in both:
            values = theirs.update(to_torch(batch, SPEC), *draws(key), env_steps)
            assert set(values) == set(metrics)
            for name, value in values.items():
                np.testing.assert_allclose(
                    float(value), float(metrics[name]), rtol=1e-4, atol=1e-6, err_msg=name
                )
    assert alphas[-1] == np.float32(0.3) < alphas[-2] < alphas[0], (
        "another schedule would test more"
    )
    for theirs in both:
        for before, after, net in (
            (start.critics.value, state.critics.value, theirs.critic),
            (start.critics.target, state.critics.target, theirs.target_critic),
        ):
            before, after = first_critic(before), first_critic(after)
            for name in ("messenger", "mixer"):
                assert_same(getattr(before, name), getattr(after, name), getattr(net, name))
            assert_same(before.utility.encoder, after.utility.encoder, net.encoder)
            assert_changed_alike(
                arrays(before.utility.head), arrays(after.utility.head), list(net.head.parameters())
            )
        before, after = start.actor.value, state.actor.value
        assert_same(before.encoder, after.encoder, theirs.actor.encoder)
        assert_changed_alike(
            arrays(before.head), arrays(after.head), list(theirs.actor.head.parameters())
        )
